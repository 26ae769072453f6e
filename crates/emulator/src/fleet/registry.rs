//! What differs from the computed fleet: devices that were changed, added or deleted while the hub runs.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::virtual_fleet::{Conduct, DEVICES_MAX, Fleet};
use crate::policy::seeded_key;

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
    pub(crate) tags: Map<String, Value>,
    pub(crate) desired: Map<String, Value>,
    pub(crate) reported: Map<String, Value>,
    /// Counts changes of the twin.
    pub(crate) version: u64,
    /// Counts changes of the identity.
    pub(crate) device_version: u64,
    pub(crate) desired_version: u64,
    pub(crate) generation: String,
    /// The identity's `authentication` object.
    pub(crate) authentication: Value,
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
}

impl Registry {
    pub(crate) fn new(fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
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

    /// What a device does with messages. Added devices, and changed ones that are enabled, follow the fleet
    /// or complete everything.
    pub(crate) fn conduct(&self, number: u32) -> Conduct {
        let computed = self.computed_conduct(number);
        match self.entries.get(&number) {
            Some(RegistryEntry::Changed(record)) => match (record.status, computed) {
                (Status::Disabled, _) => Conduct::Disabled,
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
            None => Conduct::Completes {
                online_after: std::time::Duration::ZERO,
            },
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

    fn computed_record(&self, number: u32) -> Option<DeviceRecord> {
        let (group, position) = self.fleet.place(number)?;
        let id = group.id(position);
        let status = match group.conduct(position) {
            Conduct::Disabled => Status::Disabled,
            _ => Status::Enabled,
        };
        let generation = generation(self.fleet.seed() ^ u64::from(number));
        Some(DeviceRecord {
            authentication: symmetric_key(self.fleet.seed(), &id),
            id,
            status,
            status_reason: None,
            tags: group.tags.object(position),
            desired: Map::new(),
            reported: group.reported.object(position),
            version: 2,
            device_version: 1,
            desired_version: 1,
            generation,
        })
    }

    /// Changes an existing device; what `change` leaves behind is kept.
    pub(crate) fn change<T>(
        &mut self,
        number: u32,
        change: impl FnOnce(&mut DeviceRecord) -> T,
    ) -> Option<T> {
        let mut record = self.record(number)?;
        let answer = change(&mut record);
        self.entries
            .insert(number, RegistryEntry::Changed(Box::new(record)));
        Some(answer)
    }

    /// Adds a device with an id that does not exist; none if the registry is full.
    pub(crate) fn add(&mut self, id: &str) -> Option<u32> {
        let number = match self.slot(id) {
            Some(number) => number,
            None => {
                if self.added_ids.len() >= ADDED_MAX || u64::from(self.end()) >= 2 * DEVICES_MAX {
                    return None;
                }
                let number = self.end();
                self.added.insert(id.to_owned(), number);
                self.added_ids.push(id.to_owned());
                number
            }
        };
        self.generations += 1;
        let record = DeviceRecord {
            id: id.to_owned(),
            status: Status::Enabled,
            status_reason: None,
            tags: Map::new(),
            desired: Map::new(),
            reported: Map::new(),
            version: 2,
            device_version: 1,
            desired_version: 1,
            generation: generation(self.fleet.seed() ^ (1 << 40) ^ self.generations),
            authentication: symmetric_key(self.fleet.seed(), id),
        };
        let entry = RegistryEntry::Changed(Box::new(record));
        if let Some(RegistryEntry::Deleted) = self.entries.insert(number, entry) {
            self.deleted -= 1;
        }
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

fn symmetric_key(seed: u64, id: &str) -> Value {
    let key = |which| STANDARD.encode(seeded_key(seed, &["device", id, which]));
    serde_json::json!({
        "symmetricKey": { "primaryKey": key("primary"), "secondaryKey": key("secondary") },
        "x509Thumbprint": { "primaryThumbprint": null, "secondaryThumbprint": null },
        "type": "sas",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_devices_are_gone_and_come_back_new() {
        let mut registry = Registry::new(Arc::new(Fleet::plain(3, "d{index}").unwrap()));
        let number = registry.number("d1").unwrap();
        let before = registry.record(number).unwrap().generation;
        registry.delete(number);
        assert_eq!(registry.number("d1"), None);
        assert!(registry.numbers(0).eq([0, 2]));
        assert_eq!(registry.add("d1"), Some(1));
        assert_ne!(registry.record(1).unwrap().generation, before);
        assert_eq!(registry.add("extra"), Some(3));
        assert_eq!(registry.id(3).as_deref(), Some("extra"));
        assert_eq!((registry.census(), registry.len()), ((4, 0), 4));
    }
}
