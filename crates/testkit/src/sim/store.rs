//! A process' way to the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{Batch, BatchStatus, Held, Lease};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::evidence::{ListenerReport, ListenerStatus};
use twincast_core::group::Line;
use twincast_core::ids::{
    BatchId, GroupName, Holder, HubHost, HubName, Revision, RolloutId, RolloutName, StageIndex,
    Version,
};
use twincast_core::link::{LinkReport, LinkStatus};
use twincast_core::outcome::Outcome;
use twincast_core::permits::{Grant, LimiterState, PermitRequest};
use twincast_core::plan::{self, Checksum};
use twincast_core::ports::{
    Batches, Change, Committed, Created, Halt, Limiter, Lines, Loaded, Operation, Part, Presence,
    Rollouts, Roster, RosterLook, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Rollout, Wanted};

use super::process::Odds;
use super::{Bug, Process, Sim, Witnessed};
use crate::MemoryStore;

/// A [`Store`](twincast_core::ports::Store) and [`Roster`] that one process calls and all processes share.
#[derive(Clone)]
pub struct SimStore {
    process: Process,
    truth: MemoryStore,
    claims: Arc<Mutex<BTreeMap<(RolloutName, String), Checksum>>>,
}

impl SimStore {
    /// The way of `process` to the `truth`.
    #[must_use]
    pub fn of(process: &Process, truth: &MemoryStore) -> Self {
        Self {
            process: process.clone(),
            truth: truth.clone(),
            claims: Arc::default(),
        }
    }

    /// The checksum of all batches that the process has added by then.
    fn claim(&self, name: &RolloutName, adding: Adding, batches: &[plan::Batch]) -> Checksum {
        let mut claims = self.claims.lock().expect("no panic");
        let claim = claims.entry((name.clone(), adding.to_string()));
        let claim = claim.or_default();
        claim.join(&batches.iter().collect());
        *claim
    }

    /// Makes one call.
    async fn call<T: Send + 'static, F>(
        &self,
        op: &'static str,
        about: impl ToString,
        effect: impl FnOnce(MemoryStore, Process) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let sim = self.process.sim();
        let (faults, age) = (sim.faults(), sim.age());
        let away = |(from, to): &(Duration, Duration)| (*from..*to).contains(&age);
        let odds = Odds {
            fails: faults.store_fails,
            slow: faults.store_slow,
            away: faults.store_away.iter().any(away),
        };
        let effect = effect(self.truth.clone(), self.process.clone());
        let answered = self.process.call(odds, op, about.to_string(), effect).await;
        answered.unwrap_or_else(|lost| {
            Err(StoreError::Unavailable {
                doing: op.to_owned(),
                source: Box::new(lost),
            })
        })
    }
}

/// What a call about a batch is about.
fn of_batch(rollout: &RolloutName, batch: BatchId) -> String {
    format!("{rollout}/{batch}")
}

/// Forgets one of the reports of a change, as some planted bugs do.
fn forget_some(sim: &Sim, from: &Loaded, change: &mut Change) {
    let mut next = from.batch.clone();
    match &mut change.operation {
        Operation::Record(lease, reports) if sim.has(Bug::ForgetsReports) && reports.len() > 2 => {
            reports.pop();
            let renewed = &change.next.tenancy.current;
            let until = renewed.as_ref().map_or(from.now, |(_, until)| *until);
            let recorded = next.record(lease, reports, until.since(from.now), from.now);
            recorded.expect("it was made from the same batch");
        }
        Operation::Merge(attempt, reports)
            if sim.has(Bug::ForgetsFeedback) && reports.len() > 1 =>
        {
            reports.pop();
            let merged = next.merge(*attempt, reports);
            merged.expect("it was made from the same batch");
        }
        _ => return,
    }
    change.next = next;
}

/// Tells what has become of a batch.
fn witness(by: &Process, name: &RolloutName, from: &Loaded, change: &Change) {
    let id = from.batch.header.id;
    match &change.operation {
        Operation::Lease(request) => {
            let tenancy = &change.next.tenancy;
            if let Some((holder, _)) = &tenancy.current {
                let lease = Lease {
                    rollout: name.clone(),
                    batch: id,
                    holder: holder.clone(),
                    epoch: tenancy.epoch,
                };
                by.witness(&Witnessed::Leased(request, &lease));
            }
        }
        Operation::Record(lease, reports) => by.witness(&Witnessed::Recorded(lease, reports)),
        Operation::Merge(attempt, reports) => {
            let rollout = from.rollout.id;
            by.witness(&Witnessed::Merged(name, rollout, id, *attempt, reports));
        }
        Operation::Release(lease) => by.witness(&Witnessed::Released(lease)),
        Operation::Skip(which) => by.witness(&Witnessed::Skipped(name, id, which)),
        Operation::Reopen(attempt, outcomes) => {
            let pending = |batch: &Batch| batch.counts().get(Outcome::Pending);
            let devices = pending(&change.next) - pending(&from.batch);
            by.witness(&Witnessed::Reopened(name, id, *attempt, outcomes, devices));
        }
    }
}

