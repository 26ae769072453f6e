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
use serde::de::value::{Error as ValueError, MapDeserializer};
use twincast_core::batch::{BatchStatus, Held, MAX_STRIKES, Reopened};
use twincast_core::ids::{Attempt, Epoch, Holder, HubName, InvalidName, RolloutName, StageIndex};
use twincast_core::outcome::{Counts, OUTCOMES, Outcome, OutcomeList};
use twincast_core::permits::LimiterState;
use twincast_core::plan::{Batch, BatchHeader, Checksum, DeviceList};
use twincast_core::ports::{BatchWork, LeaseReply, Report, Tally};
use twincast_core::reports::Reported;
use twincast_core::time::Timestamp;

use crate::error::Misfit;

/// Why a script did nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoRollout,
    NoBatch,
    NoDevice(u64),
    Superseded,
    Regressed(String),
    Newer(u32),
    Damaged(String),
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
        "NO_DEVICE" => Refusal::NoDevice(reply.next()?),
        "SUPERSEDED" => Refusal::Superseded,
        "REGRESSED" => Refusal::Regressed(reply.next()?),
        "NEWER" => Refusal::Newer(reply.next()?),
        "DAMAGED" => Refusal::Damaged(reply.next()?),
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

    /// Who holds something, and until when; nothing when nobody does.
    pub(crate) fn held(mut self) -> Result<Option<Held>, Misfit> {
        if self.is_empty() {
            return Ok(None);
        }
        let (by, until) = (self.next::<String>()?, self.next()?);
        let by = holder(&by)?;
        Ok(Some(Held {
            by,
            until: Timestamp(until),
        }))
    }

    /// What became of a wish to lease; `granted` makes a lease of its epoch.
    pub(crate) fn leased(
        mut self,
        granted: impl FnOnce(Epoch) -> LeaseReply,
    ) -> Result<LeaseReply, Misfit> {
        Ok(match self.next::<String>()?.as_str() {
            "granted" => granted(Epoch(self.next()?)),
            "held" => match self.held()? {
                Some(held) => LeaseReply::Held(held),
                None => return Err(Misfit("a lease is held by nobody".into())),
            },
            "done" => LeaseReply::Done,
            "not_wanted" => LeaseReply::NotWanted,
            "quarantined" => LeaseReply::Quarantined,
            other => return Err(Misfit(format!("a lease was answered by {other:?}"))),
        })
    }

    /// The checksum of a rollout's batches.
    pub(crate) fn checksum(mut self) -> Result<Checksum, Misfit> {
        Ok(Checksum {
            batches: self.next()?,
            devices: self.next()?,
            sum: self.next()?,
        })
    }

    /// What became of a wish to reopen a batch.
    pub(crate) fn reopened(mut self) -> Result<Reopened, Misfit> {
        let devices: i64 = self.next()?;
        match (u32::try_from(devices), self.held()?) {
            (Ok(devices), None) => Ok(Reopened::Devices(devices)),
            (Err(_), Some(held)) => Ok(Reopened::Held(held)),
            _ => Err(Misfit(format!("a retry was answered by {devices}"))),
        }
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

    /// A page of batches.
    pub(crate) fn page(mut self) -> Result<Vec<BatchStatus>, Misfit> {
        let (version, now) = (self.next::<String>()?, Timestamp(self.next()?));
        let headers: Vec<Vec<u8>> = self.next()?;
        let rows: Vec<String> = self.next()?;
        headers
            .iter()
            .zip(&rows)
            .map(|(header, row)| {
                let row = Row::read(row)?;
                Ok(BatchStatus {
                    header: json(header, "a batch's header")?,
                    counts: counts(row.counts),
                    lapsed: row.held.as_ref().is_some_and(|held| held.until <= now),
                    held: row.held.filter(|held| held.until > now),
                    quarantined: row.strikes >= MAX_STRIKES && row.counted_in == version,
                    begun: row.begun,
                })
            })
            .collect()
    }

    /// A batch with its devices.
    pub(crate) fn work(mut self) -> Result<BatchWork, Misfit> {
        let id = self.next::<String>()?.parse();
        let header: BatchHeader = json(&self.next::<Vec<u8>>()?, "a batch's header")?;
        let devices = unpack(&self.next::<Vec<u8>>()?, header.devices)?;
        let outcomes = OutcomeList::from_bytes(&self.next::<Vec<u8>>()?, devices.len());
        let mut codes = Vec::new();
        let mut pairs = self.next_list()?;
        while !pairs.is_empty() {
            codes.push((pairs.next()?, pairs.next()?));
        }
        let attempt = Attempt(self.next()?);
        Ok(BatchWork {
            rollout: id.map_err(|error: InvalidName| Misfit(error.to_string()))?,
            batch: Batch { header, devices },
            outcomes: outcomes.map_err(|error| Misfit(error.to_string()))?,
            codes,
            attempt,
        })
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
                    counts: counts(numbers),
                })
            })
            .collect()
    }
}

