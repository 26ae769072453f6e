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

/// The interval between two looks at a link.
const LOOK: Duration = Duration::from_secs(1);
/// The time limit of a report.
const REPORT_WITHIN: Duration = Duration::from_secs(5);

/// Reports the condition of the sending link until `stop`: at once when it changes, else every [`REPORTED_EVERY`]. The
/// last report says that the link is not used any more.
///
/// A store that is away is no trouble of the link: the report is made again a second later.
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
            () = sleep(LOOK) => {}
        }
    }
    reporter.report(LinkState::Unused, Duration::ZERO).await;
    Ok(())
}

struct Reporter {
    shared: Arc<Shared>,
    worker: Holder,
    /// The last report that the store has taken.
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
        match timeout(REPORT_WITHIN, reported).await {
            Ok(Ok(())) => self.last = Some((report.state, Instant::now())),
            _ => tracing::debug!(%hub, "the store does not take the state of the link"),
        }
    }
}

impl Shared {
    /// The condition of the sending link, and for how long that of a hindered one has lasted.
    fn link_state(&self) -> (LinkState, Duration) {
        self.status
            .metrics()
            .clock_ahead(self.hub.hub.clock_ahead_ms());
        let has_link = self.hub.hub.has_link();
        if let Some(has_link) = has_link {
            self.status.metrics().link_up(has_link);
        }
        if let HubState::Shut {
            since,
            trouble,
            reason,
            ..
        } = self.status.state()
        {
            return (LinkState::hindered(trouble, &reason), since.elapsed());
        }
        if let Some(is) = self.hub.hub.hindrance() {
            return (LinkState::hindered(is.trouble, &is.reason), is.lasting);
        }
        let state = match has_link {
            Some(true) => LinkState::Open,
            Some(false) | None => LinkState::Unused,
        };
        (state, Duration::ZERO)
    }
}
