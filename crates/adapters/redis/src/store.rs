//! The ports on Redis: each call is a single script, or a few commands in an order that tolerates a
//! crash in between.

mod batches;
mod hubs;
mod registry;
mod rollouts;

use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use redis::{Cmd, FromRedisValue, RedisError, Value, from_redis_value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use twincast_core::ids::{
    BatchId, ConcurrencyGroup, Holder, HubName, Lineage, Revision, RolloutName, Version,
};
use twincast_core::ports::StoreError;
use twincast_core::reports::Reported;
use twincast_core::rollout::Adding;
use twincast_core::time::{Timestamp, ms};

use crate::check::check;
use crate::error::{ConnectError, InvalidData, store_error};
use crate::keys::{FORMAT, Keys};
use crate::link::Link;
use crate::reply::{self, Refusal, Reply};
use crate::scripts::{Run, SCRIPTS, Script};
use crate::settings::{Settings, TimeSource};

/// The number of concurrent look-ups of records when names are listed.
const MAX_CONCURRENT_LOOKUPS: usize = 64;

/// The store and the rollout registry on a Redis or a Redis Cluster; see the crate's documentation.
pub struct RedisStore {
    link: Link,
    keys: Keys,
    time: TimeSource,
    /// The time after which an acknowledged write is durable.
    durable_after: Duration,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

/// The object of a call, for errors.
#[derive(Debug, Clone, Copy)]
enum Subject<'a> {
    Rollouts,
    Rollout(&'a RolloutName),
    Adding(&'a RolloutName, Adding),
    Batch(&'a RolloutName, BatchId),
    Hub(&'a HubName),
    GroupQueue(&'a ConcurrencyGroup),
}

impl RedisStore {
    /// Connects, and checks that the server (each server of a cluster) is suitable: recent enough,
    /// runs scripts, and evicts no keys of the store. Logs a warning for a server without
    /// persistence.
    ///
    /// # Errors
    /// [`ConnectError`], which names the remedy.
    pub async fn connect(settings: &Settings) -> Result<Self, ConnectError> {
        let servers = settings.addresses()?.shown();
        let link = Link::new(settings)?;
        let durable_after = check(&link, settings, &servers).await?;
        Ok(Self {
            link,
            durable_after: settings.durable_after.unwrap_or(durable_after),
            keys: Keys::new(&settings.prefix),
            time: settings.time.clone(),
        })
    }

    /// Checks that Redis answers and accepts writes; in a cluster, a single node.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer, [`StoreError::NotWritable`] when
    /// Redis is full or the user may not write.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let set = redis::cmd("SET").arg(self.keys.ping()).arg(1).to_owned();
        self.ask::<String>("check access to", Subject::Rollouts, &set)
            .await?;
        Ok(())
    }

    /// Returns the server's time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server does not answer.
    pub async fn time(&self) -> Result<Timestamp, StoreError> {
        let (verb, subject) = ("read the time of", Subject::Rollouts);
        let time: (u64, u64) = self.ask(verb, subject, &redis::cmd("TIME")).await?;
        Ok(Timestamp(time.0 * 1_000 + time.1 / 1_000))
    }

    /// Returns the time argument of scripts: empty for the server's own time.
    fn now(&self) -> String {
        match &self.time {
            TimeSource::Server => String::new(),
            TimeSource::Given(clock) => clock.now().0.to_string(),
        }
    }

    /// Prepares a run of a script on a rollout's keys.
    fn on(&self, name: &RolloutName, script: &'static Script) -> Run {
        script.on(&self.keys.rollout(name), &self.now())
    }

    /// Prepares a run of a script on a single key.
    fn on_key(&self, key: String, script: &'static Script) -> Run {
        script.on(&[key], &self.now())
    }

    /// Runs a script, and converts refusals to errors.
    async fn run(&self, verb: &str, subject: Subject<'_>, run: &Run) -> Result<Reply, StoreError> {
        let answer = self.answer(verb, subject, run).await?;
        answer.map_err(|refusal| subject.refused(refusal))
    }

    /// Runs a script.
    async fn answer(
        &self,
        verb: &str,
        subject: Subject<'_>,
        run: &Run,
    ) -> Result<Result<Reply, Refusal>, StoreError> {
        let answered = self.link.run(run).await;
        let value = answered.map_err(|error| subject.failed(verb, error))?;
        reply::read(value).map_err(|invalid| subject.corrupt(verb, invalid))
    }

    /// Stores a report about a hub in the hash `key`. `at_ago` is the age of the reported moment,
    /// if any.
    async fn report(
        &self,
        key: String,
        verb: &str,
        hub: &HubName,
        by: &Holder,
        at_ago: Option<Duration>,
        state: &impl Serialize,
    ) -> Result<(), StoreError> {
        let state = serde_json::to_string(state).expect("a state is plain data");
        let at_ago = at_ago.map(|ago| ms(ago).to_string());
        let run = self
            .on_key(key, &SCRIPTS.report)
            .arg(by.as_str())
            .arg(at_ago.unwrap_or_default())
            .arg(state);
        self.run(verb, Subject::Hub(hub), &run).await?;
        Ok(())
    }

    /// Returns the reports about a hub in the hash `key`.
    async fn reports<S: DeserializeOwned, T: From<Reported<S>>>(
        &self,
        key: String,
        verb: &str,
        hub: &HubName,
    ) -> Result<Vec<T>, StoreError> {
        let subject = Subject::Hub(hub);
        let run = self.on_key(key, &SCRIPTS.reports);
        let reports = self.run(verb, subject, &run).await?.reports();
        let reports = reports.map_err(|invalid| subject.corrupt(verb, invalid))?;
        Ok(reports.into_iter().map(T::from).collect())
    }

    /// Sends a command outside of scripts.
    async fn ask<T: FromRedisValue>(
        &self,
        verb: &str,
        subject: Subject<'_>,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let answered = self.link.query(command).await;
        let value: Value = answered.map_err(|error| subject.failed(verb, error))?;
        from_redis_value(value)
            .map_err(|error| subject.corrupt(verb, InvalidData(error.to_string())))
    }

    /// Returns a rollout's revision.
    async fn revision_of(&self, name: &RolloutName) -> Result<Option<Revision>, StoreError> {
        let get = redis::cmd("HMGET")
            .arg(self.keys.head(name))
            .arg(&["version", "lineage"])
            .to_owned();
        let (version, lineage): (Option<u64>, Option<u64>) = self
            .ask("read the revision of", Subject::Rollout(name), &get)
            .await?;
        Ok(version.zip(lineage).map(|(version, lineage)| Revision {
            version: Version(version),
            lineage: Lineage(lineage),
        }))
    }

    /// Returns the names in a sorted set, ascending. A name without a record is omitted: a crash
    /// between writing the name and the record leaves such a name.
    async fn names(&self, key: String) -> Result<Vec<RolloutName>, StoreError> {
        let range = redis::cmd("ZRANGE").arg(key).arg(0).arg(-1).to_owned();
        let listed: Vec<String> = self.ask("list", Subject::Rollouts, &range).await?;
        let mut names = Vec::new();
        for text in listed {
            match RolloutName::new(text) {
                Ok(name) => names.push(name),
                // Not a name of this store; the other names are.
                Err(error) => tracing::debug!(%error, "listed rollout ignored"),
            }
        }
        names.sort_unstable();
        let looked_up = futures::stream::iter(names).map(async |name| {
            match self.revision_of(&name).await {
                Ok(revision) => Ok(revision.map(|_| name)),
                // The record exists. The reader of the record reports the damage.
                Err(StoreError::Corrupt { .. }) => Ok(Some(name)),
                Err(error) => Err(error),
            }
        });
        let mut looked_up = looked_up.buffered(MAX_CONCURRENT_LOOKUPS);
        let mut stored = Vec::new();
        while let Some(name) = looked_up.next().await {
            stored.extend(name?);
        }
        Ok(stored)
    }
}

fn newer(what: String, found: u32) -> StoreError {
    StoreError::Newer {
        what,
        found,
        known: FORMAT,
    }
}

impl Subject<'_> {
    fn failed(self, verb: &str, error: RedisError) -> StoreError {
        store_error(format!("{verb} {self}"), error)
    }

    fn corrupt(self, verb: &str, invalid: InvalidData) -> StoreError {
        StoreError::Corrupt {
            doing: format!("{verb} {self}"),
            source: Box::new(invalid),
        }
    }

    fn refused(self, refusal: Refusal) -> StoreError {
        let (rollout, batch) = self.parts();
        let what = match refusal {
            Refusal::NoRollout => rollout,
            Refusal::NoBatch => batch,
            Refusal::Superseded => {
                let what = self.to_string();
                return StoreError::Superseded { what };
            }
            Refusal::Regressed(found) => {
                let what = format!("{rollout}: {found}");
                return StoreError::Regressed { what };
            }
            Refusal::Newer(found) => return newer(rollout, found),
        };
        StoreError::NotFound { what }
    }

    /// Describes the rollout and the batch of the subject.
    fn parts(self) -> (String, String) {
        let rollout = |name| Subject::Rollout(name).to_string();
        match self {
            Self::Batch(name, _) => (rollout(name), self.to_string()),
            Self::Adding(name, _) => (rollout(name), self.to_string()),
            Self::Rollouts | Self::Rollout(_) | Self::Hub(_) | Self::GroupQueue(_) => {
                (self.to_string(), self.to_string())
            }
        }
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollouts => f.write_str("the rollouts"),
            Self::Rollout(name) => write!(f, "rollout {name}"),
            Self::Adding(name, by) => write!(f, "{by} of rollout {name}"),
            Self::Batch(name, batch) => write!(f, "batch {batch} of rollout {name}"),
            Self::Hub(hub) => write!(f, "hub {hub}"),
            Self::GroupQueue(group) => write!(f, "the queue of concurrency group {group}"),
        }
    }
}
