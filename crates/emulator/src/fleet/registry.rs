//! What differs from the computed fleet: devices that were changed, added or deleted while the hub runs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::authentication::Authentication;
use super::metadata::{Stamp, touch};
use super::twin::Reported;
use super::virtual_fleet::{Conduct, DEVICES_MAX, Fleet};

/// The most devices that can be added while the hub runs: as many as a hub holds at all.
const ADDED_MAX: usize = 1_000_000;

/// Whether a device may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Enabled,
    Disabled,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }
}

/// All that is stored of one device.
#[derive(Debug, Clone)]
pub(crate) struct DeviceRecord {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) status_reason: Option<String>,
    /// When the status last changed, in milliseconds since 1970; none if it never did.
    pub(crate) status_updated_ms: Option<u64>,
    /// When the device came to be, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    pub(crate) tags: Map<String, Value>,
    pub(crate) desired: Map<String, Value>,
    /// The `$metadata` of the desired properties.
    pub(crate) desired_metadata: Map<String, Value>,
    /// What the device reported; of a simulated one, what it did when it came to be.
    pub(crate) reported: Map<String, Value>,
    /// A device that has connected; none as long as it is simulated.
    pub(crate) real: Option<Box<RealTwin>>,
    /// Counts changes of the twin.
    pub(crate) version: u64,
    /// Counts changes of the identity.
    pub(crate) device_version: u64,
    pub(crate) desired_version: u64,
    pub(crate) generation: String,
    pub(crate) authentication: Authentication,
    /// Whether it is an edge device.
    pub(crate) edge: bool,
    /// The scope it belongs to, or an edge device's own; may be empty.
    pub(crate) scope: String,
    pub(crate) parent_scopes: Vec<String>,
    /// What symmetric keys follow from that the hub makes.
    seed: u64,
}

/// What the hub knows of a device that has connected, beside its reported properties.
#[derive(Debug, Clone, Default)]
pub(crate) struct RealTwin {
    /// The `$metadata` of the reported properties.
    pub(crate) reported_metadata: Map<String, Value>,
    pub(crate) reported_version: u64,
    /// The Plug and Play model that it named; empty if none.
    pub(crate) model_id: String,
    /// What it had reported before its newest changes, oldest first, where queries lag behind.
    earlier: VecDeque<Earlier>,
}

/// Reported properties until they were changed.
#[derive(Debug, Clone)]
struct Earlier {
    changed_ms: u64,
    reported: Reported,
}

/// How many earlier states of a twin are kept; queries lag behind no further.
const EARLIER_MAX: usize = 64;

impl RealTwin {
    /// A device that has reported this before it connected.
    pub(crate) fn new(reported_metadata: Map<String, Value>, reported_version: u64) -> Self {
        Self {
            reported_metadata,
            reported_version,
            ..Self::default()
        }
    }

    /// Keeps what was reported until `changed_ms`, and forgets what queries do not show any more, which are `lag_ms` behind.
    pub(crate) fn keep_earlier(&mut self, reported: Reported, changed_ms: u64, lag_ms: u64) {
        let is_over = |earlier: &Earlier| earlier.changed_ms + lag_ms <= changed_ms;
        while self.earlier.front().is_some_and(is_over) || self.earlier.len() >= EARLIER_MAX {
            self.earlier.pop_front();
        }
        self.earlier.push_back(Earlier {
            changed_ms,
            reported,
        });
    }

    /// What was reported at a time, if it has changed since.
    pub(crate) fn reported_at(&self, at_ms: u64) -> Option<&Reported> {
        let mut earlier = self.earlier.iter();
        let earlier = earlier.find(|earlier| earlier.changed_ms > at_ms)?;
        Some(&earlier.reported)
    }
}

impl DeviceRecord {
    /// Makes symmetric keys unless the device has some.
    pub(crate) fn keep_or_generate_keys(&mut self) {
        if !matches!(self.authentication, Authentication::Sas(_)) {
            self.authentication = Authentication::generated(self.seed, &self.id);
        }
    }
}

/// How a device departs from the computed fleet.
#[derive(Debug)]
pub(crate) enum RegistryEntry {
    Changed(Box<DeviceRecord>),
    Deleted,
}

/// The identity registry: the fleet and the departures from it.
#[derive(Debug)]
pub(crate) struct Registry {
    fleet: Arc<Fleet>,
    entries: HashMap<u32, RegistryEntry>,
    added: HashMap<String, u32>,
    added_ids: Vec<String>,
    generations: u64,
    deleted: u32,
    started_ms: u64,
    /// What devices do that are not of the fleet.
    added_conduct: Conduct,
}

