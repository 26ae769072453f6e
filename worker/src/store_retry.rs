//! How long a worker waits for the store: a single rule for all store calls.

use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ports::{Disposition, StoreError};
use twincast_retry::{Delays, Policy};

/// For how long the store may keep failing; `None` means for ever.
///
/// A limit implies a store on this machine. A local store that is not writable (for example, on a
/// full disk) is not waited for at all, because no other machine frees space on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreRetryLimit(pub(crate) Option<Duration>);

impl StoreRetryLimit {
    /// Returns the disposition of `error` after `lasting` of continuous failure.
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

/// The tries of a single call.
pub(crate) struct Tries {
    limit: StoreRetryLimit,
    delays: Delays,
    max_delay: Duration,
    failing_since: Option<Instant>,
}

impl Tries {
    /// Creates the state before the first try.
    pub(crate) fn new(limit: StoreRetryLimit, policy: &Policy) -> Self {
        Self {
            limit,
            delays: policy.delays(),
            max_delay: policy.max(),
            failing_since: None,
        }
    }

    /// Notes a failed try. Returns the delay before the next try, or the error if another try
    /// cannot help.
    pub(crate) fn failed(
        &mut self,
        error: StoreError,
        now: Instant,
    ) -> Result<Duration, StoreError> {
        let since = *self.failing_since.get_or_insert(now);
        match self.limit.disposition(&error, now - since) {
            Disposition::Retry => Ok(next_delay(&mut self.delays, self.max_delay)),
            Disposition::Superseded | Disposition::Fatal => Err(error),
        }
    }

    /// Notes a successful try, which restarts the failure time.
    pub(crate) fn succeeded(&mut self) {
        if self.failing_since.take().is_some() {
            self.delays.reset();
        }
    }

    /// Returns whether the last try failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }
}

/// Returns the next delay of a policy that never gives up: after the policy's last delay, returns
/// `max_delay` and starts over.
pub(crate) fn next_delay(delays: &mut Delays, max_delay: Duration) -> Duration {
    delays.next_delay().unwrap_or_else(|| {
        delays.reset();
        max_delay
    })
}

#[cfg(test)]
mod tests {
    use super::Disposition::{Fatal, Retry, Superseded};
    use super::*;

    #[test]
    fn disposition_depends_on_error_duration_and_limit() {
        let full = || StoreError::NotWritable {
            doing: "record".into(),
            source: "full".into(),
        };
        let away = || StoreError::Unavailable {
            doing: "record".into(),
            source: "away".into(),
        };
        let not_found = || StoreError::NotFound { what: "it".into() };
        let limit = Some(Duration::from_secs(30));
        for (limit, error, lasting, expected) in [
            (None, full(), 1_000_000, Retry),
            (limit, full(), 0, Fatal),
            (None, away(), 1_000_000, Retry),
            (limit, away(), 29, Retry),
            (limit, away(), 30, Fatal),
            (None, not_found(), 0, Superseded),
            (limit, not_found(), 30, Superseded),
        ] {
            let lasting = Duration::from_secs(lasting);
            let found = StoreRetryLimit(limit).disposition(&error, lasting);
            assert_eq!(found, expected, "{error:?} after {lasting:?} of {limit:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_restarts_the_retry_time() {
        let policy = Policy::store_retry();
        let mut tries = Tries::new(StoreRetryLimit(Some(Duration::from_secs(30))), &policy);
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
