//! The batches of rollouts.

use std::time::Duration;

use async_trait::async_trait;
use twincast_core::batch::{Batch, BatchStatus};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::ids::{BatchId, HubName, RolloutName, StageIndex};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::plan::{self, Checksum};
use twincast_core::ports::{Batches, Change, Committed, Loaded, Part, StoreError, Tally};
use twincast_core::rollout::Adding;
use twincast_core::time::Timestamp;

use super::{RedisStore, Subject};
use crate::reply::pack;
use crate::row::{counted_name, open_name, row, row_but_added_at, state, tally};
use crate::scripts::{Run, SCRIPTS};

#[async_trait]
impl Batches for RedisStore {
    fn durable_after(&self) -> Duration {
        self.durable_after
    }

    async fn add_batches(
        &self,
        name: &RolloutName,
        by: Adding,
        batches: Vec<plan::Batch>,
    ) -> Result<Checksum, StoreError> {
        let (verb, subject) = ("add batches to", Subject::Adding(name, by));
        let mut run = self.on(name, &SCRIPTS.add_batches).arg(by.to_string());
        for added in &batches {
            let plan::Batch { header, devices } = added;
            let described = serde_json::to_vec(header).expect("a batch's header is plain data");
            // The server sets the time.
            let batch = Batch::new(header.clone(), Timestamp(0));
            run = run
                .arg(header.id.0)
                .arg(added.fingerprint())
                .arg(described)
                .arg(header.devices)
                .arg(row_but_added_at(&batch))
                .arg(tally(header, Outcome::Pending))
                .arg(open_name(header))
                .arg(pack(devices))
                .arg(header.budgets.len());
            for group in &header.budgets {
                run = run.arg(&group.group);
            }
        }
        let reply = self.run(verb, subject, &run).await?;
        reply
            .checksum()
            .map_err(|invalid| subject.corrupt(verb, invalid))
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
        let (page, _) = self.page("list the batches of", name, &run).await?;
        Ok(page.into_iter().map(|(status, _)| status).collect())
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
            .arg(limit_of(limit));
        let (page, now) = self.page("list the open batches of", name, &run).await?;
        let is_durable = |since: Timestamp| now >= since.plus(self.durable_after);
        let durable = page.into_iter().filter(|(_, since)| is_durable(*since));
        Ok(durable.map(|(status, _)| status).collect())
    }

    async fn in_progress(
        &self,
        name: &RolloutName,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, StoreError> {
        let (verb, subject) = ("read the devices in progress of", Subject::Rollout(name));
        let mut run = self.on(name, &SCRIPTS.in_progress);
        for group in groups {
            run = run.arg(&group.group);
        }
        let progress = self.run(verb, subject, &run).await?.in_progress(groups);
        progress.map_err(|invalid| subject.corrupt(verb, invalid))
    }

    async fn tallies(&self, name: &RolloutName) -> Result<Vec<Tally>, StoreError> {
        let (verb, subject) = ("read the tallies of", Subject::Rollout(name));
        let reply = self
            .run(verb, subject, &self.on(name, &SCRIPTS.tallies))
            .await?;
        reply
            .tallies()
            .map_err(|invalid| subject.corrupt(verb, invalid))
    }

    async fn batch(
        &self,
        name: &RolloutName,
        batch: BatchId,
        part: Part,
    ) -> Result<Loaded, StoreError> {
        let subject = Subject::Batch(name, batch);
        let part = match part {
            Part::WithoutDevices => "",
            Part::WithDevices => "whole",
        };
        let run = self.on(name, &SCRIPTS.batch).arg(batch.0).arg(part);
        let loaded = self.run("load", subject, &run).await?.batch();
        loaded.map_err(|invalid| subject.corrupt("load", invalid))
    }

    async fn commit(
        &self,
        name: &RolloutName,
        from: &Loaded,
        change: &Change,
    ) -> Result<Committed, StoreError> {
        let (verb, subject) = (
            change.operation.verb(),
            Subject::Batch(name, from.batch.header.id),
        );
        let run = changing(self.on(name, &SCRIPTS.commit), from, change);
        let committed = self.run(verb, subject, &run).await?.committed();
        committed.map_err(|invalid| subject.corrupt(verb, invalid))
    }
}

impl RedisStore {
    async fn page(
        &self,
        verb: &str,
        name: &RolloutName,
        run: &Run,
    ) -> Result<(Vec<(BatchStatus, Timestamp)>, Timestamp), StoreError> {
        let subject = Subject::Rollout(name);
        let reply = self.run(verb, subject, run).await?;
        reply
            .page()
            .map_err(|invalid| subject.corrupt(verb, invalid))
    }
}

/// Adds the arguments of a change to a run.
fn changing(run: Run, from: &Loaded, change: &Change) -> Run {
    let (old, new) = (&from.batch, &change.next);
    let header = &new.header;
    let under = change.under.map(|under| (under.version.0, under.lineage.0));
    let (version, lineage) = under.unzip();
    let is_same = old.outcomes == new.outcomes && old.codes == new.codes;
    let (was, is) = (old.counts(), new.counts());
    let is_open = is.unsettled() > 0;
    let moves = (was.unsettled() > 0) != is_open;
    let run = run
        .arg(header.id.0)
        .arg(from.version.0)
        .arg(text(version))
        .arg(text(lineage))
        .arg(text(change.budget_entry.as_ref().map(|entry| entry.stamp)))
        .arg(row(new))
        .arg(if is_same { Vec::new() } else { state(new) })
        .arg(open_name(header))
        .arg(text(moves.then_some(u64::from(is_open))));
    let entry = change.budget_entry.as_ref();
    let groups = header.budgets.iter().filter(|_| entry.is_some());
    let counted = groups.map(|group| counted_name(&group.group, header.id));
    let finished = entry.iter().flat_map(|entry| &entry.finished);
    let finished = finished.map(|(group, batch)| counted_name(group, *batch));
    let run = listed(run, tallied(header, &was, &is), |run, (field, by)| {
        run.arg(field).arg(by)
    });
    let run = listed(run, counted.collect(), Run::arg);
    listed(run, finished.collect(), Run::arg)
}

/// Returns the changes of tallies. The tally for pending counts all devices, so this tally stays
/// the same.
fn tallied(header: &plan::BatchHeader, was: &Counts, is: &Counts) -> Vec<(String, i64)> {
    let others = Outcome::ALL
        .into_iter()
        .filter(|outcome| *outcome != Outcome::Pending);
    let moved = others.map(|outcome| {
        let by = is.get(outcome).cast_signed() - was.get(outcome).cast_signed();
        (outcome, by)
    });
    let moved = moved.filter(|(_, by)| *by != 0);
    moved
        .map(|(outcome, by)| (tally(header, outcome), by))
        .collect()
}

/// Adds the length of a list, followed by the items.
fn listed<T>(run: Run, list: Vec<T>, add: impl Fn(Run, T) -> Run) -> Run {
    let run = run.arg(list.len());
    list.into_iter().fold(run, add)
}

fn text(number: Option<u64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

/// Converts a limit to a number for Redis, where a negative limit means no limit.
fn limit_of(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}