impl Registry {
    /// The registry of a hub that starts at `started_ms`, with what added devices do.
    pub(crate) fn new(fleet: Arc<Fleet>, started_ms: u64, added_conduct: Conduct) -> Self {
        Self {
            fleet,
            started_ms,
            added_conduct,
            entries: HashMap::new(),
            added: HashMap::new(),
            added_ids: Vec::new(),
            generations: 0,
            deleted: 0,
        }
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// How many devices there are.
    pub(crate) fn len(&self) -> u32 {
        self.end() - self.deleted
    }

    /// One past the highest device number.
    pub(crate) fn end(&self) -> u32 {
        // Bounded by DEVICES_MAX and ADDED_MAX, which together fit.
        self.fleet.len() + u32::try_from(self.added_ids.len()).unwrap_or(0)
    }

    /// The number of an existing device.
    #[inline]
    pub(crate) fn number(&self, id: &str) -> Option<u32> {
        let number = self.slot(id)?;
        if !self.entries.is_empty()
            && matches!(self.entries.get(&number), Some(RegistryEntry::Deleted))
        {
            return None;
        }
        Some(number)
    }

    fn slot(&self, id: &str) -> Option<u32> {
        self.fleet
            .number(id)
            .or_else(|| self.added.get(id).copied())
    }

    /// How a device departs from the computed fleet, if it does.
    pub(crate) fn entry(&self, number: u32) -> Option<&RegistryEntry> {
        self.entries.get(&number)
    }

    /// Whether any device departs from the computed fleet.
    pub(crate) fn is_untouched(&self) -> bool {
        self.entries.is_empty()
    }

    /// The id of a device, deleted or not.
    pub(crate) fn id(&self, number: u32) -> Option<String> {
        self.fleet.id(number).or_else(|| {
            let at = number.checked_sub(self.fleet.len())?;
            self.added_ids.get(at as usize).cloned()
        })
    }

    /// What a device does with messages. A device of the fleet that is disabled there and enabled over REST
    /// completes everything.
    pub(crate) fn conduct(&self, number: u32) -> Conduct {
        let computed = self.computed_conduct(number);
        match self.entries.get(&number) {
            Some(RegistryEntry::Changed(record)) => match (record.status, computed) {
                (Status::Disabled, _) => Conduct::Disabled,
                (Status::Enabled, _) if record.real.is_some() => Conduct::Real,
                (Status::Enabled, Conduct::Disabled) => Conduct::Completes {
                    online_after: std::time::Duration::ZERO,
                },
                (Status::Enabled, conduct) => conduct,
            },
            _ => computed,
        }
    }

    fn computed_conduct(&self, number: u32) -> Conduct {
        match self.fleet.place(number) {
            Some((group, position)) => group.conduct(position),
            None => self.added_conduct,
        }
    }

    /// The id and generation of an existing device.
    pub(crate) fn id_and_generation(&self, number: u32) -> Option<(String, String)> {
        match self.entries.get(&number) {
            Some(RegistryEntry::Changed(record)) => {
                Some((record.id.clone(), record.generation.clone()))
            }
            Some(RegistryEntry::Deleted) => None,
            None => Some((
                self.fleet.id(number)?,
                generation(self.fleet.seed() ^ u64::from(number)),
            )),
        }
    }

    /// Everything about an existing device.
    pub(crate) fn record(&self, number: u32) -> Option<DeviceRecord> {
        match self.entries.get(&number) {
            Some(RegistryEntry::Changed(record)) => Some((**record).clone()),
            Some(RegistryEntry::Deleted) => None,
            None => self.computed_record(number),
        }
    }

    /// An existing device, to be changed.
    pub(crate) fn record_mut(&mut self, number: u32) -> Option<&mut DeviceRecord> {
        if !self.entries.contains_key(&number) {
            let record = self.computed_record(number)?;
            self.entries
                .insert(number, RegistryEntry::Changed(Box::new(record)));
        }
        match self.entries.get_mut(&number)? {
            RegistryEntry::Changed(record) => Some(record),
            RegistryEntry::Deleted => None,
        }
    }

    fn computed_record(&self, number: u32) -> Option<DeviceRecord> {
        let (group, position) = self.fleet.place(number)?;
        let generation = generation(self.fleet.seed() ^ u64::from(number));
        let mut record = self.blank(&group.id(position), generation, self.started_ms);
        if group.conduct(position) == Conduct::Disabled {
            record.status = Status::Disabled;
        }
        record.tags = group.tags.object(position);
        record.reported = group.reported.object(position);
        Some(record)
    }

    /// A device that is as new as can be, and not in the registry.
    pub(crate) fn new_record(&self, id: &str, now_ms: u64) -> DeviceRecord {
        let generation = generation(self.fleet.seed() ^ (1 << 40) ^ (self.generations + 1));
        self.blank(id, generation, now_ms)
    }

    fn blank(&self, id: &str, generation: String, created_ms: u64) -> DeviceRecord {
        let mut desired_metadata = Map::new();
        let stamp = Stamp {
            at_ms: created_ms,
            version: None,
        };
        touch(&mut desired_metadata, &Map::new(), stamp);
        DeviceRecord {
            authentication: Authentication::generated(self.fleet.seed(), id),
            id: id.to_owned(),
            status: Status::Enabled,
            status_reason: None,
            status_updated_ms: None,
            created_ms,
            tags: Map::new(),
            desired: Map::new(),
            desired_metadata,
            reported: Map::new(),
            real: None,
            version: 2,
            device_version: 1,
            desired_version: 1,
            generation,
            edge: false,
            scope: String::new(),
            parent_scopes: Vec::new(),
            seed: self.fleet.seed(),
        }
    }

    /// Puts what `record` says of its device in place, which is added if it does not exist. Returns its
    /// number; none if the registry is full.
    pub(crate) fn put(&mut self, record: DeviceRecord) -> Option<u32> {
        let is_new = self.number(&record.id).is_none();
        let number = match self.slot(&record.id) {
            Some(number) => number,
            None => {
                if self.added_ids.len() >= ADDED_MAX || u64::from(self.end()) >= 2 * DEVICES_MAX {
                    return None;
                }
                let number = self.end();
                self.added.insert(record.id.clone(), number);
                self.added_ids.push(record.id.clone());
                number
            }
        };
        let entry = RegistryEntry::Changed(Box::new(record));
        if let Some(RegistryEntry::Deleted) = self.entries.insert(number, entry) {
            self.deleted -= 1;
        }
        self.generations += u64::from(is_new);
        Some(number)
    }

    /// Deletes an existing device.
    pub(crate) fn delete(&mut self, number: u32) {
        let before = self.entries.insert(number, RegistryEntry::Deleted);
        self.deleted += u32::from(!matches!(before, Some(RegistryEntry::Deleted)));
    }

    /// The numbers of existing devices from `from` on, in order.
    pub(crate) fn numbers(&self, from: u32) -> impl Iterator<Item = u32> + '_ {
        (from..self.end())
            .filter(|number| !matches!(self.entries.get(number), Some(RegistryEntry::Deleted)))
    }

