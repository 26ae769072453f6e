//! The reachability of a dependency shared by all drivers of a process.
//!
//! A loss and the recovery are logged with one line each, however many drivers fail and however
//! often they retry.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::error::describe;

/// The dependency counts as recovered when no call has failed for this time: calls begun before the
/// loss may still succeed.
const RECOVERY_TIME: Duration = Duration::from_secs(1);

/// The reachability of a dependency.
#[derive(Debug)]
pub struct Reachability {
    what: &'static str,
    lost: Mutex<Option<Lost>>,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    last: Instant,
    why: String,
}

impl Default for Reachability {
    fn default() -> Self {
        Self::new("the message broker")
    }
}

impl Reachability {
    /// Creates a reachable dependency. `what` is a noun for log lines.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        let lost = Mutex::default();
        Self { what, lost }
    }

    /// Notes the result of a call.
    pub fn note<T, E: Error>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.note_success(),
            Err(error) => self.note_failure(error),
        }
    }

    /// Notes a failed call.
    pub fn note_failure(&self, error: &dyn Error) {
        let (now, why) = (Instant::now(), describe(error));
        let mut lost = self.lost();
        match &mut *lost {
            Some(lost) => lost.last = now,
            None => {
                tracing::warn!(error = why, "{} is out of reach, rollouts wait", self.what);
                let (since, last) = (now, now);
                *lost = Some(Lost { since, last, why });
            }
        }
    }

    /// Notes a successful call.
    pub fn note_success(&self) {
        let mut lost = self.lost();
        if let Some(was) = lost.take_if(|lost| lost.last.elapsed() >= RECOVERY_TIME) {
            let after = was.since.elapsed();
            tracing::info!(?after, "{} is within reach again", self.what);
        }
    }

    /// Returns why the dependency is out of reach, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lost().as_ref().map(|lost| lost.why.clone())
    }

    fn lost(&self) -> MutexGuard<'_, Option<Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber, subscriber};

    use super::*;

    /// Counts lines at the level of info and above.
    struct Lines(Arc<AtomicU64>);

    impl Subscriber for Lines {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_logs_two_lines() {
        let lines = Arc::new(AtomicU64::new(0));
        let guard = subscriber::set_default(Lines(Arc::clone(&lines)));
        let reach = Reachability::new("the store");
        let away = std::io::Error::other("no route");
        for _ in 0..1_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            reach.note_failure(&away);
            // Another call in flight succeeds.
            reach.note_success();
        }
        assert_eq!(reach.trouble().as_deref(), Some("no route"));
        assert_eq!(lines.load(Ordering::Relaxed), 1);
        tokio::time::sleep(RECOVERY_TIME).await;
        for _ in 0..1_000 {
            reach.note(&Ok::<_, std::io::Error>(()));
        }
        assert_eq!((lines.load(Ordering::Relaxed), reach.trouble()), (2, None));
        drop(guard);
    }
}
