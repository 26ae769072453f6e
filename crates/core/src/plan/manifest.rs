//! A batch: the devices of one hub, one stage and one tag group, in order.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::budget::BudgetGroup;
use crate::ids::{BatchId, DeviceId, HubHost, HubName, StageIndex};

/// A tag group: the values of the `batch_by` tags that all devices of a batch share, in the
/// order of the spec. A device without the tag has `None`, which is a group of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Group(pub Vec<(String, Option<String>)>);

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("all");
        }
        for (index, (tag, value)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{tag}={}", value.as_deref().unwrap_or("(none)"))?;
        }
        Ok(())
    }
}

/// A batch without its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchHeader {
    /// Its number in the plan.
    pub id: BatchId,
    /// The hub of all its devices.
    pub hub: HubName,
    /// The host name of that hub. A batch is sent through no other hub, whatever the alias names later.
    pub host: HubHost,
    /// The stage of all its devices.
    pub stage: StageIndex,
    /// What else they share.
    pub group: Group,
    /// How many devices; at least one.
    pub devices: u32,
    /// When it is released, compared with others of its stage and hub.
    #[serde(default, skip_serializing_if = "Place::is_none")]
    pub place: Place,
    /// The groups of which only so many devices may be in progress, and which all its devices are in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetGroup>,
}

/// A batch: the unit of work on the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// All but the devices.
    pub header: BatchHeader,
    /// The devices in order. A device's position is part of its message id.
    pub devices: DeviceList,
}

/// Device ids in one piece of memory, one a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceList {
    text: String,
    ends: Vec<u32>,
}

/// A stored manifest that cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of a batch's manifest is not a device id")]
pub struct CorruptManifest {
    line: usize,
    #[source]
    source: crate::ids::InvalidName,
}

impl DeviceList {
    /// Adds a device at the end.
    pub fn push(&mut self, device: &DeviceId) {
        self.text.push_str(device.as_str());
        self.text.push('\n');
        self.ends
            .push(u32::try_from(self.text.len()).expect("a batch is far smaller than 4 GiB"));
    }

    /// How many devices.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No devices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes that the ids take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The id at `index`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> DeviceId {
        DeviceId::new(self.slice(index)).expect("only device ids are pushed")
    }

    fn slice(&self, index: usize) -> &str {
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize
        };
        &self.text[start..self.ends[index] as usize - 1]
    }

    /// The ids in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> + '_ {
        (0..self.len()).map(|index| self.slice(index))
    }

    /// The list as text, one id a line.
    #[must_use]
    pub fn as_text(&self) -> &str {
        &self.text
    }

    /// Reads what [`DeviceList::as_text`] gave.
    ///
    /// # Errors
    /// When a line is no device id.
    pub fn from_text(text: &str) -> Result<Self, CorruptManifest> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            let id = DeviceId::new(line).map_err(|source| CorruptManifest {
                line: index + 1,
                source,
            })?;
            list.push(&id);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back() {
        let mut list = DeviceList::default();
        for id in ["a", "fridge-2", "c"] {
            list.push(&DeviceId::new(id).unwrap());
        }
        assert_eq!(list.get(1).as_str(), "fridge-2");
        assert_eq!(list.iter().collect::<Vec<_>>(), ["a", "fridge-2", "c"]);
        assert_eq!(DeviceList::from_text(list.as_text()).unwrap(), list);
        assert_eq!(DeviceList::from_text("a\nb c\n").unwrap_err().line, 2);
    }

    #[test]
    fn groups_read_well() {
        let group = Group(vec![
            ("region".into(), Some("eu".into())),
            ("site".into(), None),
        ]);
        assert_eq!(group.to_string(), "region=eu, site=(none)");
        assert_eq!(Group::default().to_string(), "all");
    }
}