    /// How many devices are enabled and how many disabled.
    pub(crate) fn census(&self) -> (u64, u64) {
        let (mut enabled, mut disabled) = (0, 0);
        for number in self.numbers(0) {
            match self.conduct(number) {
                Conduct::Disabled => disabled += 1,
                _ => enabled += 1,
            }
        }
        (enabled, disabled)
    }
}

fn generation(seed: u64) -> String {
    // The real hub's are eighteen digits that grow with time.
    (637_000_000_000_000_000 + super::permutation::mix(seed) % 1_000_000_000_000_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_devices_are_gone_and_come_back_new() {
        let fleet = Arc::new(Fleet::plain(3, "d{index}").unwrap());
        let mut registry = Registry::new(fleet, 0, Conduct::Offline);
        let number = registry.number("d1").unwrap();
        let before = registry.record(number).unwrap().generation;
        registry.delete(number);
        assert_eq!(registry.number("d1"), None);
        assert!(registry.numbers(0).eq([0, 2]));
        assert_eq!(registry.put(registry.new_record("d1", 1)), Some(1));
        let again = registry.record(1).unwrap();
        assert_ne!(again.generation, before);
        assert_eq!(registry.put(registry.new_record("extra", 1)), Some(3));
        assert_ne!(registry.record(3).unwrap().generation, again.generation);
        assert_eq!(registry.put(again.clone()), Some(1));
        assert_eq!(registry.record(1).unwrap().generation, again.generation);
        assert_eq!(registry.conduct(3), Conduct::Offline);
        assert_eq!(registry.id(3).as_deref(), Some("extra"));
        assert_eq!((registry.census(), registry.len()), ((4, 0), 4));
    }
}
