//! Which hubs there are, and which processes are connected to them.

use async_trait::async_trait;

use super::StoreError;
use crate::evidence::{ListenerReport, ListenerStatus};
use crate::ids::{HubHost, HubName};
use crate::link::{LinkReport, LinkStatus};

/// Keeps what is known of each hub, and what processes report of their connections to it.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Binds the alias of a hub to the hub's host name, unless the alias is bound already; gives the host name to which
    /// the alias is bound. A binding never changes, because all records under the alias are about that hub.
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError>;

    /// Keeps what a listener to a hub's feedback says of itself, in place of what it said before. A report that is older
    /// than [`FORGOTTEN`](crate::evidence::FORGOTTEN) may be forgotten.
    ///
    /// An implementation that is a part of the process knows after a crash that there was a listener: it reports none that
    /// is listening, with the state of the last one, as of the moment at which it was opened.
    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError>;

    /// The listeners to a hub's feedback, with their newest reports, in no order. Those that were lost are among them,
    /// until they are forgotten.
    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError>;

    /// Keeps what a worker says of its sending link to a hub, in place of what it said before. A report that is older
    /// than [`FORGOTTEN`](crate::evidence::FORGOTTEN) may be forgotten. It need not outlive the process of a store that
    /// is a part of it.
    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError>;

    /// The workers' sending links to a hub, with their newest reports, in no order. Those of workers that have gone are
    /// among them, until they are forgotten.
    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError>;
}
