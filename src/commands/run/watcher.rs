//! Shows how a rollout goes that is run from here, and says when waiting for a hub makes no sense any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use twincast_core::account::Activity;
use twincast_core::ids::{HubName, RolloutName};
use twincast_core::outcome::Ends;
use twincast_core::ports::{Batches as _, Hindrance, HubTrouble, Rollouts as _, Tally};
use twincast_core::rollout::Rollout;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::driver::Driver;
use twincast_orchestrator::planner;
use twincast_worker::{HubState, WorkerStatus};

use crate::engine;
use crate::exit::Failure;
use crate::progress::{Progress, Snapshot};
use crate::signal::asked_to_stop;
use crate::stages;

/// Why the watcher wants it to stop.
pub(super) enum Why {
    Signal,
    Hub(Failure),
    /// A hub does not let the devices be found.
    NotFound(Failure),
}

/// What is said of sends that a hub has refused for its quota of late.
fn throttled(rollout: &Rollout) -> Option<String> {
    let is_throttled = rollout.notes.account.doing() == Activity::Throttled;
    is_throttled.then(|| {
        "the hub refuses sends for its quota: they are slowed down until it takes them again"
            .to_owned()
    })
}

/// Shows progress, and decides when waiting for a hub makes no sense any more.
pub(super) struct Watcher<'a> {
    pub(super) store: &'a EmbeddedStore,
    pub(super) driver: &'a Driver,
    pub(super) status: &'a WorkerStatus,
    pub(super) name: &'a RolloutName,
    pub(super) give_up_after: Duration,
}

impl Watcher<'_> {
    /// Watches until something wants it to stop.
    pub(super) async fn watch(&self, progress: &mut Progress) -> Why {
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        let mut signal = std::pin::pin!(asked_to_stop());
        loop {
            tokio::select! {
                () = &mut signal => return Why::Signal,
                _ = ticks.tick() => {}
            }
            // Whatever is wrong with the store, worker and driver meet it too and say so.
            let Ok(Some(rollout)) = self.store.rollout(self.name).await else {
                continue;
            };
            let is_planned = rollout.plan.is_some();
            let tallies = self.store.tallies(self.name).await.unwrap_or_default();
            let (trouble, failure) = match is_planned {
                true => self.trouble(&tallies),
                false => self.search_trouble(&rollout),
            };
            if let Some(failure) = failure {
                return match is_planned {
                    true => Why::Hub(failure),
                    false => Why::NotFound(failure),
                };
            }
            if is_planned {
                let trouble = trouble.or_else(|| stages::standstill(&rollout, &tallies));
                let trouble = trouble.or_else(|| throttled(&rollout));
                let answers = rollout.spec.message.answers();
                progress.sending(&Snapshot {
                    ends: Ends::of(&Tally::sum(&tallies), answers),
                    pace: self.pace(&rollout, &tallies),
                    trouble,
                    answers: rollout.notes.answers.sum().in_words(),
                });
            } else {
                let found = self.driver.planning.devices.load(Ordering::Relaxed);
                progress.planning(found, trouble.as_deref());
            }
        }
    }

    /// The pace of all hubs together, a minute.
    fn pace(&self, rollout: &Rollout, tallies: &[Tally]) -> Option<f64> {
        let rate = rollout.rate_now(tallies);
        let hubs = self.driver.hubs.values();
        hubs.map(|hub| hub.limits.pace(rate)).sum()
    }

    /// What keeps devices from being found, and the failure when it has lasted for too long. A plan needs all of its hubs.
    fn search_trouble(&self, rollout: &Rollout) -> (Option<String>, Option<Failure>) {
        let Some((name, hindrance)) = planner::hindrance(&rollout.spec, &self.driver.hubs) else {
            return (None, None);
        };
        let Hindrance {
            trouble,
            lasting,
            reason,
        } = hindrance;
        let give_up = self.gives_up(trouble, lasting);
        let failure = give_up.then(|| {
            let (code, hint) = engine::hub_trouble(trouble);
            let message = format!("cannot find the devices of hub {name}: {reason}");
            engine::with_hint(Failure::message(code, message), hint)
        });
        (Some(format!("hub {name}: {reason}")), failure)
    }

    /// Whether waiting makes no sense any more for a hub with this trouble.
    fn gives_up(&self, trouble: HubTrouble, lasting: Duration) -> bool {
        match trouble {
            HubTrouble::Unauthorized | HubTrouble::Certificate | HubTrouble::CertificateName => {
                true
            }
            // It opens again by itself.
            HubTrouble::QuotaUsedUp => false,
            _ => lasting >= self.give_up_after,
        }
    }

    /// What stands in the way of the hubs that something is left to do on, and the failure when
    /// none of them will be back by waiting.
    fn trouble(&self, tallies: &[Tally]) -> (Option<String>, Option<Failure>) {
        let mut words = Vec::new();
        let mut given_up = None;
        let mut worth_waiting = false;
        let at_work = |name: &HubName| {
            tallies
                .iter()
                .any(|tally| tally.hub == *name && tally.counts.unsettled() > 0)
        };
        for (name, status) in self.status.hubs().filter(|(name, _)| at_work(name)) {
            let hindrance = match status.state() {
                HubState::Shut {
                    since,
                    trouble,
                    reason,
                    ..
                } => Some(Hindrance {
                    trouble,
                    lasting: since.elapsed(),
                    reason,
                }),
                HubState::Serving => self
                    .driver
                    .hubs
                    .get(name)
                    .and_then(|hub| hub.hub.hindrance()),
            };
            let Some(Hindrance {
                trouble,
                lasting,
                reason,
            }) = hindrance
            else {
                worth_waiting = true;
                continue;
            };
            words.push(format!("hub {name}: {reason}"));
            if self.gives_up(trouble, lasting) {
                let (code, hint) = engine::hub_trouble(trouble);
                let failure =
                    Failure::message(code, format!("cannot send through hub {name}: {reason}"));
                given_up = Some(engine::with_hint(failure, hint));
            } else {
                worth_waiting = true;
            }
        }
        let failure = given_up.filter(|_| !worth_waiting);
        ((!words.is_empty()).then(|| words.join("; ")), failure)
    }
}
