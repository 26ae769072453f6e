//! The records of rollouts, and the lines of their groups.

use async_trait::async_trait;
use redis::cmd;
use twincast_core::group::Line;
use twincast_core::ids::{GroupName, Revision, RolloutName};
use twincast_core::ports::{Created, Lines, Rollouts, StoreError};
use twincast_core::rollout::{Commands, Reliance, Rollout, Wanted};

use super::{RedisStore, Subject, newer};
use crate::error::Misfit;
use crate::keys::FORMAT;
use crate::reply::json;
use crate::scripts::{Run, SCRIPTS};

#[async_trait]
impl Rollouts for RedisStore {
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
            Some(record) => record
                .and_then(|record| rollout_of(&record, &reply.next::<Vec<u8>>()?))
                .map(|existing| Created::Existing(Box::new(existing)))
                .map_err(|misfit| subject.corrupt("create", misfit)),
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
        rollout.map_err(|misfit| subject.corrupt("read", misfit))
    }

    async fn revision(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        self.revision_of(name).await
    }

    async fn rollouts(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.names(self.keys.rollouts()).await
    }

    async fn save_with(
        &self,
        rollout: &Rollout,
        from: Revision,
        commands: Option<&Commands>,
    ) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        // What would be refused is not to enlist anything.
        match self.revision_of(name).await? {
            Some(revision) if revision == from => self.enlist(rollout).await?,
            _ => {}
        }
        let commands = commands.map(serde_json::to_vec).transpose();
        let commands = commands.expect("commands are plain data");
        let run = record_of(self.on(name, &SCRIPTS.save), rollout)
            .arg(commands.unwrap_or_default())
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

    async fn note(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let name = &rollout.spec.name;
        let run = self
            .on(name, &SCRIPTS.note)
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
        let commands = commands.map_err(|misfit| subject.corrupt(verb, misfit))?;
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
        let strike = self
            .on_key(self.keys.rollouts(), &SCRIPTS.strike)
            .arg(name.as_str())
            .arg(listed.unwrap_or_default());
        self.run(verb, subject, &strike).await?;
        Ok(())
    }
}

#[async_trait]
impl Lines for RedisStore {
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
}

/// A record, with what is stored beside it.
fn record_of(run: Run, rollout: &Rollout) -> Run {
    let record = serde_json::to_vec(rollout).expect("a rollout's record is plain data");
    let stance = rollout.stance();
    let described = serde_json::to_vec(&stance).expect("a stance is plain data");
    let adding = stance.adding.map(|by| by.to_string());
    run.arg(record)
        .arg(rollout.id.to_string())
        .arg(rollout.version.0)
        .arg(rollout.lineage.0)
        .arg(rollout.plan_id.0)
        .arg(described)
        .arg(u8::from(stance.wanted == Wanted::GoOn))
        .arg(adding.unwrap_or_default())
        .arg(notes_of(rollout))
}

fn notes_of(rollout: &Rollout) -> Vec<u8> {
    serde_json::to_vec(&rollout.notes).expect("notes are plain data")
}

/// A rollout from its record and the notes on it.
fn rollout_of(record: &[u8], notes: &[u8]) -> Result<Rollout, Misfit> {
    let mut rollout: Rollout = json(record, "the record")?;
    rollout.notes = json(notes, "the notes")?;
    Ok(rollout)
}