#[async_trait]
impl Rollouts for SimStore {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let rollout = rollout.clone();
        let name = rollout.spec.name.clone();
        self.call("create", name, |truth, by| async move {
            let created = truth.create(&rollout).await?;
            if created == Created::New {
                by.witness(&Witnessed::Saved(&rollout));
            }
            Ok(created)
        })
        .await
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        let of = name.clone();
        self.call("rollout", name, |truth, by| async move {
            let rollout = truth.rollout(&of).await?;
            Ok(match by.sim().bug() {
                Some(bug) => rollout.map(|rollout| bug.shows(rollout)),
                None => rollout,
            })
        })
        .await
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        let of = name.clone();
        self.call("revision", name, |truth, _| async move {
            truth.revision(&of).await
        })
        .await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.call(
            "rollouts",
            "",
            |truth, _| async move { truth.rollouts().await },
        )
        .await
    }

    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError> {
        let mut rollout = rollout.clone();
        let name = rollout.spec.name.clone();
        self.call("save", name, |truth, by| async move {
            if let Some(bug) = by.sim().bug() {
                if bug.forgets(&rollout) {
                    return Ok(());
                }
                // What it was shown is not what there is.
                if let Some(stored) = truth.rollout(&rollout.spec.name).await?
                    && bug.shows(stored.clone()).spec == rollout.spec
                {
                    rollout.spec = stored.spec;
                }
            }
            if [Bug::ForgetsJoiners, Bug::RefusesNothing]
                .iter()
                .any(|bug| by.sim().has(*bug))
            {
                rollout.relies_on = None;
            }
            let mut from = from;
            if by.sim().has(Bug::NoVersions)
                && let Some(current) = truth.revision(&rollout.spec.name).await?
            {
                from = current;
            }
            truth.save(&rollout, from).await?;
            by.witness(&Witnessed::Saved(&rollout));
            Ok(())
        })
        .await
    }

    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError> {
        let of = name.clone();
        self.call("remove", name, |truth, _| async move {
            truth.remove(&of, revision).await
        })
        .await
    }
}

#[async_trait]
impl Batches for SimStore {
    fn durable_after(&self) -> Duration {
        self.truth.durable_after()
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        adding: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError> {
        let of = name.clone();
        let claimed = self.claim(name, adding, &batches);
        self.call("add_batches", name, |truth, by| async move {
            if matches!(adding, Adding::Look(_)) && by.sim().has(Bug::ForgetsJoiners) {
                let mut held = truth.add_batches(&of, adding, Vec::new()).await?;
                held.join(&batches.iter().collect());
                return Ok(held);
            }
            let mut added = truth.add_batches(&of, adding, batches.clone()).await?;
            if by.sim().has(Bug::RefusesNothing) && matches!(adding, Adding::Plan(_)) {
                added = claimed;
            }
            by.witness(&Witnessed::Planned(&of, &batches));
            Ok(added)
        })
        .await
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let of = name.clone();
        self.call("batches", name, |truth, _| async move {
            truth.batches(&of, after, limit).await
        })
        .await
    }

    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let (of, on) = (name.clone(), hub.clone());
        let about = format!("{name} on {hub}");
        self.call("open_batches", about, |truth, by| async move {
            let through = match by.sim().has(Bug::NoStages) {
                true => StageIndex(u16::MAX),
                false => through,
            };
            truth.open_batches(&of, &on, through, limit).await
        })
        .await
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        let (of, groups) = (name.clone(), groups.to_vec());
        self.call("in_progress", name, |truth, _| async move {
            truth.in_progress(&of, &groups).await
        })
        .await
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        let of = name.clone();
        self.call("tallies", name, |truth, by| async move {
            let mut tallies = truth.tallies(&of).await?;
            if by.sim().has(Bug::CountsSilent) {
                for tally in &mut tallies {
                    for _ in 0..tally.counts.get(Outcome::Enqueued) {
                        tally.counts.shift(Outcome::Enqueued, Outcome::Delivered);
                    }
                }
            }
            Ok(tallies)
        })
        .await
    }

    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        let of = name.clone();
        self.call("batch", of_batch(name, batch), |truth, by| async move {
            let mut loaded = truth.batch(&of, batch, part).await?;
            if by.sim().has(Bug::NeverStops) {
                loaded.rollout.wanted = Wanted::GoOn;
            }
            Ok(loaded)
        })
        .await
    }

    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        let (of, from, mut change) = (name.clone(), from.clone(), change.clone());
        let about = of_batch(name, from.batch.header.id);
        self.call(change.operation.verb(), about, |truth, by| async move {
            let sim = by.sim();
            if sim.has(Bug::NeverSkips) && matches!(change.operation, Operation::Skip(_)) {
                return Ok(Committed::Overtaken);
            }
            forget_some(sim, &from, &mut change);
            let mut committed = truth.commit(&of, &from, &change).await?;
            if committed == Committed::Overtaken
                && sim.has(Bug::NoFence)
                && let Operation::Record(lease, reports) = &change.operation
            {
                let (batch, attempt) = (lease.batch, from.batch.attempts.newest);
                let id = from.rollout.id;
                truth.merge(&of, id, batch, attempt, reports).await?;
                committed = Committed::Done {
                    version: from.version,
                    wanted: Wanted::GoOn,
                    now: from.now,
                };
            }
            if let Committed::Done { wanted, .. } = &mut committed {
                witness(&by, &of, &from, &change);
                if by.sim().has(Bug::NeverStops) {
                    *wanted = Wanted::GoOn;
                }
            }
            Ok(committed)
        })
        .await
    }
}

