//! Shows the progress of a rollout run from here, and decides when to stop waiting for a hub.

use std::sync::atomic::Ordering;
use std::time::Duration;

use twincast_core::account::Activity;
use twincast_core::ids::{HubName, RolloutName};
use twincast_core::outcome::ClassCounts;
use twincast_core::ports::{Batches as _, HubObstacle, HubTrouble, Rollouts as _, Tally};
use twincast_core::rollout::Rollout;
use twincast_embedded::EmbeddedStore;
use twincast_orchestrator::driver::Driver;
use twincast_orchestrator::planner;
use twincast_worker::{HubState, WorkerStatus};

use crate::engine;
use crate::failure::Failure;
use crate::progress::{Progress, Snapshot};
use crate::signal::StopSignals;
use crate::stages;

/// The watcher's reason to stop the run.
pub(super) enum StopReason {
    Signal,
    HubUnavailable(Failure),
    /// A hub prevents the search for devices.
    DevicesUnavailable(Failure),
}

/// Returns a notice if a hub has recently refused sends for the quota.
fn throttle_note(rollout: &Rollout) -> Option<String> {
    let is_throttled = rollout.notes.account.doing() == Activity::Throttled;
    is_throttled.then(|| {
        "the hub refuses sends because of its quota: sends are slower until the hub accepts them \
         again"
            .to_owned()
    })
}

/// Shows progress, and decides when to stop waiting for a hub.
pub(super) struct Watcher<'a> {
    pub(super) store: &'a EmbeddedStore,
    pub(super) driver: &'a Driver,
    pub(super) status: &'a WorkerStatus,
    pub(super) name: &'a RolloutName,
    pub(super) give_up_after: Duration,
}

impl Watcher<'_> {
    /// Watches until there is a reason to stop.
    pub(super) async fn watch(
        &self,
        progress: &mut Progress,
        signals: &mut StopSignals,
    ) -> StopReason {
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                () = signals.next() => return StopReason::Signal,
                _ = ticks.tick() => {}
            }
            // The worker and the driver meet the same errors of the store, and report them.
            let Ok(Some(rollout)) = self.store.rollout(self.name).await else {
                continue;
            };
            let is_planned = rollout.plan.is_some();
            let tallies = self.store.tallies(self.name).await.unwrap_or_default();
            let (obstacle, failure) = match is_planned {
                true => self.sending_obstacle(&tallies),
                false => self.search_obstacle(&rollout),
            };
            if let Some(failure) = failure {
                return match is_planned {
                    true => StopReason::HubUnavailable(failure),
                    false => StopReason::DevicesUnavailable(failure),
                };
            }
            if is_planned {
                let obstacle = obstacle.or_else(|| stages::waiting_reason(&rollout, &tallies));
                let obstacle = obstacle.or_else(|| throttle_note(&rollout));
                let answers = rollout.spec.message.wants_feedback();
                progress.sending(&Snapshot {
                    by_class: ClassCounts::of(&Tally::sum(&tallies), answers),
                    pace: self.pace(&rollout, &tallies),
                    obstacle,
                    answers: rollout.notes.answers.sum().describe(),
                });
            } else {
                let found = self.driver.planning.devices.load(Ordering::Relaxed);
                progress.planning(found, obstacle.as_deref());
            }
        }
    }

    /// Returns the rate of all hubs together, per minute.
    fn pace(&self, rollout: &Rollout, tallies: &[Tally]) -> Option<f64> {
        let rate = rollout.rate_now(tallies);
        let hubs = self.driver.hubs.values();
        hubs.map(|hub| hub.limits.pace(rate)).sum()
    }

    /// Returns the obstacle to the search for devices, and a failure if the obstacle has lasted too
    /// long. A plan needs all of its hubs.
    fn search_obstacle(&self, rollout: &Rollout) -> (Option<String>, Option<Failure>) {
        let Some((name, obstacle)) = planner::query_obstacle(&rollout.spec, &self.driver.hubs)
        else {
            return (None, None);
        };
        let HubObstacle {
            trouble,
            lasting,
            reason,
        } = obstacle;
        let give_up = self.gives_up(trouble, lasting);
        let failure = give_up.then(|| {
            let (code, hint) = engine::hub_trouble(trouble);
            let message = format!("cannot find the devices of hub {name}: {reason}");
            engine::with_hint(Failure::message(code, message), hint)
        });
        (Some(format!("hub {name}: {reason}")), failure)
    }

    /// Returns true if waiting for a hub with this trouble is pointless.
    fn gives_up(&self, trouble: HubTrouble, lasting: Duration) -> bool {
        match trouble {
            HubTrouble::Unauthorized | HubTrouble::Certificate | HubTrouble::CertificateName => {
                true
            }
            // The quota becomes available again without intervention.
            HubTrouble::QuotaUsedUp => false,
            _ => lasting >= self.give_up_after,
        }
    }

    /// Returns the obstacles at hubs with work left, and a failure if waiting helps at none of
    /// these hubs.
    fn sending_obstacle(&self, tallies: &[Tally]) -> (Option<String>, Option<Failure>) {
        let mut obstacles = Vec::new();
        let mut given_up = None;
        let mut worth_waiting = false;
        let has_work = |name: &HubName| {
            tallies
                .iter()
                .any(|tally| tally.hub == *name && tally.counts.unsettled() > 0)
        };
        for (name, status) in self.status.hubs().filter(|(name, _)| has_work(name)) {
            let obstacle = match status.state() {
                HubState::Unavailable {
                    since,
                    trouble,
                    reason,
                    ..
                } => Some(HubObstacle {
                    trouble,
                    lasting: since.elapsed(),
                    reason,
                }),
                HubState::Serving => self
                    .driver
                    .hubs
                    .get(name)
                    .and_then(|hub| hub.hub.obstacle()),
            };
            let Some(HubObstacle {
                trouble,
                lasting,
                reason,
            }) = obstacle
            else {
                worth_waiting = true;
                continue;
            };
            obstacles.push(format!("hub {name}: {reason}"));
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
        (
            (!obstacles.is_empty()).then(|| obstacles.join("; ")),
            failure,
        )
    }
}
