//! A process' way to the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{BatchStatus, Held, Lease, Reopened};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::evidence::{ListenerReport, ListenerStatus};
use twincast_core::group::Line;
use twincast_core::ids::{
    Attempt, BatchId, GroupName, Holder, HubHost, HubName, Revision, RolloutId, RolloutName,
    StageIndex, Version,
};
use twincast_core::link::{LinkReport, LinkStatus};
use twincast_core::outcome::Outcome;
use twincast_core::permits::{Grant, LimiterState, PermitRequest};
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{
    BatchWork, Created, Halt, LeaseReply, LeaseRequest, Report, Roster, Skip, Store, StoreError,
    Tally,
};
use twincast_core::rollout::{Adding, Rollout, Wanted};
use twincast_core::time::Timestamp;

use super::process::Odds;
use super::{Bug, Process, Witnessed};
use crate::MemoryStore;

/// A [`Store`] and [`Roster`] that one process calls and all processes share.
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
    fn claim(&self, name: &RolloutName, adding: Adding, batches: &[Batch]) -> Checksum {
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

#[async_trait]
impl Store for SimStore {
    fn durable_after(&self) -> Duration {
        self.truth.durable_after()
    }

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

    async fn add_batches(
        &self,
        name: &RolloutName,
        adding: Adding,
        batches: Vec<Batch>,
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

    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let request = request.clone();
        let about = of_batch(&request.rollout, request.batch);
        self.call("lease", about, |truth, by| async move {
            let reply = truth.lease(&request).await?;
            if let LeaseReply::Granted(lease) = &reply {
                by.witness(&Witnessed::Leased(&request, lease));
            }
            Ok(reply)
        })
        .await
    }

    async fn load(&self, name: &RolloutName, batch: BatchId) -> Result<BatchWork, StoreError> {
        let of = name.clone();
        self.call("load", of_batch(name, batch), |truth, _| async move {
            truth.load(&of, batch).await
        })
        .await
    }

    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        let (lease, mut reports) = (lease.clone(), reports.to_vec());
        let about = of_batch(&lease.rollout, lease.batch);
        self.call("record", about, |truth, by| async move {
            if by.sim().has(Bug::ForgetsReports) && reports.len() > 2 {
                reports.pop();
            }
            let wanted = match truth.record(&lease, &reports, ttl).await {
                Err(StoreError::Superseded { .. }) if by.sim().has(Bug::NoFence) => {
                    let (of, batch) = (&lease.rollout, lease.batch);
                    let work = truth.load(of, batch).await?;
                    truth
                        .merge(of, work.rollout, batch, work.attempt, &reports)
                        .await?;
                    Wanted::GoOn
                }
                recorded => recorded?,
            };
            by.witness(&Witnessed::Recorded(&lease, &reports));
            match by.sim().has(Bug::NeverStops) {
                true => Ok(Wanted::GoOn),
                false => Ok(wanted),
            }
        })
        .await
    }

    async fn merge(
        &self,
        name: &RolloutName,
        id: RolloutId,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<(), StoreError> {
        let (of, mut reports) = (name.clone(), reports.to_vec());
        self.call("merge", of_batch(name, batch), |truth, by| async move {
            if by.sim().has(Bug::ForgetsFeedback) && reports.len() > 1 {
                reports.pop();
            }
            truth.merge(&of, id, batch, attempt, &reports).await?;
            by.witness(&Witnessed::Merged(&of, id, batch, attempt, &reports));
            Ok(())
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        let about = of_batch(&lease.rollout, lease.batch);
        self.call("release", about, |truth, by| async move {
            truth.release(&lease).await?;
            by.witness(&Witnessed::Released(&lease));
            Ok(())
        })
        .await
    }

    async fn skip(
        &self,
        name: &RolloutName,
        batch: BatchId,
        which: &Skip,
    ) -> Result<Option<Held>, StoreError> {
        let (of, which) = (name.clone(), which.clone());
        self.call("skip", of_batch(name, batch), |truth, by| async move {
            if by.sim().has(Bug::NeverSkips) {
                let (by, until) = (Holder::new("nobody").expect("a name"), Timestamp(0));
                return Ok(Some(Held { by, until }));
            }
            let held = truth.skip(&of, batch, &which).await?;
            if held.is_none() {
                by.witness(&Witnessed::Skipped(&of, batch, &which));
            }
            Ok(held)
        })
        .await
    }

    async fn reopen(
        &self,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        outcomes: &[Outcome],
    ) -> Result<Reopened, StoreError> {
        let (of, outcomes) = (name.clone(), outcomes.to_vec());
        self.call("reopen", of_batch(name, batch), |truth, by| async move {
            let reopened = truth.reopen(&of, batch, attempt, &outcomes).await?;
            by.witness(&Witnessed::Reopened(
                &of, batch, attempt, &outcomes, &reopened,
            ));
            Ok(reopened)
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

    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let (hub, host) = (hub.clone(), host.clone());
        self.call("bind_hub", hub.clone(), |truth, _| async move {
            truth.bind_hub(&hub, &host).await
        })
        .await
    }

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

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let on = hub.clone();
        self.call("open_link", hub, |truth, _| async move {
            truth.open_link(&on).await
        })
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

    async fn claim(
        &self,
        name: &RolloutName,
        holder: &Holder,
        ttl: Duration,
    ) -> Result<Option<Held>, StoreError> {
        let (of, holder) = (name.clone(), holder.clone());
        self.call("claim", name, |truth, _| async move {
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
