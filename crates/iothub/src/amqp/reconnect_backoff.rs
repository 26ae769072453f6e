//! Whether to reconnect, and the delay before the next connection.

use std::mem;
use std::time::Duration;

use twincast_retry::{Delays, Policy};

use crate::c2d::ConnectionFailure;
use crate::credentials::HubCredentials;

/// The delays between the connections of one link. The delays grow with every loss, until a
/// connection lasts long enough.
///
/// A hub that accepts connections and drops them at once must not be hammered with link opens. On
/// the other hand, a working hub that closes connections every few seconds must not be left alone
/// for longer than connections last: the delays would grow until a rollout stands still.
pub(crate) struct ReconnectBackoff {
    delays: Delays,
    longest: Duration,
    /// The sum of the delays before the current or next connection.
    preceding_delay: Duration,
    /// The hub has served the client over the connection.
    served: bool,
    /// The hub has refused the client's token since last accepting one.
    token_refused: bool,
}

impl ReconnectBackoff {
    pub(crate) fn new(policy: &Policy) -> Self {
        Self {
            delays: policy.delays(),
            longest: policy.max(),
            preceding_delay: Duration::ZERO,
            served: false,
            token_refused: false,
        }
    }

    /// Whether a new connection after `failure` is useless. A link refused because of the token is
    /// tried once more with a new token: the old token may have expired on the hub's clock. (After
    /// a refused put-token, the second try has already happened.)
    pub(crate) fn should_give_up(
        &mut self,
        failure: &ConnectionFailure,
        credentials: &HubCredentials,
    ) -> bool {
        if failure.is_transient() {
            return false;
        }
        if !failure.is_refused_link() || !self.take_token_retry() {
            return true;
        }
        credentials.refused();
        false
    }

    /// Whether this refusal of the token is the first in a row.
    pub(crate) fn take_token_retry(&mut self) -> bool {
        !mem::replace(&mut self.token_refused, true)
    }

    /// Records an operation accepted by the hub under the current token.
    pub(crate) fn token_accepted(&mut self) {
        self.token_refused = false;
    }

    /// Returns the delay before the next attempt. After the end of a finite policy, every delay is
    /// the policy's maximum: the caller decides when to give up.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let wait = self.delays.next_delay().unwrap_or(self.longest);
        self.preceding_delay += wait;
        wait
    }

    /// Records an answer or a delivery from the hub.
    pub(crate) fn record_service(&mut self) {
        self.served = true;
    }

    /// Records a lost connection and its lifetime. The delays start over after a sufficient
    /// lifetime: the sum of the preceding delays if the hub has served the client, else the longest
    /// delay.
    pub(crate) fn record_loss(&mut self, lifetime: Duration) {
        let required = if self.served {
            self.preceding_delay
        } else {
            self.longest
        };
        if lifetime >= required {
            self.delays.reset();
            self.token_accepted();
        }
        (self.preceding_delay, self.served) = (Duration::ZERO, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX_DELAY: Duration = Duration::from_secs(3600);
    const LOSSES: u32 = 12;

    /// The longest delay over a dozen losses.
    fn longest_wait(served: bool, lifetime: Duration) -> Duration {
        let policy = Policy::new(FIRST, MAX_DELAY).unwrap();
        let mut backoff = ReconnectBackoff {
            delays: policy.delays_seeded(1),
            ..ReconnectBackoff::new(&policy)
        };
        let waits = (0..LOSSES).map(|_| {
            if served {
                backoff.record_service();
            }
            backoff.record_loss(lifetime);
            backoff.next_delay()
        });
        waits.max().unwrap()
    }

    #[test]
    fn delays_start_over_after_a_sufficient_lifetime() {
        for (served, lifetime, begins_anew) in [
            (true, FIRST, true),
            (true, Duration::ZERO, false),
            (false, FIRST, false),
            (false, MAX_DELAY, true),
        ] {
            let longest = longest_wait(served, lifetime);
            assert_eq!(
                longest <= FIRST,
                begins_anew,
                "{served} {lifetime:?}: {longest:?}"
            );
        }
    }

    #[test]
    fn required_lifetime_includes_delays_of_failed_attempts() {
        let policy = Policy::new(FIRST, MAX_DELAY).unwrap();
        let waits_after = |enough: bool| {
            let mut backoff = ReconnectBackoff {
                delays: policy.delays_seeded(1),
                ..ReconnectBackoff::new(&policy)
            };
            let preceding_delay: Duration = (0..LOSSES).map(|_| backoff.next_delay()).sum();
            backoff.record_service();
            backoff.record_loss(
                preceding_delay.saturating_sub(Duration::from_millis(u64::from(!enough))),
            );
            backoff.next_delay()
        };
        assert!(waits_after(true) <= FIRST);
        assert!(waits_after(false) > FIRST);
    }

    #[test]
    fn a_finite_policy_continues_with_the_longest_delay() {
        let policy = Policy::new(FIRST, MAX_DELAY).unwrap();
        let mut backoff = ReconnectBackoff::new(&policy.with_max_attempts(1).unwrap());
        assert!(backoff.next_delay() <= FIRST);
        assert_eq!(backoff.next_delay(), MAX_DELAY);
    }
}
