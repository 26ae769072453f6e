//! When to retry a REST request, and after which delay. The decision is pure; the loop is in
//! `transport`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use twincast_retry::Delays;

use crate::clock::http_date;
use crate::options::ClientOptions;

use super::error::RestError;

/// Why a request is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryReason {
    /// The hub throttled the request.
    Throttled,
    /// The hub answered with a transient error.
    ServerError,
    /// The request failed in transit.
    Transit,
    /// The hub refused the token; a new token is signed. At most once per request.
    TokenRefused,
}

/// A retry, reported before its delay.
#[derive(Debug)]
#[non_exhaustive]
pub struct RetryNotice<'a> {
    /// The reason.
    pub reason: RetryReason,
    /// The delay.
    pub wait: Duration,
    /// The number of earlier retries of this request.
    pub attempt: u32,
    /// The error of the last try.
    pub error: &'a RestError,
}

/// Called before the delay of every retry of a REST request, e.g. to count retries or to slow other
/// requests down. Must not block.
#[derive(Clone)]
pub struct RetryHook(Arc<dyn Fn(&RetryNotice<'_>) + Send + Sync>);

impl RetryHook {
    /// Wraps a function.
    pub fn new(hook: impl Fn(&RetryNotice<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(crate) fn call(&self, notice: &RetryNotice<'_>) {
        (self.0)(notice);
    }
}

impl fmt::Debug for RetryHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RetryHook")
    }
}

/// The retries of one request. Bounded by the limits of both policies; one refused token is
/// retried.
pub(crate) struct Retries {
    transient: Delays,
    throttled: Delays,
    max_retry_after: Duration,
    token_refused: bool,
    attempts: u32,
}

impl Retries {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self {
            transient: options.http_transient.delays(),
            throttled: options.throttled.delays(),
            max_retry_after: options.max_retry_after,
            token_refused: false,
            attempts: 0,
        }
    }

    /// The number of retries so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the reason and delay of the next try after `error`; `None` to give up.
    pub(crate) fn decide(&mut self, error: &RestError) -> Option<(RetryReason, Duration)> {
        if error.is_unauthorised() && !self.token_refused {
            self.token_refused = true;
            self.attempts += 1;
            return Some((RetryReason::TokenRefused, Duration::ZERO));
        }
        if !error.is_transient() {
            return None;
        }
        let (reason, requested) = match error.api() {
            Some(api) if api.is_throttled() => (RetryReason::Throttled, api.retry_after),
            Some(api) => (RetryReason::ServerError, api.retry_after),
            None => (RetryReason::Transit, None),
        };
        // The policy's delay is drawn even when the hub names a time, so that the policy's limit on
        // attempts always applies.
        let own = match reason {
            RetryReason::Throttled => self.throttled.next_delay()?,
            _ => self.transient.next_delay()?,
        };
        let wait = requested.unwrap_or(own);
        if wait > self.max_retry_after {
            return None;
        }
        self.attempts += 1;
        Some((reason, wait))
    }
}

/// Parses a `Retry-After` header: seconds, or an HTTP date relative to `now` on the hub's clock (a
/// past date means at once).
pub(crate) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = http_date(header)?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::rest::error::ApiError;

    fn api(status: u16, after: Option<u64>) -> RestError {
        RestError::Api(ApiError::read(
            status,
            None,
            "",
            after.map(Duration::from_secs),
        ))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(30)));
        assert_eq!(
            retry_after(date, now + Duration::from_secs(99)),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }

    #[test]
    fn retry_after_wins_over_the_minimum_throttled_wait() {
        let mut retries = Retries::new(&ClientOptions::default());
        let decision = retries.decide(&api(429, Some(3)));
        assert_eq!(
            decision,
            Some((RetryReason::Throttled, Duration::from_secs(3)))
        );
        let (reason, wait) = retries.decide(&api(429, None)).unwrap();
        assert_eq!(reason, RetryReason::Throttled);
        assert!(wait >= Duration::from_secs(10), "{wait:?}");
        assert_eq!(
            retries.decide(&api(503, Some(2))).unwrap().1,
            Duration::from_secs(2)
        );
    }

    #[test]
    fn a_refused_token_is_retried_once_and_retries_end() {
        let mut retries = Retries::new(&ClientOptions::default());
        assert_eq!(
            retries.decide(&api(401, None)).unwrap().0,
            RetryReason::TokenRefused
        );
        assert_eq!(retries.decide(&api(401, None)), None);
        let count = (0..100)
            .take_while(|_| retries.decide(&api(500, None)).is_some())
            .count();
        assert_eq!(count, 5);
        for status in [400, 403, 404, 409, 412, 413] {
            assert_eq!(retries.decide(&api(status, Some(1))), None, "{status}");
        }
        let mut retries = Retries::new(&ClientOptions::default());
        assert_eq!(
            retries.decide(&api(429, Some(100_000))),
            None,
            "the delay exceeds the maximum"
        );
    }
}
