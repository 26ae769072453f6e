//! The rollout registry.
//!
//! The names of the active rollouts are in a single sorted set; in a cluster, most rollouts are on
//! another server. The score of a name is the newest version stored *or about to be stored*, and is
//! written before the record. So deactivating a version can overlook neither a newer record nor a
//! record about to be written: a name with a higher score stays. And a snapshot of all active
//! rollouts shows in a single call which records have changed.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use redis::cmd;
use twincast_core::batch::Held;
use twincast_core::ids::{Holder, RolloutId, RolloutName, Version};
use twincast_core::ports::{Halt, RegistrySnapshot, RolloutRegistry, StoreError};
use twincast_core::time::ms;

use super::{RedisStore, Subject};
use crate::reply::json;
use crate::scripts::SCRIPTS;

#[async_trait]
impl RolloutRegistry for RedisStore {
    async fn active(&self) -> Result<Vec<RolloutName>, StoreError> {
        self.names(self.keys.active()).await
    }

    async fn deactivate(&self, name: &RolloutName, version: Version) -> Result<(), StoreError> {
        let stored = self.revision_of(name).await?;
        if stored.map(|revision| revision.version) != Some(version) {
            return Ok(());
        }
        let run = self
            .on_key(self.keys.active(), &SCRIPTS.deactivate)
            .arg(name.as_str())
            .arg(version.0);
        self.run("deactivate", Subject::Rollout(name), &run).await?;
        Ok(())
    }

    async fn snapshot(&self) -> Result<RegistrySnapshot, StoreError> {
        let keys = [self.keys.active(), self.keys.claims(), self.keys.halt()];
        let run = SCRIPTS.snapshot.on(&keys, &self.now());
        let (verb, subject) = ("read the registry of", Subject::Rollouts);
        let reply = self.run(verb, subject, &run).await?;
        reply
            .registry()
            .map_err(|invalid| subject.corrupt(verb, invalid))
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
            .map_err(|invalid| subject.corrupt(verb, invalid))
    }

    async fn release_claim(&self, name: &RolloutName, holder: &Holder) -> Result<(), StoreError> {
        let run = self
            .on_key(self.keys.claims(), &SCRIPTS.release_claim)
            .arg(name.as_str())
            .arg(holder.as_str());
        self.run("release the claim on", Subject::Rollout(name), &run)
            .await?;
        Ok(())
    }

    async fn published(&self, name: &RolloutName) -> Result<Version, StoreError> {
        let get = cmd("HGET")
            .arg(self.keys.registry(name))
            .arg("published")
            .to_owned();
        let subject = Subject::Rollout(name);
        let version: Option<u64> = self
            .ask("read the published version of", subject, &get)
            .await?;
        Ok(Version(version.unwrap_or(0)))
    }

    async fn set_published(
        &self,
        name: &RolloutName,
        id: RolloutId,
        version: Version,
    ) -> Result<(), StoreError> {
        let keys = [self.keys.registry(name), self.keys.head(name)];
        let run = SCRIPTS
            .set_published
            .on(&keys, &self.now())
            .arg(id.to_string())
            .arg(version.0);
        self.run(
            "save the published version of",
            Subject::Rollout(name),
            &run,
        )
        .await?;
        Ok(())
    }

    async fn halted(&self) -> Result<Option<Halt>, StoreError> {
        let (verb, subject) = ("read the halt of", Subject::Rollouts);
        let get = cmd("GET").arg(self.keys.halt()).to_owned();
        let stored: Option<Vec<u8>> = self.ask(verb, subject, &get).await?;
        let halt = stored.map(|halt| json(&halt, "the halt")).transpose();
        halt.map_err(|invalid| subject.corrupt(verb, invalid))
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
