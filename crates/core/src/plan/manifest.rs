//! A batch: devices of one hub and one stage, tag group by tag group.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::budget::BudgetGroup;
use crate::ids::{BatchId, DeviceId, HubHost, HubName, StageIndex};

/// A tag group: the values of the `batch_by` tags that its devices share, in the order of the spec. A device without the tag has `None`, which is a group of its own.
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
    /// The tag group of the first devices; of all, unless there are further groups.
    pub group: Group,
    /// Further groups, each with the position of its first device, ascending. Only [small](super::pack) groups share a batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<(u32, Group)>,
    /// How many devices; at least one.
    pub devices: u32,
    /// When it is released, compared with others of its stage and hub.
    #[serde(default, skip_serializing_if = "Place::is_none")]
    pub place: Place,
    /// The groups of which only so many devices may be in progress, and which all its devices are in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetGroup>,
}

impl BatchHeader {
    /// The tag groups, each with the positions of its devices.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, Range<u32>)> {
        let ends = self.further.iter().map(|(first, _)| *first);
        let ends = ends.chain([self.devices]);
        let further = self.further.iter().map(|(first, group)| (group, *first));
        let starts = std::iter::once((&self.group, 0)).chain(further);
        starts
            .zip(ends)
            .map(|((group, first), end)| (group, first..end))
    }

    /// The tag group of the device at a position.
    #[must_use]
    pub fn group_of(&self, index: u32) -> &Group {
        let after = self.further.partition_point(|(first, _)| *first <= index);
        match after.checked_sub(1) {
            Some(at) => &self.further[at].1,
            None => &self.group,
        }
    }

    /// Its tag groups in words: the first, and how many more.
    #[must_use]
    pub fn groups_in_words(&self) -> String {
        match self.further.len() {
            0 => self.group.to_string(),
            more => format!("{} and {more} more groups", self.group),
        }
    }
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

    /// Adds the devices of another list at the end.
    pub fn append(&mut self, other: &Self) {
        let bytes = u32::try_from(self.text.len()).expect("a batch is far smaller than 4 GiB");
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|end| bytes + end));
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
        let both = DeviceList::from_text("x\na\nfridge-2\nc\n").unwrap();
        let mut joined = DeviceList::from_text("x\n").unwrap();
        joined.append(&list);
        assert_eq!(joined, both);
    }

    #[test]
    fn a_device_has_the_group_that_it_is_listed_in() {
        let group = |site: &str| Group(vec![("site".into(), Some(site.into()))]);
        let mut header = BatchHeader {
            id: BatchId(0),
            hub: HubName::new("h").unwrap(),
            host: HubHost::new("h").unwrap(),
            stage: StageIndex(0),
            group: group("a"),
            further: vec![(2, group("b")), (3, group("c"))],
            devices: 5,
            place: Place::default(),
            budgets: Vec::new(),
        };
        let of_each: Vec<_> = (0..5).map(|index| header.group_of(index)).collect();
        let (a, b, c) = (&group("a"), &group("b"), &group("c"));
        assert_eq!(of_each, [a, a, b, c, c]);
        let groups: Vec<_> = header.groups().collect();
        assert_eq!(groups, [(a, 0..2), (b, 2..3), (c, 3..5)]);
        assert_eq!(header.groups_in_words(), "site=a and 2 more groups");
        header.further.clear();
        assert_eq!(header.groups().collect::<Vec<_>>(), [(a, 0..5)]);
        assert_eq!(
            (header.group_of(4), header.groups_in_words()),
            (a, "site=a".into())
        );
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
