//! Whether there is a next connection, and how long to wait before it.

use std::mem;
use std::time::Duration;

use twincast_retry::{Delays, Policy};

use crate::c2d::ConnectionFailure;
use crate::credentials::Shown;

/// The waits between the connections of one link. They grow, also over connections that were not worth them.
///
/// A hub that takes connections and drops them at once must not be hammered with link opens. But one that serves us and
/// closes connections every few seconds is not to be left alone for longer than it is used: the waits would grow until a
/// rollout stands still.
pub(crate) struct Reconnects {
    delays: Delays,
    longest: Duration,
    /// The waits that have led to the connection that there is, or will be.
    waited: Duration,
    /// The hub has served us over the connection.
    served: bool,
    /// The hub has refused our token since it last took one for something.
    token_refused: bool,
}

impl Reconnects {
    pub(crate) fn new(policy: &Policy) -> Self {
        Self {
            delays: policy.delays(),
            longest: policy.max(),
            waited: Duration::ZERO,
            served: false,
            token_refused: false,
        }
    }

    /// Whether it is of no use to connect again after `failure`. A link that was refused for its token is tried once
    /// more, with a new one: the old one may have run out on the hub's clock. (A put-token that was refused has had its
    /// second try.)
    pub(crate) fn gives_up(&mut self, failure: &ConnectionFailure, credentials: &Shown) -> bool {
        if failure.is_transient() {
            return false;
        }
        if !failure.is_refused_link() || !self.forgives_token() {
            return true;
        }
        credentials.refused();
        false
    }

    /// Whether this refusal of our token is the first in a row.
    pub(crate) fn forgives_token(&mut self) -> bool {
        !mem::replace(&mut self.token_refused, true)
    }

    /// The hub has done something for our token.
    pub(crate) fn token_accepted(&mut self) {
        self.token_refused = false;
    }

    /// The wait before the next attempt. A policy that ends means the longest one from then on: giving up is the caller's
    /// decision.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let wait = self.delays.next_delay().unwrap_or(self.longest);
        self.waited += wait;
        wait
    }

    /// The hub has answered, or brought something.
    pub(crate) fn served(&mut self) {
        self.served = true;
    }

    /// A connection was lost that had lasted so long. If it makes up for the waits before it, they begin anew.
    pub(crate) fn lost(&mut self, lasted: Duration) {
        let worth = if self.served {
            self.waited
        } else {
            self.longest
        };
        if lasted >= worth {
            self.delays.reset();
            self.token_accepted();
        }
        (self.waited, self.served) = (Duration::ZERO, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(3600);
    const LOSSES: u32 = 12;

    /// The longest wait over a dozen losses.
    fn longest_wait(served: bool, lasted: Duration) -> Duration {
        let policy = Policy::new(FIRST, LONGEST).unwrap();
        let mut reconnects = Reconnects {
            delays: policy.delays_seeded(1),
            ..Reconnects::new(&policy)
        };
        let waits = (0..LOSSES).map(|_| {
            if served {
                reconnects.served();
            }
            reconnects.lost(lasted);
            reconnects.next_wait()
        });
        waits.max().unwrap()
    }

    #[test]
    fn waits_begin_anew_after_what_was_worth_them() {
        for (served, lasted, begins_anew) in [
            (true, FIRST, true),
            (true, Duration::ZERO, false),
            (false, FIRST, false),
            (false, LONGEST, true),
        ] {
            let longest = longest_wait(served, lasted);
            assert_eq!(
                longest <= FIRST,
                begins_anew,
                "{served} {lasted:?}: {longest:?}"
            );
        }
    }

    #[test]
    fn failed_attempts_are_waits_that_a_connection_makes_up_for() {
        let policy = Policy::new(FIRST, LONGEST).unwrap();
        let waits_after = |enough: bool| {
            let mut reconnects = Reconnects {
                delays: policy.delays_seeded(1),
                ..Reconnects::new(&policy)
            };
            let waited: Duration = (0..LOSSES).map(|_| reconnects.next_wait()).sum();
            reconnects.served();
            reconnects.lost(waited.saturating_sub(Duration::from_millis(u64::from(!enough))));
            reconnects.next_wait()
        };
        assert!(waits_after(true) <= FIRST);
        assert!(waits_after(false) > FIRST);
    }

    #[test]
    fn a_policy_that_ends_goes_on_with_its_longest_wait() {
        let policy = Policy::new(FIRST, LONGEST).unwrap();
        let mut reconnects = Reconnects::new(&policy.with_max_attempts(1).unwrap());
        assert!(reconnects.next_wait() <= FIRST);
        assert_eq!(reconnects.next_wait(), LONGEST);
    }
}
