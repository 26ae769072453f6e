//! A batch: devices of a single hub and stage, ordered by tag group.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::sort_key::SortKey;
use crate::budget::BudgetGroup;
use crate::ids::{BatchId, DeviceId, HubHost, HubName, StageIndex};

/// A tag group: the common values of the `batch_by` tags, in the order of the spec. Devices without
/// a tag have the value `None` and form a group of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TagGroup(pub Vec<(String, Option<String>)>);

impl fmt::Display for TagGroup {
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
    /// The number of the batch in the plan.
    pub id: BatchId,
    /// The hub of all devices.
    pub hub: HubName,
    /// The host name of the hub at the time of planning. The batch is sent through no other host,
    /// even if the hub's alias later refers to another host.
    pub host: HubHost,
    /// The stage of all devices.
    pub stage: StageIndex,
    /// The tag group of the first devices; without further groups, of all devices.
    pub group: TagGroup,
    /// Further tag groups, each with the position of the first device, in ascending order. Only
    /// [small](super::pack) groups share a batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_groups: Vec<(u32, TagGroup)>,
    /// The number of devices; at least 1.
    pub devices: u32,
    /// The position in the release order among the batches of the same stage and hub.
    #[serde(default, skip_serializing_if = "SortKey::is_none")]
    pub sort_key: SortKey,
    /// The budget groups of the batch. All devices of the batch are in each of these groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetGroup>,
}

impl BatchHeader {
    /// Returns the tag groups, each with the positions of the group's devices.
    pub fn groups(&self) -> impl Iterator<Item = (&TagGroup, Range<u32>)> {
        let ends = self.further_groups.iter().map(|(first, _)| *first);
        let ends = ends.chain([self.devices]);
        let further = self
            .further_groups
            .iter()
            .map(|(first, group)| (group, *first));
        let starts = std::iter::once((&self.group, 0)).chain(further);
        starts
            .zip(ends)
            .map(|((group, first), end)| (group, first..end))
    }

    /// Returns the tag group of the device at a position.
    #[must_use]
    pub fn group_of(&self, index: u32) -> &TagGroup {
        let after = self
            .further_groups
            .partition_point(|(first, _)| *first <= index);
        match after.checked_sub(1) {
            Some(at) => &self.further_groups[at].1,
            None => &self.group,
        }
    }

    /// Describes the tag groups: the first group, and the number of further groups.
    #[must_use]
    pub fn describe_groups(&self) -> String {
        match self.further_groups.len() {
            0 => self.group.to_string(),
            more => format!("{} and {more} more groups", self.group),
        }
    }
}

/// A batch: the unit of work on the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// All data of the batch except the devices.
    pub header: BatchHeader,
    /// The devices in order. The position of a device is part of the message id.
    pub devices: DeviceList,
}

/// Device ids in contiguous memory, each on a separate line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceList {
    text: String,
    ends: Vec<u32>,
}

/// The error for a corrupt manifest in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of a batch's manifest is not a device id")]
pub struct CorruptManifest {
    line: usize,
    #[source]
    source: crate::ids::InvalidName,
}

impl DeviceList {
    /// Appends a device.
    pub fn push(&mut self, device: &DeviceId) {
        self.text.push_str(device.as_str());
        self.text.push('\n');
        self.ends
            .push(u32::try_from(self.text.len()).expect("a batch is far smaller than 4 GiB"));
    }

    /// Appends the devices of another list.
    pub fn append(&mut self, other: &Self) {
        let bytes = u32::try_from(self.text.len()).expect("a batch is far smaller than 4 GiB");
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|end| bytes + end));
    }

    /// Returns the number of devices.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether the list has no devices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the size of the text in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns the id at `index`.
    ///
    /// # Panics
    /// Panics if `index` is out of bounds.
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

    /// Returns the ids in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> + '_ {
        (0..self.len()).map(|index| self.slice(index))
    }

    /// Returns the list as text, with each id on a separate line.
    #[must_use]
    pub fn as_text(&self) -> &str {
        &self.text
    }

    /// Parses the text returned by [`DeviceList::as_text`].
    ///
    /// # Errors
    /// Returns an error if a line is not a device id.
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
    fn device_index_determines_group() {
        let group = |site: &str| TagGroup(vec![("site".into(), Some(site.into()))]);
        let mut header = BatchHeader {
            id: BatchId(0),
            hub: HubName::new("h").unwrap(),
            host: HubHost::new("h").unwrap(),
            stage: StageIndex(0),
            group: group("a"),
            further_groups: vec![(2, group("b")), (3, group("c"))],
            devices: 5,
            sort_key: SortKey::default(),
            budgets: Vec::new(),
        };
        let of_each: Vec<_> = (0..5).map(|index| header.group_of(index)).collect();
        let (a, b, c) = (&group("a"), &group("b"), &group("c"));
        assert_eq!(of_each, [a, a, b, c, c]);
        let groups: Vec<_> = header.groups().collect();
        assert_eq!(groups, [(a, 0..2), (b, 2..3), (c, 3..5)]);
        assert_eq!(header.describe_groups(), "site=a and 2 more groups");
        header.further_groups.clear();
        assert_eq!(header.groups().collect::<Vec<_>>(), [(a, 0..5)]);
        assert_eq!(
            (header.group_of(4), header.describe_groups()),
            (a, "site=a".into())
        );
    }

    #[test]
    fn groups_read_well() {
        let group = TagGroup(vec![
            ("region".into(), Some("eu".into())),
            ("site".into(), None),
        ]);
        assert_eq!(group.to_string(), "region=eu, site=(none)");
        assert_eq!(TagGroup::default().to_string(), "all");
    }
}
