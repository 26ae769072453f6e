//! A digest of a plan: equal digests mean equal plans.

use sha2::{Digest, Sha256};

use super::DeviceList;
use super::manifest::BatchHeader;
use crate::ids::HubName;

/// The digest of a hub's batches, in the order in which the batches were filled. Batch numbers are
/// left out: with several hubs, the numbers depend on the order of the hubs' answers.
#[derive(Debug, Clone, Default)]
pub struct HubDigest(Sha256);

impl HubDigest {
    /// Adds a batch.
    pub fn add(&mut self, header: &BatchHeader, devices: &DeviceList) {
        self.0.update(header.stage.0.to_be_bytes());
        for (group, devices) in header.groups() {
            for (tag, value) in &group.0 {
                for part in [Some(tag), value.as_ref()] {
                    let part = part.map_or("\u{0}", String::as_str);
                    self.0.update((part.len() as u64).to_be_bytes());
                    self.0.update(part);
                }
            }
            if !header.further_groups.is_empty() {
                self.0.update(devices.start.to_be_bytes());
            }
        }
        if !header.sort_key.is_none() {
            self.0.update(header.sort_key.as_str());
        }
        self.0.update((devices.bytes() as u64).to_be_bytes());
        self.0.update(devices.as_text());
    }
}

/// Combines the digests of the hubs.
#[derive(Debug, Clone, Default)]
pub struct PlanDigest(std::collections::BTreeMap<HubName, HubDigest>);

impl PlanDigest {
    /// Adds the digest of a hub.
    pub fn add(&mut self, hub: HubName, digest: HubDigest) {
        self.0.insert(hub, digest);
    }

    /// Returns the digest as 32 hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> String {
        let mut all = Sha256::new();
        for (hub, digest) in self.0 {
            all.update((hub.as_str().len() as u64).to_be_bytes());
            all.update(hub.as_str());
            all.update(digest.0.finalize());
        }
        all.finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::TagGroup;
    use super::*;
    use crate::ids::{BatchId, DeviceId, HubHost, StageIndex};

    fn digest(batches: &[(&str, &[&str])]) -> String {
        let hub = HubName::new("h").unwrap();
        let mut hub_digest = HubDigest::default();
        for (index, (group, ids)) in batches.iter().enumerate() {
            let mut devices = DeviceList::default();
            ids.iter()
                .for_each(|id| devices.push(&DeviceId::new(id).unwrap()));
            let header = BatchHeader {
                id: BatchId(index as u32 * 7),
                hub: hub.clone(),
                host: HubHost::new("h").unwrap(),
                stage: StageIndex(0),
                group: TagGroup(vec![("g".into(), Some((*group).into()))]),
                further_groups: Vec::new(),
                devices: devices.len() as u32,
                sort_key: Default::default(),
                budgets: Vec::new(),
            };
            hub_digest.add(&header, &devices);
        }
        let mut plan = PlanDigest::default();
        plan.add(hub, hub_digest);
        plan.finish()
    }

    #[test]
    fn any_difference_shows() {
        let one = digest(&[("x", &["a", "b"]), ("y", &["c"])]);
        assert_eq!(one, digest(&[("x", &["a", "b"]), ("y", &["c"])]));
        assert_eq!(one.len(), 32);
        for other in [
            digest(&[("x", &["b", "a"]), ("y", &["c"])]),
            digest(&[("x", &["a"]), ("y", &["b", "c"])]),
            digest(&[("x", &["a", "b"]), ("z", &["c"])]),
            digest(&[("x", &["a", "b", "c"])]),
        ] {
            assert_ne!(one, other);
        }
    }
}
