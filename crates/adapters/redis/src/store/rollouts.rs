//! The store.

use std::time::Duration;

use async_trait::async_trait;
use redis::cmd;
use twincast_core::batch::{BatchStatus, Held, Lease, Reopened};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::evidence::{ListenerReport, ListenerStatus};
use twincast_core::group::Line;
use twincast_core::ids::{
    Attempt, BatchId, GroupName, HubHost, HubName, Revision, RolloutId, RolloutName, StageIndex,
};
use twincast_core::link::{LinkReport, LinkStatus};
use twincast_core::outcome::Outcome;
use twincast_core::permits::{Grant, LimiterState, PermitRequest, THROTTLE_PAUSE};
use twincast_core::plan::{Batch, Checksum};
use twincast_core::ports::{
    BatchWork, Created, LeaseReply, LeaseRequest, Report, Skip, Store, StoreError, Tally,
};
use twincast_core::rollout::{Adding, Reliance, Rollout, Wanted};
use twincast_core::time::ms;

use super::{RedisStore, Subject, newer};
use crate::error::Misfit;
use crate::keys::{FORMAT, Stance};
use crate::reply::{encode, json, pack};
use crate::scripts::{Run, SCRIPTS};

#[async_trait]
impl Store for RedisStore {
    fn durable_after(&self) -> Duration {
        self.durable_after
    }

    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let name = &rollout.spec.name;
        let subject = Subject::Rollout(name);
        // Looked for first, so that a rollout that has ended is not called active again.
        if let Some(existing) = self.rollout(name).await? {
            return Ok(Created::Existing(Box::new(existing)));
        }
        self.enlist(rollout).await?;
        let run = record_of(self.on(name, &SCRIPTS.create), rollout);
        let mut reply = self.run("create", subject, &run).await?;
        match reply.next_if_any::<Vec<u8>>() {
            None => Ok(Created::New),
            Some(existing) => existing
                .and_then(|record| json(&record, "the record"))
                .map(|existing| Created::Existing(Box::new(existing)))
                .map_err(|misfit| subject.corrupt("create", misfit)),
        }
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        let subject = Subject::Rollout(name);
        let get = cmd("HMGET")
            .arg(self.keys.head(name))
            .arg(&["format", "record"])
            .to_owned();
        let (format, record): (Option<u32>, Option<Vec<u8>>) =
            self.ask("read", subject, &get).await?;
        if let Some(found) = format.filter(|format| *format > FORMAT) {
            return Err(newer(subject.to_string(), found));
        }
        let rollout = record.map(|record| json(&record, "the record")).transpose();
        rollout.map_err(|misfit| subject.corrupt("read", misfit))
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        self.revision_of(name).await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.names(self.keys.rollouts()).await
    }

    async fn save(&self, rollout: &Rollout, from: Revision) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        // What would be refused is not to enlist anything.
        match self.revision_of(name).await? {
            Some(revision) if revision == from => self.enlist(rollout).await?,
            _ => {}
        }
        let run = record_of(self.on(name, &SCRIPTS.save), rollout)
            .arg(from.version.0)
            .arg(from.lineage.0);
        let run = match rollout.relies_on {
            None => run,
            Some(Reliance::Settled) => run.arg("settled"),
            Some(Reliance::Batches(checksum)) => run
                .arg("batches")
                .arg(checksum.batches)
                .arg(checksum.devices)
                .arg(checksum.sum),
        };
        self.run("save", Subject::Rollout(name), &run).await?;
        Ok(())
    }

    async fn remove(&self, name: &RolloutName, revision: Revision) -> Result<(), StoreError> {
        let (verb, subject) = ("remove", Subject::Rollout(name));
        let listed = cmd("ZSCORE")
            .arg(self.keys.rollouts())
            .arg(name.as_str())
            .to_owned();
        let listed: Option<String> = self.ask(verb, subject, &listed).await?;
        let run = SCRIPTS
            .remove
            .on(&self.keys.all_of(name), &self.now())
            .arg(revision.version.0)
            .arg(revision.lineage.0);
        self.run(verb, subject, &run).await?;
        let strike = self
            .on_key(self.keys.rollouts(), &SCRIPTS.strike)
            .arg(name.as_str())
            .arg(listed.unwrap_or_default());
        self.run(verb, subject, &strike).await?;
        Ok(())
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<Batch>,
    ) -> Result<Checksum, StoreError> {
        let (verb, subject) = ("add batches to", Subject::Adding(name, by));
        let mut run = self.on(name, &SCRIPTS.add_batches).arg(by.to_string());
        for batch in &batches {
            let Batch { header, devices } = batch;
            let described = serde_json::to_vec(header).expect("a batch's header is plain data");
            run = run
                .arg(header.id.0)
                .arg(batch.fingerprint())
                .arg(described)
                .arg(header.devices)
                .arg(header.stage.0)
                .arg(header.hub.as_str())
                .arg(header.place.as_str())
                .arg(pack(devices))
                .arg(header.budgets.len());
            for group in &header.budgets {
                run = run.arg(&group.group);
            }
        }
        let reply = self.run(verb, subject, &run).await?;
        reply
            .checksum()
            .map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn batches(
        &self,
        name: &RolloutName,
        after: Option<BatchId>,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let first = after.map_or(0, |after| u64::from(after.0) + 1);
        let run = self
            .on(name, &SCRIPTS.batches)
            .arg(first)
            .arg(limit_of(limit));
        self.page("list the batches of", name, &run).await
    }

    async fn open_batches(
        &self,
        name: &RolloutName,
        hub: &HubName,
        through: StageIndex,
        limit: usize,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let run = self
            .on(name, &SCRIPTS.open_batches)
            .arg(hub.as_str())
            .arg(u32::from(through.0) + 1)
            .arg(limit_of(limit))
            .arg(ms(self.durable_after));
        self.page("list the open batches of", name, &run).await
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let subject = Subject::Batch(&request.rollout, request.batch);
        let run = self
            .on(&request.rollout, &SCRIPTS.lease)
            .arg(request.batch.0)
            .arg(request.holder.as_str())
            .arg(ms(request.ttl))
            .arg(ms(self.durable_after));
        let reply = self.run("lease", subject, &run).await?;
        let leased = reply.leased(|epoch| {
            LeaseReply::Granted(Lease {
                rollout: request.rollout.clone(),
                batch: request.batch,
                holder: request.holder.clone(),
                epoch,
            })
        });
        leased.map_err(|misfit| subject.corrupt("lease", misfit))
    }

    async fn load(&self, name: &RolloutName, batch: BatchId) -> Result<BatchWork, StoreError> {
        let subject = Subject::Batch(name, batch);
        let run = self.on(name, &SCRIPTS.load).arg(batch.0);
        let reply = self.run("load", subject, &run).await?;
        reply
            .work()
            .map_err(|misfit| subject.corrupt("load", misfit))
    }

    async fn record(
        &self,
        lease: &Lease,
        reports: &[Report],
        ttl: Duration,
    ) -> Result<Wanted, StoreError> {
        let subject = Subject::Lease(lease);
        let run = self
            .on(&lease.rollout, &SCRIPTS.record)
            .arg(lease.batch.0)
            .arg(lease.holder.as_str())
            .arg(lease.epoch.0)
            .arg(ms(ttl))
            .arg(encode(reports));
        let mut reply = self.run("record outcomes under", subject, &run).await?;
        let stance = reply.next::<String>();
        let stance = stance.map_err(|misfit| subject.corrupt("record outcomes under", misfit))?;
        Ok(Stance::wanted(&stance))
    }

    async fn merge(
        &self,
        name: &RolloutName,
        id: RolloutId,
        batch: BatchId,
        attempt: Attempt,
        reports: &[Report],
    ) -> Result<(), StoreError> {
        let run = self
            .on(name, &SCRIPTS.merge)
            .arg(batch.0)
            .arg(id.to_string())
            .arg(attempt.0)
            .arg(encode(reports));
        self.run("merge reports into", Subject::Batch(name, batch), &run)
            .await?;
        Ok(())
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let run = self
            .on(&lease.rollout, &SCRIPTS.release)
            .arg(lease.batch.0)
            .arg(lease.holder.as_str())
            .arg(lease.epoch.0);
        self.run("release", Subject::Lease(lease), &run).await?;
        Ok(())
    }

    async fn skip(
        &self,
        name: &RolloutName,
        batch: BatchId,
        which: &Skip,
    ) -> Result<Option<Held>, StoreError> {
        let (verb, subject) = ("skip devices of", Subject::Batch(name, batch));
        let run = self.on(name, &SCRIPTS.skip).arg(batch.0);
        let run = match which {
            Skip::Rest => run,
            Skip::Left { look, devices } => {
                let positions = devices.iter().flat_map(|index| index.to_le_bytes());
                run.arg(Adding::Look(*look).to_string())
                    .arg(positions.collect::<Vec<_>>())
            }
        };
        let reply = self.run(verb, subject, &run).await?;
        reply.held().map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn reopen(
        &self,
        name: &RolloutName,
        batch: BatchId,
        attempt: Attempt,
        outcomes: &[Outcome],
    ) -> Result<Reopened, StoreError> {
        let (verb, subject) = ("retry devices of", Subject::Batch(name, batch));
        let mut run = self.on(name, &SCRIPTS.reopen).arg(batch.0).arg(attempt.0);
        for outcome in outcomes.iter().filter(|outcome| outcome.can_be_retried()) {
            run = run.arg(*outcome as u8);
        }
        let reply = self.run(verb, subject, &run).await?;
        reply
            .reopened()
            .map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        let (verb, subject) = ("read what is in progress of", Subject::Rollout(name));
        let mut run = self.on(name, &SCRIPTS.in_progress);
        for group in groups {
            run = run.arg(&group.group).arg(group.silent_ms);
        }
        let mut reply = self.run(verb, subject, &run).await?;
        let read = groups.iter().map(|_| {
            let (devices, in_progress) = (reply.next()?, reply.next()?);
            Ok(GroupProgress {
                devices,
                in_progress,
            })
        });
        let read = read.collect::<Result<_, _>>();
        read.map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        let (verb, subject) = ("read the tallies of", Subject::Rollout(name));
        let reply = self
            .run(verb, subject, &self.on(name, &SCRIPTS.tallies))
            .await?;
        reply
            .tallies()
            .map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn line(&self, group: &GroupName) -> Result<Line, StoreError> {
        let (verb, subject) = ("read", Subject::Line(group));
        let get = cmd("HGET")
            .arg(self.keys.line(group))
            .arg("line")
            .to_owned();
        let stored: Option<Vec<u8>> = self.ask(verb, subject, &get).await?;
        let line = stored.map(|line| json(&line, "the line")).transpose();
        let line = line.map_err(|misfit| subject.corrupt(verb, misfit))?;
        Ok(line.unwrap_or_default())
    }

    async fn save_line(&self, group: &GroupName, line: &Line) -> Result<(), StoreError> {
        let stored = serde_json::to_vec(line).expect("a line is plain data");
        let run = self
            .on_key(self.keys.line(group), &SCRIPTS.save_line)
            .arg(line.version.0.saturating_sub(1))
            .arg(line.version.0)
            .arg(stored);
        self.run("save", Subject::Line(group), &run).await?;
        Ok(())
    }

    async fn bind_hub(&self, hub: &HubName, host: &HubHost) -> Result<HubHost, StoreError> {
        let (verb, subject) = ("bind", Subject::Hub(hub));
        let key = self.keys.host(hub);
        let set = cmd("SETNX").arg(&key).arg(host.as_str()).to_owned();
        self.ask::<u8>(verb, subject, &set).await?;
        let get = cmd("GET").arg(&key).to_owned();
        let bound: String = self.ask(verb, subject, &get).await?;
        HubHost::new(bound).map_err(|error| subject.corrupt(verb, Misfit(error.to_string())))
    }

    async fn take_permits(&self, request: &PermitRequest) -> Result<Grant, StoreError> {
        let (verb, subject) = ("take permits on", Subject::Hub(&request.hub));
        let limit = request.limit.map(|limit| limit.to_string());
        let run = self
            .on_key(self.keys.permits(&request.hub), &SCRIPTS.take_permits)
            .arg(request.rollout.as_str())
            .arg(request.wanted)
            .arg(request.per_minute.to_string())
            .arg(request.weight)
            .arg(limit.unwrap_or_default())
            .arg(ms(self.durable_after));
        let mut reply = self.run(verb, subject, &run).await?;
        let granted = reply.next().and_then(|permits| {
            let wait = Duration::from_micros(reply.next()?);
            Ok(Grant { permits, wait })
        });
        granted.map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn throttled(
        &self,
        hub: &HubName,
        retry_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        let run = self
            .on_key(self.keys.permits(hub), &SCRIPTS.throttled)
            .arg(ms(retry_after.unwrap_or(THROTTLE_PAUSE)));
        self.run("slow down", Subject::Hub(hub), &run).await?;
        Ok(())
    }

    async fn limiter(&self, hub: &HubName) -> Result<LimiterState, StoreError> {
        let (verb, subject) = ("read the pace of", Subject::Hub(hub));
        let run = self.on_key(self.keys.permits(hub), &SCRIPTS.limiter);
        let state = self.run(verb, subject, &run).await?.limiter();
        state.map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn report_listener(
        &self,
        hub: &HubName,
        report: &ListenerReport,
    ) -> Result<(), StoreError> {
        let (key, verb) = (self.keys.listeners(hub), "report a listener to");
        let (by, heard) = (&report.listener, report.heard_ago);
        self.report(key, verb, hub, by, heard, &report.state).await
    }

    async fn listeners(&self, hub: &HubName) -> Result<Vec<ListenerStatus>, StoreError> {
        let key = self.keys.listeners(hub);
        self.reports(key, "read the listeners to", hub).await
    }

    async fn report_link(&self, hub: &HubName, report: &LinkReport) -> Result<(), StoreError> {
        let (key, verb) = (self.keys.senders(hub), "report a link to");
        let (by, since) = (&report.worker, Some(report.lasting));
        self.report(key, verb, hub, by, since, &report.state).await
    }

    async fn links(&self, hub: &HubName) -> Result<Vec<LinkStatus>, StoreError> {
        let key = self.keys.senders(hub);
        self.reports(key, "read the links to", hub).await
    }

    async fn open_link(&self, hub: &HubName) -> Result<Duration, StoreError> {
        let (verb, subject) = ("reserve a link to", Subject::Hub(hub));
        let run = self.on_key(self.keys.links(hub), &SCRIPTS.open_link);
        let wait = self.run(verb, subject, &run).await?.next();
        let wait = wait.map_err(|misfit| subject.corrupt(verb, misfit))?;
        Ok(Duration::from_millis(wait))
    }
}

impl RedisStore {
    /// Notes a rollout's name, and that it is active, before it is stored in this version: a crash
    /// in between leaves a name without a record, never a record without a name. Each time raises the name's score, by
    /// which whoever removes another rollout of that name notices it.
    async fn enlist(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        let subject = Subject::Rollout(name);
        let known = cmd("ZINCRBY")
            .arg(self.keys.rollouts())
            .arg(1)
            .arg(name.as_str())
            .to_owned();
        self.ask::<String>("enlist", subject, &known).await?;
        let active = cmd("ZADD")
            .arg(self.keys.active())
            .arg("GT")
            .arg(rollout.version.0)
            .arg(name.as_str())
            .to_owned();
        self.ask::<u64>("enlist", subject, &active).await?;
        Ok(())
    }

    async fn page(
        &self,
        verb: &str,
        name: &RolloutName,
        run: &Run,
    ) -> Result<Vec<BatchStatus>, StoreError> {
        let subject = Subject::Rollout(name);
        let reply = self.run(verb, subject, run).await?;
        reply.page().map_err(|misfit| subject.corrupt(verb, misfit))
    }
}

/// A record, with what is stored beside it.
fn record_of(run: Run, rollout: &Rollout) -> Run {
    let record = serde_json::to_vec(rollout).expect("a rollout's record is plain data");
    run.arg(record)
        .arg(rollout.id.to_string())
        .arg(rollout.version.0)
        .arg(rollout.lineage.0)
        .arg(rollout.plan_id.0)
        .arg(Stance::of(rollout).as_str())
        .arg(rollout.stage().0)
        .arg(rollout.attempt.0)
        .arg(
            rollout
                .adding()
                .map(|by| by.to_string())
                .unwrap_or_default(),
        )
}

/// A limit that Redis can count to, which takes a negative one for none.
fn limit_of(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}
