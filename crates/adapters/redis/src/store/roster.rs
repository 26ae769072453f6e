//! The roster.
//!
//! The names of the active rollouts are in one sorted set, on another server of a cluster than
//! most rollouts. A name's score is the newest version that was stored *or is about to be*, which
//! is noted before the record is written. So whoever retires a version can neither overlook a
//! newer record nor one that is on its way: the name stays if its score is higher. And whoever looks at all of them learns in
//! one call which records have changed.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use redis::cmd;
use twincast_core::batch::Held;
use twincast_core::ids::{Holder, RolloutId, RolloutName, Version};
use twincast_core::ports::{Halt, Roster, RosterLook, StoreError};
use twincast_core::time::ms;

use super::{RedisStore, Subject};
use crate::reply::json;
use crate::scripts::SCRIPTS;

#[async_trait]
impl Roster for RedisStore {
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.names(self.keys.active()).await
    }

    async fn retire(&self, name: &RolloutName, version: Version) -> Result<(), StoreError> {
        let stored = self.revision_of(name).await?;
        if stored.map(|revision| revision.version) != Some(version) {
            return Ok(());
        }
        let run = self
            .on_key(self.keys.active(), &SCRIPTS.retire)
            .arg(name.as_str())
            .arg(version.0);
        self.run("retire", Subject::Rollout(name), &run).await?;
        Ok(())
    }

    async fn look(&self) -> Result<RosterLook, StoreError> {
        let keys = [self.keys.active(), self.keys.claims(), self.keys.halt()];
        let run = SCRIPTS.look.on(&keys, &self.now());
        let (verb, subject) = ("look at", Subject::Rollouts);
        let reply = self.run(verb, subject, &run).await?;
        reply
            .roster()
            .map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn claim(
        &self,
        names: &[RolloutName],
        holder: &Holder,
        ttl: Duration,
    ) -> Result<BTreeMap<RolloutName, Held>, StoreError> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let names: Vec<_> = names.iter().map(RolloutName::as_str).collect();
        let run = self
            .on_key(self.keys.claims(), &SCRIPTS.claim)
            .arg(holder.as_str())
            .arg(ms(ttl))
            .arg(names);
        let (verb, subject) = ("claim", Subject::Rollouts);
        let reply = self.run(verb, subject, &run).await?;
        reply
            .claims()
            .map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn disclaim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError> {
        let run = self
            .on_key(self.keys.claims(), &SCRIPTS.disclaim)
            .arg(name.as_str())
            .arg(holder.as_str());
        self.run("disclaim", Subject::Rollout(name), &run).await?;
        Ok(())
    }

    async fn announced(&self, name: &RolloutName) -> Result<Version, StoreError> {
        let get = cmd("HGET")
            .arg(self.keys.roster(name))
            .arg("announced")
            .to_owned();
        let subject = Subject::Rollout(name);
        let version: Option<u64> = self
            .ask("read what was announced of", subject, &get)
            .await?;
        Ok(Version(version.unwrap_or(0)))
    }

    async fn set_announced(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError> {
        let keys = [self.keys.roster(name), self.keys.head(name)];
        let run = SCRIPTS
            .set_announced
            .on(&keys, &self.now())
            .arg(id.to_string())
            .arg(version.0);
        self.run("note what was announced of", Subject::Rollout(name), &run)
            .await?;
        Ok(())
    }

    async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        let (verb, subject) = ("read the halt of", Subject::Rollouts);
        let get = cmd("GET").arg(self.keys.halt()).to_owned();
        let stored: Option<Vec<u8>> = self.ask(verb, subject, &get).await?;
        let halt = stored.map(|halt| json(&halt, "the halt")).transpose();
        halt.map_err(|misfit| subject.corrupt(verb, misfit))
    }

    async fn set_halted(&self, halt: Option<&Halt>) -> Result<(), StoreError> {
        let key = self.keys.halt();
        let command = match halt {
            Some(halt) => {
                let halt = serde_json::to_vec(halt).expect("a halt is plain data");
                cmd("SET").arg(key).arg(halt).to_owned()
            }
            None => cmd("DEL").arg(key).to_owned(),
        };
        self.ask::<redis::Value>("halt", Subject::Rollouts, &command)
            .await?;
        Ok(())
    }
}
