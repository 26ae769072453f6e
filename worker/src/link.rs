//! Reports to the store whether a worker can send through a hub, and why not.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use twincast_core::ids::Holder;
use twincast_core::link::{LinkReport, LinkState, REPORTED_EVERY};

use crate::config::WorkerError;
use crate::shared::Shared;
use crate::status::HubState;

/// The interval between two checks of the link.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports the condition of the sending link until `stop`: at once when the condition changes,
/// otherwise every [`REPORTED_EVERY`]. The last report marks the link as unused.
///
/// An unavailable store is not a failure of the link: the report is repeated a second later.
pub(crate) async fn report(
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> Result<(), WorkerError> {
    let mut reporter = Reporter {
        worker: Holder::new(shared.id.simple().to_string()).expect("hexadecimal digits"),
        shared,
        last: None,
    };
    loop {
        let (state, lasting) = reporter.shared.link_state();
        reporter.report(state, lasting).await;
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = sleep(CHECK_INTERVAL) => {}
        }
    }
    reporter.report(LinkState::Unused, Duration::ZERO).await;
    Ok(())
}

struct Reporter {
    shared: Arc<Shared>,
    worker: Holder,
    /// The last report accepted by the store.
    last: Option<(LinkState, Instant)>,
}

impl Reporter {
    async fn report(&mut self, state: LinkState, lasting: Duration) {
        if let Some((last, at)) = &self.last
            && *last == state
            && at.elapsed() < REPORTED_EVERY
        {
            return;
        }
        let hub = &self.shared.hub.name;
        let report = LinkReport {
            worker: self.worker.clone(),
            lasting,
            state,
        };
        let reported = self.shared.store.report_link(hub, &report);
        match timeout(REPORT_TIMEOUT, reported).await {
            Ok(Ok(())) => self.last = Some((report.state, Instant::now())),
            _ => tracing::debug!(%hub, "the store does not record the state of the link"),
        }
    }
}

impl Shared {
    /// Returns the condition of the sending link and, for a hindered link, how long the condition
    /// has lasted.
    fn link_state(&self) -> (LinkState, Duration) {
        self.status
            .metrics()
            .clock_ahead(self.hub.hub.clock_ahead_ms());
        let has_link = self.hub.hub.has_link();
        if let Some(has_link) = has_link {
            self.status.metrics().link_up(has_link);
        }
        if let HubState::Unavailable {
            since,
            trouble,
            reason,
            ..
        } = self.status.state()
        {
            return (LinkState::hindered(trouble, &reason), since.elapsed());
        }
        if let Some(is) = self.hub.hub.obstacle() {
            return (LinkState::hindered(is.trouble, &is.reason), is.lasting);
        }
        let state = match has_link {
            Some(true) => LinkState::Open,
            Some(false) | None => LinkState::Unused,
        };
        (state, Duration::ZERO)
    }
}
