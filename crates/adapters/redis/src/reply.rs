//! What the scripts answer, and what the words in it mean.

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
use twincast_core::ports::{Committed, Listed, Loaded, RosterLook, Tally};
use twincast_core::reports::Reported;
use twincast_core::rollout::Wanted;
use twincast_core::time::Timestamp;

use crate::error::Misfit;
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

/// The rest of an answer, from front to back.
#[derive(Debug)]
pub(crate) struct Reply(std::vec::IntoIter<Value>);

/// An answer, or a refusal in its place.
pub(crate) fn read(value: Value) -> Result<Result<Reply, Refusal>, Misfit> {
    let mut reply = Reply::of(value)?;
    let refusal = match reply.next::<String>()?.as_str() {
        "OK" => return Ok(Ok(reply)),
        "NO_ROLLOUT" => Refusal::NoRollout,
        "NO_BATCH" => Refusal::NoBatch,
        "SUPERSEDED" => Refusal::Superseded,
        "REGRESSED" => Refusal::Regressed(reply.next()?),
        "NEWER" => Refusal::Newer(reply.next()?),
        other => return Err(Misfit(format!("a script answered {other:?}"))),
    };
    Ok(Err(refusal))
}

impl Reply {
    fn of(value: Value) -> Result<Self, Misfit> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            _ => Err(Misfit("a script's answer is no list".into())),
        }
    }

    /// The next value.
    pub(crate) fn next<T: FromRedisValue>(&mut self) -> Result<T, Misfit> {
        let value = self
            .0
            .next()
            .ok_or_else(|| Misfit("a script's answer is too short".into()))?;
        from_redis_value(value).map_err(|error| Misfit(error.to_string()))
    }

    /// The next value, if there is one.
    pub(crate) fn next_if_any<T: FromRedisValue>(&mut self) -> Option<Result<T, Misfit>> {
        (!self.is_empty()).then(|| self.next())
    }

    fn next_list(&mut self) -> Result<Self, Misfit> {
        Self::of(self.next()?)
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    /// What a look at the roster shows. Names and claims that are nothing of ours are passed over: the others are.
    pub(crate) fn roster(mut self) -> Result<RosterLook, Misfit> {
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
            Some((RolloutName::new(name).ok()?, Listed { newest, held }))
        });
        Ok(RosterLook {
            active: listed.collect(),
            halt: halt.map(|halt| json(&halt, "the halt")).transpose()?,
        })
    }

    /// Rollouts that others drive.
    pub(crate) fn claims(mut self) -> Result<BTreeMap<RolloutName, Held>, Misfit> {
        let mut claims = BTreeMap::new();
        while let Some(name) = self.next_if_any::<String>() {
            let name = name?;
            let name = RolloutName::new(&name).map_err(|e| Misfit(format!("{name:?}: {e}")))?;
            let (by, until) = (holder(&self.next::<String>()?)?, self.next()?);
            let until = Timestamp(until);
            claims.insert(name, Held { by, until });
        }
        Ok(claims)
    }

    /// The checksum of a rollout's batches.
    pub(crate) fn checksum(mut self) -> Result<Checksum, Misfit> {
        Ok(Checksum {
            batches: self.next()?,
            devices: self.next()?,
            sum: self.next()?,
        })
    }

    /// What a limiter does.
    pub(crate) fn limiter(mut self) -> Result<LimiterState, Misfit> {
        let (factor, ahead) = (self.next()?, Duration::from_micros(self.next()?));
        let names: Vec<String> = self.next()?;
        let asking = names.into_iter().map(|name| {
            RolloutName::new(&name).map_err(|error| Misfit(format!("{name:?}: {error}")))
        });
        let mut asking = asking.collect::<Result<Vec<_>, _>>()?;
        asking.sort_unstable();
        Ok(LimiterState {
            factor,
            ahead,
            asking,
        })
    }

    /// What processes report about a hub.
    pub(crate) fn reports<S: DeserializeOwned>(mut self) -> Result<Vec<Reported<S>>, Misfit> {
        let now = Timestamp(self.next()?);
        let mut stored = self.next_list()?;
        let mut reports = Vec::new();
        while let Some(name) = stored.next_if_any::<String>() {
            let (name, report) = (name?, stored.next::<String>()?);
            let misfit = || Misfit(format!("a report of {name} is {report:?}"));
            let mut parts = report.splitn(3, ' ');
            let mut part = || parts.next().ok_or_else(misfit);
            let ago = |at: &str| {
                let at = at.parse().map_err(|_| misfit())?;
                Ok::<_, Misfit>(now.since(Timestamp(at)))
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
                state: serde_json::from_str(part()?).map_err(|_| misfit())?,
            });
        }
        Ok(reports)
    }

    /// A page of batches, and of each since when it and its plan are stored; and the time.
    pub(crate) fn page(mut self) -> Result<(Vec<(BatchStatus, Timestamp)>, Timestamp), Misfit> {
        let (version, now) = (Version(self.next()?), Timestamp(self.next()?));
        let whole_at = Timestamp(self.next()?);
        let headers: Vec<Vec<u8>> = self.next()?;
        let rows: Vec<String> = self.next()?;
        let page = headers.iter().zip(&rows).map(|(header, row)| {
            let header = json(header, "a batch's header")?;
            let row = Row::read(row)?;
            let (counts, added_at) = (row.counts, row.added_at);
            let status = BatchStatus::of(header, counts, &row.tenancy, row.begun, version, now);
            Ok((status, added_at.max(whole_at)))
        });
        Ok((page.collect::<Result<_, Misfit>>()?, now))
    }

    /// A batch, with its devices if its manifest is there.
    pub(crate) fn batch(mut self) -> Result<Loaded, Misfit> {
        let now = Timestamp(self.next()?);
        let rollout = json(&self.next::<Vec<u8>>()?, "how the rollout stands")?;
        let (whole_at, begun) = (Timestamp(self.next()?), self.next()?);
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
            whole_at,
            begun,
            now,
        })
    }

    /// What became of a change of a batch.
    pub(crate) fn committed(mut self) -> Result<Committed, Misfit> {
        let Some(version) = self.next::<Option<u64>>()? else {
            let told = (!self.is_empty()).then(|| self.batch()).transpose()?;
            return Ok(Committed::Overtaken(told.map(Box::new)));
        };
        Ok(Committed::Done {
            version: BatchVersion(version),
            wanted: match self.next::<u8>()? {
                1 => Wanted::GoOn,
                _ => Wanted::Stop,
            },
            now: Timestamp(self.next()?),
        })
    }

    /// What budgets count of these groups.
    pub(crate) fn in_progress(
        mut self,
        groups: &[BudgetGroup],
    ) -> Result<Vec<GroupProgress>, Misfit> {
        let now = Timestamp(self.next()?);
        let progress = groups.iter().map(|group| {
            let devices = self.next()?;
            let numbers: Vec<u32> = self.next()?;
            let rows: Vec<String> = self.next()?;
            let counted = numbers.into_iter().zip(&rows).map(|(number, row)| {
                let row = Row::read(row)?;
                Ok((BatchId(number), row.begun, row.counts))
            });
            let counted = counted.collect::<Result<Vec<_>, Misfit>>()?;
            Ok(GroupProgress::of(devices, counted, group.silent_ms, now))
        });
        progress.collect()
    }

    /// Tallies, by stage and hub.
    pub(crate) fn tallies(mut self) -> Result<Vec<Tally>, Misfit> {
        let mut sums = BTreeMap::<(StageIndex, HubName), [u64; OUTCOMES]>::new();
        let mut stored = self.next_list()?;
        while !stored.is_empty() {
            let (field, devices) = (stored.next::<String>()?, stored.next()?);
            let (stage, hub, outcome) =
                tally(&field).ok_or_else(|| Misfit(format!("there is a tally of {field:?}")))?;
            sums.entry((stage, hub)).or_default()[outcome as usize] = devices;
        }
        sums.into_iter()
            .map(|((stage, hub), mut numbers)| {
                // What is stored for the pending ones is the number of all devices.
                let [pending, others @ ..] = &mut numbers;
                *pending = pending
                    .checked_sub(others.iter().sum())
                    .ok_or_else(|| Misfit(format!("more devices than all are tallied on {hub}")))?;
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

fn holder(text: &str) -> Result<Holder, Misfit> {
    Holder::new(text).map_err(|error| Misfit(error.to_string()))
}

/// What was stored as JSON.
pub(crate) fn json<T: for<'de> Deserialize<'de>>(text: &[u8], what: &str) -> Result<T, Misfit> {
    serde_json::from_slice(text)
        .map_err(|error| Misfit(format!("{what} does not read back: {error}")))
}

/// A manifest as it is stored: the ids, one a line, deflated. Random ids have five bits a
/// character, which is all there is to be won; the fastest level wins it.
pub(crate) fn pack(devices: &DeviceList) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(devices.as_text().as_bytes());
    packed
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

fn unpack(packed: &[u8], devices: u32) -> Result<DeviceList, Misfit> {
    /// An id's 128 characters, and the line's end.
    const LONGEST: u64 = 129;
    let mut text = String::new();
    let read = DeflateDecoder::new(packed)
        .take(u64::from(devices) * LONGEST)
        .read_to_string(&mut text);
    read.map_err(|error| Misfit(format!("a manifest cannot be unpacked: {error}")))?;
    let list = DeviceList::from_text(&text).map_err(|error| Misfit(error.to_string()))?;
    if list.len() == devices as usize {
        Ok(list)
    } else {
        let found = list.len();
        Err(Misfit(format!(
            "a manifest has {found} devices instead of {devices}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use twincast_core::ids::DeviceId;

    use super::*;

    #[test]
    fn manifests_read_back_and_damage_is_told() {
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
    fn answers_that_cannot_be_are_damage() {
        for value in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
        ] {
            assert!(read(value).is_err());
        }
    }
}
