//! Whether something that all drivers of a process need is within reach.
//!
//! The log has a line when it is lost and one when it is back, however many need it and however often they try.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::error::in_words;

/// It counts as back when nobody was refused for so long: calls that were under way when it was lost end later.
const SETTLED: Duration = Duration::from_secs(1);

/// Whether something is within reach.
#[derive(Debug)]
pub struct Reach {
    what: &'static str,
    lost: Mutex<Option<Lost>>,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    last: Instant,
    why: String,
}

impl Default for Reach {
    fn default() -> Self {
        Self::new("the message broker")
    }
}

impl Reach {
    /// `what` is a noun for people.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        let lost = Mutex::default();
        Self { what, lost }
    }

    /// Notes the result of a call.
    pub fn note<T, E: Error>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.is_back(),
            Err(error) => self.is_lost(error),
        }
    }

    /// Notes that a call has failed.
    pub fn is_lost(&self, error: &dyn Error) {
        let (now, why) = (Instant::now(), in_words(error));
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

    /// Notes that a call has succeeded.
    pub fn is_back(&self) {
        let mut lost = self.lost();
        if let Some(was) = lost.take_if(|lost| lost.last.elapsed() >= SETTLED) {
            let after = was.since.elapsed();
            tracing::info!(?after, "{} is within reach again", self.what);
        }
    }

    /// Why it is out of reach, if it is.
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
    async fn an_outage_is_two_lines() {
        let lines = Arc::new(AtomicU64::new(0));
        let guard = subscriber::set_default(Lines(Arc::clone(&lines)));
        let reach = Reach::new("the store");
        let away = std::io::Error::other("no route");
        for _ in 0..1_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            reach.is_lost(&away);
            // Another call that was under way.
            reach.is_back();
        }
        assert_eq!(reach.trouble().as_deref(), Some("no route"));
        assert_eq!(lines.load(Ordering::Relaxed), 1);
        tokio::time::sleep(SETTLED).await;
        for _ in 0..1_000 {
            reach.note(&Ok::<_, std::io::Error>(()));
        }
        assert_eq!((lines.load(Ordering::Relaxed), reach.trouble()), (2, None));
        drop(guard);
    }
}
