//! The records of rollouts, and the queues of concurrency groups.

use async_trait::async_trait;
use redis::cmd;
use twincast_core::concurrency_group::GroupQueue;
use twincast_core::ids::{ConcurrencyGroup, Revision, RolloutName};
use twincast_core::ports::{Created, GroupQueues, Rollouts, StoreError};
use twincast_core::rollout::{Commands, Directive, Rollout, StorePrecondition};

use super::{RedisStore, Subject, newer};
use crate::error::InvalidData;
use crate::keys::FORMAT;
use crate::reply::json;
use crate::scripts::{Run, SCRIPTS};

#[async_trait]
impl Rollouts for RedisStore {
    async fn create(&self, rollout: &Rollout) -> Result<Created, StoreError> {
        let name = &rollout.spec.name;
        let subject = Subject::Rollout(name);
        // The record is read first, so that an ended rollout does not become active again.
        if let Some(existing) = self.rollout(name).await? {
            return Ok(Created::Existing(Box::new(existing)));
        }
        self.register(rollout).await?;
        let run = record_of(self.on(name, &SCRIPTS.create), rollout);
        let mut reply = self.run("create", subject, &run).await?;
        match reply.next_if_any::<Vec<u8>>() {
            None => Ok(Created::New),
            Some(record) => record
                .and_then(|record| rollout_of(&record, &reply.next::<Vec<u8>>()?))
                .map(|existing| Created::Existing(Box::new(existing)))
                .map_err(|invalid| subject.corrupt("create", invalid)),
        }
    }

    async fn rollout(&self, name: &RolloutName) -> Result<Option<Rollout>, StoreError> {
        let subject = Subject::Rollout(name);
        let get = cmd("HMGET")
            .arg(self.keys.head(name))
            .arg(&["format", "record", "notes"])
            .to_owned();
        let (format, record, notes): (Option<u32>, Option<Vec<u8>>, Option<Vec<u8>>) =
            self.ask("read", subject, &get).await?;
        if let Some(found) = format.filter(|format| *format > FORMAT) {
            return Err(newer(subject.to_string(), found));
        }
        let notes = notes.unwrap_or_default();
        let rollout = record.map(|record| rollout_of(&record, &notes)).transpose();
        rollout.map_err(|invalid| subject.corrupt("read", invalid))
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        self.revision_of(name).await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.names(self.keys.rollouts()).await
    }

    async fn save_with_commands(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        // A save that will be refused must not register the rollout.
        match self.revision_of(name).await? {
            Some(revision) if revision == from => self.register(rollout).await?,
            _ => {}
        }
        let commands = commands.map(serde_json::to_vec).transpose();
        let commands = commands.expect("commands are plain data");
        let run = record_of(self.on(name, &SCRIPTS.save), rollout)
            .arg(commands.unwrap_or_default())
            .arg(from.version.0)
            .arg(from.lineage.0);
        let run = match rollout.precondition {
            None => run,
            Some(StorePrecondition::Settled) => run.arg("settled"),
            Some(StorePrecondition::Batches(checksum)) => run
                .arg("batches")
                .arg(checksum.batches)
                .arg(checksum.devices)
                .arg(checksum.sum),
        };
        self.run("save", Subject::Rollout(name), &run).await?;
        Ok(())
    }

    async fn save_notes(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        let run = self
            .on(name, &SCRIPTS.save_notes)
            .arg(rollout.version.0)
            .arg(rollout.lineage.0)
            .arg(notes_of(rollout));
        self.run("note", Subject::Rollout(name), &run).await?;
        Ok(())
    }

    async fn commands(&self, name: &RolloutName) -> Result<Commands, StoreError> {
        let (verb, subject) = ("read", Subject::Rollout(name));
        let get = cmd("HGET")
            .arg(self.keys.head(name))
            .arg("commands")
            .to_owned();
        let stored: Option<Vec<u8>> = self.ask(verb, subject, &get).await?;
        let commands = stored.map(|stored| json(&stored, "the commands"));
        let commands = commands.transpose();
        let commands = commands.map_err(|invalid| subject.corrupt(verb, invalid))?;
        Ok(commands.unwrap_or_default())
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
        let unlist = self
            .on_key(self.keys.rollouts(), &SCRIPTS.unlist)
            .arg(name.as_str())
            .arg(listed.unwrap_or_default());
        self.run(verb, subject, &unlist).await?;
        Ok(())
    }
}

#[async_trait]
impl GroupQueues for RedisStore {
    async fn group_queue(&self, group: &ConcurrencyGroup) -> Result<GroupQueue, StoreError> {
        let (verb, subject) = ("read", Subject::GroupQueue(group));
        let get = cmd("HGET")
            .arg(self.keys.group_queue(group))
            .arg("queue")
            .to_owned();
        let stored: Option<Vec<u8>> = self.ask(verb, subject, &get).await?;
        let queue = stored.map(|queue| json(&queue, "the queue")).transpose();
        let queue = queue.map_err(|invalid| subject.corrupt(verb, invalid))?;
        Ok(queue.unwrap_or_default())
    }

    async fn save_group_queue(
        &self,
        group: &ConcurrencyGroup,
        queue: &GroupQueue,
    ) -> Result<(), StoreError> {
        let stored = serde_json::to_vec(queue).expect("a queue is plain data");
        let run = self
            .on_key(self.keys.group_queue(group), &SCRIPTS.save_group_queue)
            .arg(queue.version.0.saturating_sub(1))
            .arg(queue.version.0)
            .arg(stored);
        self.run("save", Subject::GroupQueue(group), &run).await?;
        Ok(())
    }
}

impl RedisStore {
    /// Registers a rollout's name, and that the rollout is active, before storing the rollout in
    /// this version. A crash in between leaves a name without a record, never a record without a
    /// name. Each call raises the name's score, by which a concurrent removal of another rollout of
    /// this name detects the call.
    async fn register(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        let subject = Subject::Rollout(name);
        let known = cmd("ZINCRBY")
            .arg(self.keys.rollouts())
            .arg(1)
            .arg(name.as_str())
            .to_owned();
        self.ask::<String>("register", subject, &known).await?;
        let active = cmd("ZADD")
            .arg(self.keys.active())
            .arg("GT")
            .arg(rollout.version.0)
            .arg(name.as_str())
            .to_owned();
        self.ask::<u64>("register", subject, &active).await?;
        Ok(())
    }
}

/// Adds the record, and the values stored beside the record, to a run.
fn record_of(run: Run, rollout: &Rollout) -> Run {
    let record = serde_json::to_vec(rollout).expect("a rollout's record is plain data");
    let control = rollout.control();
    let described = serde_json::to_vec(&control).expect("the control is plain data");
    let adding = control.adding.map(|by| by.to_string());
    run.arg(record)
        .arg(rollout.id.to_string())
        .arg(rollout.version.0)
        .arg(rollout.lineage.0)
        .arg(rollout.plan_id.0)
        .arg(described)
        .arg(u8::from(control.directive == Directive::Continue))
        .arg(adding.unwrap_or_default())
        .arg(notes_of(rollout))
}

fn notes_of(rollout: &Rollout) -> Vec<u8> {
    serde_json::to_vec(&rollout.notes).expect("notes are plain data")
}

/// Restores a rollout from the record and the notes.
fn rollout_of(record: &[u8], notes: &[u8]) -> Result<Rollout, InvalidData> {
    let mut rollout: Rollout = json(record, "the record")?;
    rollout.notes = json(notes, "the notes")?;
    Ok(rollout)
}
