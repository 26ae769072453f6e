//! The known hubs, and the connections of processes to them.

use async_trait::async_trait;

use super::StoreError;
use crate::evidence::{ListenerReport, ListenerStatus};
use crate::ids::{HubHost, HubName};
use crate::link::{LinkReport, LinkStatus};

/// Keeps the binding of each hub's alias, and the reports of processes on their connections to the
/// hubs.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Binds the alias of a hub to the hub's host name, unless the alias is bound already. Returns
    /// the bound host name. A binding never changes, because all records under the alias are about
    /// the bound hub.
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError>;

    /// Stores the report of a listener to a hub's feedback, in place of the listener's last report.
    /// Reports older than [`REPORT_RETENTION`](crate::evidence::REPORT_RETENTION) may be deleted.
    ///
    /// A store within the process must remember the existence of a listener across a crash: after
    /// the restart, it reports a listener that is not listening, with the state of the last
    /// listener, as of the time of opening the store.
    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError>;

    /// Returns the listeners to a hub's feedback with their newest reports, in no order. Lost
    /// listeners are included until their reports are deleted.
    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError>;

    /// Stores the report of a worker on its sending link to a hub, in place of the worker's last
    /// report. Reports older than [`REPORT_RETENTION`](crate::evidence::REPORT_RETENTION) may be
    /// deleted. In a store within the process, the report need not outlive the process.
    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError>;

    /// Returns the workers' sending links to a hub with their newest reports, in no order. Links of
    /// departed workers are included until their reports are deleted.
    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError>;
}
