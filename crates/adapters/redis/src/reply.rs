//! The answers of scripts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use redis::{FromRedisValue, Value, from_redis_value};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use twincast_core::batch::{BatchStatus, Held};
use twincast_core::budget::{BudgetGroup, GroupProgress};
use twincast_core::ids::{
    BatchId, BatchVersion, Holder, HubName, RolloutName, StageIndex, Version,
};
use twincast_core::outcome::{Counts, OUTCOMES, Outcome};
use twincast_core::permits::LimiterState;
use twincast_core::plan::{BatchHeader, Checksum, DeviceList};
use twincast_core::ports::{Committed, Loaded, RegistryEntry, RegistrySnapshot, Tally};
use twincast_core::reports::Reported;
use twincast_core::rollout::Directive;
use twincast_core::time::Timestamp;

use crate::error::InvalidData;
use crate::row::{self, Row};

/// Why a script did nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoRollout,
    NoBatch,
    Superseded,
    Regressed(String),
    Newer(u32),
}

/// The remaining values of an answer, from front to back.
#[derive(Debug)]
pub(crate) struct Reply(std::vec::IntoIter<Value>);

/// Reads an answer, or a refusal in place of an answer.
pub(crate) fn read(value: Value) -> Result<Result<Reply, Refusal>, InvalidData> {
    let mut reply = Reply::of(value)?;
    let refusal = match reply.next::<String>()?.as_str() {
        "OK" => return Ok(Ok(reply)),
        "NO_ROLLOUT" => Refusal::NoRollout,
        "NO_BATCH" => Refusal::NoBatch,
        "SUPERSEDED" => Refusal::Superseded,
        "REGRESSED" => Refusal::Regressed(reply.next()?),
        "NEWER" => Refusal::Newer(reply.next()?),
        other => return Err(InvalidData(format!("a script answered {other:?}"))),
    };
    Ok(Err(refusal))
}

