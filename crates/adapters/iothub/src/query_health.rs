//! Tracks whether a hub answers queries. Failures during the client's own retries become visible to
//! the engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::error::describe;
use twincast_core::ports::{HubObstacle, HubTrouble};
use twincast_core::time::friendly;
use twincast_iothub::{RestError, RetryHook, RetryReason};

use crate::queries::classify_request_error;

/// An unanswered query counts as an obstacle after this time.
const SLOW: Duration = Duration::from_secs(5);

/// The state of a hub's answers. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueryHealth(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The latest failure, with the start of the failures since the last answer.
    failing: Option<(Instant, HubTrouble, String)>,
    /// The start times of unanswered queries, by number.
    pending: BTreeMap<u64, Instant>,
    last: u64,
}

/// A query, until answered or dropped.
#[derive(Debug)]
pub(crate) struct PendingQuery<'a> {
    health: &'a QueryHealth,
    number: u64,
}

impl QueryHealth {
    /// Returns a hook that records the failures behind the client's retries.
    pub(crate) fn hook(&self) -> RetryHook {
        let health = self.clone();
        RetryHook::new(move |notice| {
            // One expired token is normal and retried without a delay.
            if notice.reason != RetryReason::TokenRefused {
                health.failed(notice.error);
            }
        })
    }

    /// Records the start of a query.
    pub(crate) fn begin(&self) -> PendingQuery<'_> {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.pending.insert(number, Instant::now());
        PendingQuery {
            health: self,
            number,
        }
    }

    pub(crate) fn obstacle(&self) -> Option<HubObstacle> {
        let state = self.state();
        if let Some((since, trouble, reason)) = &state.failing {
            return Some(HubObstacle {
                trouble: *trouble,
                lasting: since.elapsed(),
                reason: reason.clone(),
            });
        }
        let lasting = state.pending.values().min()?.elapsed();
        (lasting >= SLOW).then(|| HubObstacle {
            trouble: HubTrouble::Unreachable,
            lasting,
            reason: format!("no answer to a query for {}", friendly(lasting)),
        })
    }

    fn failed(&self, error: &RestError) {
        let mut state = self.state();
        let since = state.failing.as_ref().map(|(since, ..)| *since);
        let pending = state.pending.values().min().copied();
        let since = since.or(pending).unwrap_or_else(Instant::now);
        state.failing = Some((since, classify_request_error(error), describe(error)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingQuery<'_> {
    /// Records the answer or failure of the query.
    pub(crate) fn ended<T>(self, answer: &Result<T, RestError>) {
        match answer {
            Ok(_) => self.health.state().failing = None,
            Err(error) => self.health.failed(error),
        }
    }
}

impl Drop for PendingQuery<'_> {
    fn drop(&mut self) {
        self.health.state().pending.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn query_obstacle_is_reported_until_an_answer() {
        let health = QueryHealth::default();
        let failure = || RestError::EndlessPaging(3);
        let first = health.begin();
        tokio::time::advance(SLOW - Duration::from_millis(1)).await;
        assert_eq!(health.obstacle(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        let slow = health.obstacle().unwrap();
        assert_eq!(
            (slow.trouble, slow.lasting),
            (HubTrouble::Unreachable, SLOW)
        );
        assert!(
            slow.reason.starts_with("no answer to a query for 5"),
            "{slow:?}"
        );
        first.ended::<()>(&Err(failure()));
        tokio::time::advance(SLOW).await;
        // The failure lasts since the start of the query, over all retries.
        health.begin().ended::<()>(&Err(failure()));
        let failing = health.obstacle().unwrap();
        assert_eq!(
            (failing.trouble, failing.lasting),
            (HubTrouble::Other, SLOW * 2)
        );
        drop(health.begin());
        assert!(
            health.obstacle().is_some(),
            "a dropped query keeps the obstacle"
        );
        health.begin().ended(&Ok(()));
        assert_eq!(health.obstacle(), None);
    }
}