#[async_trait]
impl Lines for SimStore {
    async fn line(&self, group: &GroupName) -> Result<Line, StoreError> {
        let of = group.clone();
        self.call(
            "line",
            group,
            |truth, _| async move { truth.line(&of).await },
        )
        .await
    }

    async fn save_line(&self, group: &GroupName, line: &Line) -> Result<(), StoreError> {
        let (of, line) = (group.clone(), line.clone());
        self.call("save_line", group, |truth, _| async move {
            truth.save_line(&of, &line).await
        })
        .await
    }
}

#[async_trait]
impl Limiter for SimStore {
    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let request = request.clone();
        let about = format!("{} on {}", request.rollout, request.hub);
        self.call("take_permits", about, |truth, by| async move {
            let grant = truth.take_permits(&request).await?;
            match by.sim().has(Bug::EndlessPermits) {
                true => Ok(Grant {
                    permits: request.wanted,
                    wait: Duration::ZERO,
                }),
                false => Ok(grant),
            }
        })
        .await
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let on = hub.clone();
        self.call("throttled", hub, |truth, _| async move {
            truth.throttled(&on, retry_after).await
        })
        .await
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        let on = hub.clone();
        self.call("limiter", hub, |truth, _| async move {
            truth.limiter(&on).await
        })
        .await
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let on = hub.clone();
        self.call("open_link", hub, |truth, _| async move {
            truth.open_link(&on).await
        })
        .await
    }
}

#[async_trait]
impl Presence for SimStore {
    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let (hub, host) = (hub.clone(), host.clone());
        self.call("bind_hub", hub.clone(), |truth, _| async move {
            truth.bind_hub(&hub, &host).await
        })
        .await
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        let (of, report) = (hub.clone(), report.clone());
        self.call("report_listener", hub, |truth, _| async move {
            truth.report_listener(&of, &report).await
        })
        .await
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        let of = hub.clone();
        self.call("listeners", hub, |truth, by| async move {
            let listeners = truth.listeners(&of).await?;
            Ok(match by.sim().bug() {
                Some(bug) => bug.shows_listeners(listeners),
                None => listeners,
            })
        })
        .await
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        let (of, report) = (hub.clone(), report.clone());
        self.call("report_link", hub, |truth, _| async move {
            truth.report_link(&of, &report).await
        })
        .await
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        let of = hub.clone();
        self.call(
            "links",
            hub,
            |truth, _| async move { truth.links(&of).await },
        )
        .await
    }
}

#[async_trait]
impl Roster for SimStore {
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.call("active", "", |truth, _| async move { truth.active().await })
            .await
    }

    async fn retire(&self, name: &RolloutName, version: Version) -> Result<(), StoreError> {
        let of = name.clone();
        self.call("retire", name, |truth, _| async move {
            truth.retire(&of, version).await
        })
        .await
    }

    async fn look(&self) -> Result<RosterLook, StoreError> {
        self.call("look", "", |truth, _| async move { truth.look().await })
            .await
    }

    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError> {
        let (of, holder) = (names.to_vec(), holder.clone());
        let about = format!("{} rollouts", names.len());
        self.call("claim", about, |truth, _| async move {
            truth.claim(&of, &holder, ttl).await
        })
        .await
    }

    async fn disclaim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError> {
        let (of, holder) = (name.clone(), holder.clone());
        self.call("disclaim", name, |truth, _| async move {
            truth.disclaim(&of, &holder).await
        })
        .await
    }

    async fn announced(&self, name: &RolloutName) -> Result<Version, StoreError> {
        let of = name.clone();
        self.call("announced", name, |truth, _| async move {
            truth.announced(&of).await
        })
        .await
    }

    async fn set_announced(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError> {
        let of = name.clone();
        self.call("set_announced", name, |truth, _| async move {
            truth.set_announced(&of, id, version).await
        })
        .await
    }

    async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        self.call("halted", "", |truth, _| async move { truth.halted().await })
            .await
    }

    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError> {
        let halt = halt.cloned();
        self.call("set_halted", "", |truth, by| async move {
            truth.set_halted(halt.as_ref()).await?;
            by.witness(&Witnessed::Halted(halt.is_some()));
            Ok(())
        })
        .await
    }
}
