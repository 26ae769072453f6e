//! Whether a hub answers questions: what its client meets while it asks again by itself is seen from outside.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::error::in_words;
use twincast_core::ports::{Hindrance, HubTrouble};
use twincast_core::time::friendly;
use twincast_iothub::{RestError, RetryHook, RetryReason};

use crate::queries::trouble_of;

/// How long an answer may take before that is a hindrance.
const SLOW: Duration = Duration::from_secs(5);

/// What is known of a hub's answers. Clones know the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asking(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The last failure, and when the first one was since the last answer.
    failing: Option<(Instant, HubTrouble, String)>,
    /// When each question was asked that has no answer yet.
    asked: BTreeMap<u64, Instant>,
    last: u64,
}

/// A question, until it is answered or dropped.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    asking: &'a Asking,
    number: u64,
}

impl Asking {
    /// Tells of requests that the client makes again.
    pub(crate) fn hook(&self) -> RetryHook {
        let asking = self.clone();
        RetryHook::new(move |notice| {
            // One token that has become old is forgiven, and nothing is waited for.
            if notice.reason != RetryReason::TokenRefused {
                asking.failed(notice.error);
            }
        })
    }

    /// A question is asked.
    pub(crate) fn begin(&self) -> Asked<'_> {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.asked.insert(number, Instant::now());
        Asked {
            asking: self,
            number,
        }
    }

    pub(crate) fn hindrance(&self) -> Option<Hindrance> {
        let state = self.state();
        if let Some((since, trouble, reason)) = &state.failing {
            return Some(Hindrance {
                trouble: *trouble,
                lasting: since.elapsed(),
                reason: reason.clone(),
            });
        }
        let lasting = state.asked.values().min()?.elapsed();
        (lasting >= SLOW).then(|| Hindrance {
            trouble: HubTrouble::Unreachable,
            lasting,
            reason: format!("no answer to a query for {}", friendly(lasting)),
        })
    }

    fn failed(&self, error: &RestError) {
        let mut state = self.state();
        let since = state.failing.as_ref().map(|(since, ..)| *since);
        let asked = state.asked.values().min().copied();
        let since = since.or(asked).unwrap_or_else(Instant::now);
        state.failing = Some((since, trouble_of(error), in_words(error)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked<'_> {
    /// It has an answer, or has failed for now.
    pub(crate) fn ended<T>(self, answer: &Result<T, RestError>) {
        match answer {
            Ok(_) => self.asking.state().failing = None,
            Err(error) => self.asking.failed(error),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.asking.state().asked.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_keeps_answers_is_known_until_there_is_one() {
        let asking = Asking::default();
        let failure = || RestError::EndlessPaging(3);
        let first = asking.begin();
        tokio::time::advance(SLOW - Duration::from_millis(1)).await;
        assert_eq!(asking.hindrance(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        let slow = asking.hindrance().unwrap();
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
        // It lasts since the question was asked, however often it is asked again.
        asking.begin().ended::<()>(&Err(failure()));
        let failing = asking.hindrance().unwrap();
        assert_eq!(
            (failing.trouble, failing.lasting),
            (HubTrouble::Other, SLOW * 2)
        );
        drop(asking.begin());
        assert!(asking.hindrance().is_some(), "what is dropped says nothing");
        asking.begin().ended(&Ok(()));
        assert_eq!(asking.hindrance(), None);
    }
}