impl Reply {
    fn of(value: Value) -> Result<Self, InvalidData> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            _ => Err(InvalidData("a script's answer is not a list".into())),
        }
    }

    /// Returns the next value.
    pub(crate) fn next<T: FromRedisValue>(&mut self) -> Result<T, InvalidData> {
        let value = self
            .0
            .next()
            .ok_or_else(|| InvalidData("a script's answer is too short".into()))?;
        from_redis_value(value).map_err(|error| InvalidData(error.to_string()))
    }

    /// Returns the next value, if any.
    pub(crate) fn next_if_any<T: FromRedisValue>(&mut self) -> Option<Result<T, InvalidData>> {
        (!self.is_empty()).then(|| self.next())
    }

    fn next_list(&mut self) -> Result<Self, InvalidData> {
        Self::of(self.next()?)
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    /// Reads the rollout registry. Foreign names and claims are skipped.
    pub(crate) fn registry(mut self) -> Result<RegistrySnapshot, InvalidData> {
        let now = Timestamp(self.next()?);
        let listed: Vec<(String, u64)> = self.next()?;
        let claims: BTreeMap<String, String> = self.next()?;
        let halt = self.next::<Option<Vec<u8>>>()?;
        let held = |claim: &String| {
            let (until, by) = claim.split_once(' ')?;
            let (until, by) = (Timestamp(until.parse().ok()?), Holder::new(by).ok()?);
            (until > now).then_some(Held { by, until })
        };
        let listed = listed.into_iter().filter_map(|(name, newest)| {
            let held = claims.get(&name).and_then(held);
            let newest = Version(newest);
            Some((RolloutName::new(name).ok()?, RegistryEntry { newest, held }))
        });
        Ok(RegistrySnapshot {
            active: listed.collect(),
            halt: halt.map(|halt| json(&halt, "the halt")).transpose()?,
        })
    }

    /// Reads the rollouts claimed by other holders.
    pub(crate) fn claims(mut self) -> Result<BTreeMap<RolloutName, Held>, InvalidData> {
        let mut claims = BTreeMap::new();
        while let Some(name) = self.next_if_any::<String>() {
            let name = name?;
            let name =
                RolloutName::new(&name).map_err(|e| InvalidData(format!("{name:?}: {e}")))?;
            let (by, until) = (holder(&self.next::<String>()?)?, self.next()?);
            let until = Timestamp(until);
            claims.insert(name, Held { by, until });
        }
        Ok(claims)
    }

    /// Reads the checksum of a rollout's batches.
    pub(crate) fn checksum(mut self) -> Result<Checksum, InvalidData> {
        Ok(Checksum {
            batches: self.next()?,
            devices: self.next()?,
            sum: self.next()?,
        })
    }

    /// Reads the state of a limiter.
    pub(crate) fn limiter(mut self) -> Result<LimiterState, InvalidData> {
        let (factor, ahead) = (self.next()?, Duration::from_micros(self.next()?));
        let names: Vec<String> = self.next()?;
        let asking = names.into_iter().map(|name| {
            RolloutName::new(&name).map_err(|error| InvalidData(format!("{name:?}: {error}")))
        });
        let mut asking = asking.collect::<Result<Vec<_>, _>>()?;
        asking.sort_unstable();
        Ok(LimiterState {
            factor,
            ahead,
            asking,
        })
    }

    /// Reads the processes' reports on a hub.
    pub(crate) fn reports<S: DeserializeOwned>(mut self) -> Result<Vec<Reported<S>>, InvalidData> {
        let now = Timestamp(self.next()?);
        let mut stored = self.next_list()?;
        let mut reports = Vec::new();
        while let Some(name) = stored.next_if_any::<String>() {
            let (name, report) = (name?, stored.next::<String>()?);
            let invalid = || InvalidData(format!("a report of {name} is {report:?}"));
            let mut parts = report.splitn(3, ' ');
            let mut part = || parts.next().ok_or_else(invalid);
            let ago = |at: &str| {
                let at = at.parse().map_err(|_| invalid())?;
                Ok::<_, InvalidData>(now.since(Timestamp(at)))
            };
            let reported_ago = ago(part()?)?;
            let at_ago = match part()? {
                "-" => None,
                at => Some(ago(at)?),
            };
            reports.push(Reported {
                by: holder(&name)?,
                at_ago,
                reported_ago,
                state: serde_json::from_str(part()?).map_err(|_| invalid())?,
            });
        }
        Ok(reports)
    }

    /// Reads a page of batches, each with the time since which batch and plan are stored, and the
    /// server's time.
    pub(crate) fn page(
        mut self,
    ) -> Result<(Vec<(BatchStatus, Timestamp)>, Timestamp), InvalidData> {
        let (version, now) = (Version(self.next()?), Timestamp(self.next()?));
        let plan_completed_at = Timestamp(self.next()?);
        let headers: Vec<Vec<u8>> = self.next()?;
        let rows: Vec<String> = self.next()?;
        let page = headers.iter().zip(&rows).map(|(header, row)| {
            let header = json(header, "a batch's header")?;
            let row = Row::read(row)?;
            let (counts, added_at) = (row.counts, row.added_at);
            let status = BatchStatus::of(
                header,
                counts,
                &row.lease_state,
                row.budget_usage,
                version,
                now,
            );
            Ok((status, added_at.max(plan_completed_at)))
        });
        Ok((page.collect::<Result<_, InvalidData>>()?, now))
    }

    /// Reads a batch, with the devices if the manifest is included.
    pub(crate) fn batch(mut self) -> Result<Loaded, InvalidData> {
        let now = Timestamp(self.next()?);
        let rollout = json(&self.next::<Vec<u8>>()?, "the rollout's control")?;
        let (plan_completed_at, budget_stamp) = (Timestamp(self.next()?), self.next()?);
        let header: BatchHeader = json(&self.next::<Vec<u8>>()?, "a batch's header")?;
        let row = Row::read(&self.next::<String>()?)?;
        let version = row.version;
        let (state, manifest): (Vec<u8>, Vec<u8>) = (self.next()?, self.next()?);
        let devices = (!manifest.is_empty()).then(|| unpack(&manifest, header.devices));
        Ok(Loaded {
            batch: row::batch(header, row, &state)?,
            version,
            devices: devices.transpose()?,
            rollout,
            plan_completed_at,
            budget_stamp,
            now,
        })
    }

    /// Reads the result of a change of a batch.
    pub(crate) fn committed(mut self) -> Result<Committed, InvalidData> {
        let Some(version) = self.next::<Option<u64>>()? else {
            let loaded = (!self.is_empty()).then(|| self.batch()).transpose()?;
            return Ok(Committed::Overtaken(loaded.map(Box::new)));
        };
        Ok(Committed::Done {
            version: BatchVersion(version),
            directive: match self.next::<u8>()? {
                1 => Directive::Continue,
                _ => Directive::Stop,
            },
            now: Timestamp(self.next()?),
        })
    }

    /// Reads the progress of budget groups.
    pub(crate) fn in_progress(
        mut self,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, InvalidData> {
        let now = Timestamp(self.next()?);
        let progress = groups.iter().map(|group| {
            let devices = self.next()?;
            let numbers: Vec<u32> = self.next()?;
            let rows: Vec<String> = self.next()?;
            let counted = numbers.into_iter().zip(&rows).map(|(number, row)| {
                let row = Row::read(row)?;
                Ok((BatchId(number), row.budget_usage, row.counts))
            });
            let counted = counted.collect::<Result<Vec<_>, InvalidData>>()?;
            Ok(GroupProgress::of(devices, counted, group.silent_ms, now))
        });
        progress.collect()
    }

    /// Reads the tallies, by stage and hub.
    pub(crate) fn tallies(mut self) -> Result<Vec<Tally>, InvalidData> {
        let mut sums = BTreeMap::<(StageIndex, HubName), [u64; OUTCOMES]>::new();
        let mut stored = self.next_list()?;
        while !stored.is_empty() {
            let (field, devices) = (stored.next::<String>()?, stored.next()?);
            let (stage, hub, outcome) = tally(&field)
                .ok_or_else(|| InvalidData(format!("a tally has the invalid key {field:?}")))?;
            sums.entry((stage, hub)).or_default()[outcome as usize] = devices;
        }
        sums.into_iter()
            .map(|((stage, hub), mut numbers)| {
                // The stored tally for pending is the number of all devices.
                let [pending, others @ ..] = &mut numbers;
                *pending = pending.checked_sub(others.iter().sum()).ok_or_else(|| {
                    InvalidData(format!(
                        "the tallies of hub {hub} exceed the number of its devices"
                    ))
                })?;
                Ok(Tally {
                    stage,
                    hub,
                    counts: Counts::from(numbers),
                })
            })
            .collect()
    }
}

fn tally(field: &str) -> Option<(StageIndex, HubName, Outcome)> {
    let mut parts = field.split(':');
    let stage = StageIndex(parts.next()?.parse().ok()?);
    let hub = HubName::new(parts.next()?).ok()?;
    let outcome = Outcome::from_code(parts.next()?.parse().ok()?)?;
    Some((stage, hub, outcome))
}

fn holder(text: &str) -> Result<Holder, InvalidData> {
    Holder::new(text).map_err(|error| InvalidData(error.to_string()))
}

/// Parses stored JSON.
pub(crate) fn json<T: for<'de> Deserialize<'de>>(
    text: &[u8],
    what: &str,
) -> Result<T, InvalidData> {
    serde_json::from_slice(text)
        .map_err(|error| InvalidData(format!("{what} cannot be read: {error}")))
}

/// Encodes a manifest for storage: the ids, separated by newlines, deflated. Random ids have five
/// bits per character, the limit of any compression; the fastest level reaches this limit.
pub(crate) fn pack(devices: &DeviceList) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(devices.as_text().as_bytes());
    packed
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

fn unpack(packed: &[u8], devices: u32) -> Result<DeviceList, InvalidData> {
    /// The 128 characters of an id, and a newline.
    const MAX_ID_BYTES: u64 = 129;
    let mut text = String::new();
    let read = DeflateDecoder::new(packed)
        .take(u64::from(devices) * MAX_ID_BYTES)
        .read_to_string(&mut text);
    read.map_err(|error| InvalidData(format!("a manifest cannot be unpacked: {error}")))?;
    let list = DeviceList::from_text(&text).map_err(|error| InvalidData(error.to_string()))?;
    if list.len() == devices as usize {
        Ok(list)
    } else {
        let found = list.len();
        Err(InvalidData(format!(
            "a manifest has {found} devices instead of {devices}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use twincast_core::ids::DeviceId;

    use super::*;

    #[test]
    fn manifests_read_back_and_damage_is_detected() {
        let mut list = DeviceList::default();
        for n in 0..1_000 {
            list.push(&DeviceId::new(format!("device-{n}")).unwrap());
        }
        let packed = pack(&list);
        assert_eq!(unpack(&packed, 1_000).unwrap(), list);
        for (bytes, devices) in [
            (&packed[..], 999),
            (&packed[..], 1_001),
            (&packed[1..], 1_000),
        ] {
            assert!(unpack(bytes, devices).is_err());
        }
        assert_eq!(unpack(&pack(&DeviceList::default()), 0).unwrap().len(), 0);
    }

    #[test]
    fn malformed_replies_count_as_damage() {
        for value in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
        ] {
            assert!(read(value).is_err());
        }
    }
}