/// A batch's row, see `rollout.lua`.
struct Row<'a> {
    strikes: u32,
    counted_in: &'a str,
    held: Option<Held>,
    counts: [u64; OUTCOMES],
    begun: bool,
}

impl<'a> Row<'a> {
    fn read(text: &'a str) -> Result<Self, Misfit> {
        Self::parse(text).ok_or_else(|| Misfit(format!("{text:?} is no batch's row")))
    }

    fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        // First device, devices, stage, hub and epoch are the scripts' own.
        let (strikes, counted_in) = (words.nth(5)?.parse().ok()?, words.next()?);
        let (until, by) = (words.next()?.parse().ok()?, words.next()?);
        let mut counts = [0; OUTCOMES];
        for count in &mut counts {
            *count = words.next()?.parse().ok()?;
        }
        Some(Self {
            strikes,
            counted_in,
            // Nobody's name is not a holder's.
            held: Holder::new(by).ok().map(|by| Held {
                by,
                until: Timestamp(until),
            }),
            counts,
            // The place is the scripts' own.
            begun: words.nth(1) == Some("1"),
        })
    }
}

fn tally(field: &str) -> Option<(StageIndex, HubName, Outcome)> {
    let mut parts = field.split(':');
    let stage = StageIndex(parts.next()?.parse().ok()?);
    let hub = HubName::new(parts.next()?).ok()?;
    let outcome = Outcome::from_code(parts.next()?.parse().ok()?)?;
    Some((stage, hub, outcome))
}

fn counts(numbers: [u64; OUTCOMES]) -> Counts {
    let entries = Outcome::ALL
        .into_iter()
        .map(|outcome| (outcome.as_str(), numbers[outcome as usize]));
    Counts::deserialize(MapDeserializer::<_, ValueError>::new(entries))
        .expect("every outcome reads back by its name")
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

/// Reports as the scripts read them: index, outcome and code, 9 bytes each.
pub(crate) fn encode(reports: &[Report]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(reports.len() * 9);
    for report in reports {
        bytes.extend(report.index.to_le_bytes());
        bytes.push(report.outcome as u8);
        bytes.extend(report.code.to_le_bytes());
    }
    bytes
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
    fn rows_read_back() {
        let row = "0 3 1 eu 7 2 4 1790000000000 w-1 1 0 0 0 0 0 0 2 0 0 0 0 0 0";
        let row = Row::read(row).unwrap();
        assert_eq!((row.strikes, row.counted_in), (2, "4"));
        let held = row.held.unwrap();
        assert_eq!(
            (held.by.as_str(), held.until),
            ("w-1", Timestamp(1_790_000_000_000))
        );
        assert_eq!(counts(row.counts).get(Outcome::Enqueued), 2);
        let nobody = "0 3 1 eu 7 0 4 0 - 3 0 0 0 0 0 0 0 0 0 0 0 0 0";
        assert_eq!(Row::read(nobody).unwrap().held, None);
        assert!(Row::read("0 3 1 eu").is_err());
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
