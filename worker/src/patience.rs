//! How long a worker waits for its store: the one rule for all of its calls.

use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ports::{Disposition, StoreError};
use twincast_retry::{Delays, Policy};

/// How long the store may keep failing; `None` is for ever.
///
/// With a limit the store is one of this machine, which nobody else makes room on: one that cannot be written is not waited
/// for at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience(pub(crate) Option<Duration>);

impl Patience {
    /// What to do about an error, after so much time of failing.
    pub(crate) fn disposition(self, error: &StoreError, lasting: Duration) -> Disposition {
        match (error.disposition(), self.0) {
            (Disposition::Retry, Some(limit))
                if lasting >= limit || matches!(error, StoreError::NotWritable { .. }) =>
            {
                Disposition::Fatal
            }
            (disposition, _) => disposition,
        }
    }
}

/// The tries at one call.
pub(crate) struct Tries {
    patience: Patience,
    delays: Delays,
    longest: Duration,
    failing_since: Option<Instant>,
}

impl Tries {
    /// Nothing has failed yet.
    pub(crate) fn new(patience: Patience, policy: &Policy) -> Self {
        Self {
            patience,
            delays: policy.delays(),
            longest: policy.max(),
            failing_since: None,
        }
    }

    /// The call has failed: how long to wait before it is made again, unless that makes no sense.
    pub(crate) fn failed(
        &mut self,
        error: StoreError,
        now: Instant,
    ) -> Result<Duration, StoreError> {
        let since = *self.failing_since.get_or_insert(now);
        match self.patience.disposition(&error, now - since) {
            Disposition::Retry => Ok(next_delay(&mut self.delays, self.longest)),
            Disposition::Superseded | Disposition::Fatal => Err(error),
        }
    }

    /// The call has succeeded.
    pub(crate) fn succeeded(&mut self) {
        if self.failing_since.take().is_some() {
            self.delays.reset();
        }
    }

    /// Whether the last try has failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }
}

/// The next delay of a policy that never gives up.
pub(crate) fn next_delay(delays: &mut Delays, longest: Duration) -> Duration {
    delays.next_delay().unwrap_or_else(|| {
        delays.reset();
        longest
    })
}

#[cfg(test)]
mod tests {
    use super::Disposition::{Fatal, Retry, Superseded};
    use super::*;

    #[test]
    fn a_full_disk_of_this_machine_is_not_waited_for() {
        let full = || StoreError::NotWritable {
            doing: "record".into(),
            source: "full".into(),
        };
        let away = || StoreError::Unavailable {
            doing: "record".into(),
            source: "away".into(),
        };
        let gone = || StoreError::NotFound { what: "it".into() };
        let limit = Some(Duration::from_secs(30));
        for (limit, error, lasting, expected) in [
            (None, full(), 1_000_000, Retry),
            (limit, full(), 0, Fatal),
            (None, away(), 1_000_000, Retry),
            (limit, away(), 29, Retry),
            (limit, away(), 30, Fatal),
            (None, gone(), 0, Superseded),
            (limit, gone(), 30, Superseded),
        ] {
            let lasting = Duration::from_secs(lasting);
            let found = Patience(limit).disposition(&error, lasting);
            assert_eq!(found, expected, "{error:?} after {lasting:?} of {limit:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_begins_the_time_anew() {
        let policy = Policy::store_retry();
        let mut tries = Tries::new(Patience(Some(Duration::from_secs(30))), &policy);
        let away = || StoreError::Unavailable {
            doing: "record".into(),
            source: "away".into(),
        };
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(tries.failed(away(), at(0)).unwrap() <= policy.max());
        assert!(tries.is_failing());
        tries.succeeded();
        assert!(!tries.is_failing());
        assert!(tries.failed(away(), at(100)).is_ok());
        assert!(tries.failed(away(), at(129)).is_ok());
        assert!(tries.failed(away(), at(130)).is_err());
    }
}
