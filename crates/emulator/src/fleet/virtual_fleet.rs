//! A fleet ready for use: from a device's number to everything about it, and from its id to the number.

use std::time::Duration;

use super::file::{AnswerSpec, Behaviour, FleetError, FleetFile, GroupSpec};
use super::generator::Generator;
use super::pattern::IdPattern;
use super::permutation::{Permutation, mix};

/// The most devices a fleet can have; numbers above are for devices that are added while the hub runs.
pub(crate) const DEVICES_MAX: u64 = 1 << 30;

/// A fleet of computed devices.
#[derive(Debug, Clone)]
pub struct Fleet {
    seed: u64,
    groups: Vec<Group>,
    len: u32,
}

/// Devices that are alike.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// The fleet-wide number of the first device.
    pub(crate) start: u32,
    pub(crate) count: u32,
    first: u64,
    id: IdPattern,
    pub(crate) tags: Generator,
    pub(crate) reported: Generator,
    pub(crate) reported_after: Generator,
    behaviour: Behaviour,
    deal: Permutation,
    failing: Permutation,
    key: u64,
}

/// What a device does with messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Completes them once it is online, that long after the hub's start.
    Completes { online_after: Duration },
    /// Rejects them.
    Rejects,
    /// Abandons them until the hub gives up.
    Abandons,
    /// Takes them and never answers.
    NeverAnswers,
    /// Is never online.
    Offline,
    /// Cannot be sent any.
    Disabled,
    /// Is no simulated one: a client that connects as this device does with them what it likes.
    Real,
}

impl Fleet {
    /// A hub without devices; they can still be added through its registry.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            seed: 0,
            groups: Vec::new(),
            len: 0,
        }
    }

    /// `count` well-behaved devices without tags, with ids such as `device-{index:06}`.
    ///
    /// # Errors
    ///
    /// If the pattern has no place for the number or gives ids the hub does not allow.
    pub fn plain(count: u32, id: &str) -> Result<Self, FleetError> {
        Self::new(&FleetFile {
            seed: 0,
            groups: vec![GroupSpec::plain(count, id)],
        })
    }

    /// Reads a fleet file and makes it ready.
    ///
    /// # Errors
    ///
    /// Names the line, or the group, that is wrong.
    pub fn from_yaml(yaml: &str) -> Result<Self, FleetError> {
        Self::new(&FleetFile::parse(yaml)?)
    }

    /// Makes a fleet ready.
    ///
    /// # Errors
    ///
    /// If a group is not possible, or two have a device in common.
    pub fn new(file: &FleetFile) -> Result<Self, FleetError> {
        let total: u64 = file.groups.iter().map(|group| u64::from(group.count)).sum();
        if total > DEVICES_MAX {
            return Err(FleetError::TooMany(total));
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut start = 0;
        for (at, spec) in file.groups.iter().enumerate() {
            let problem = |problem| FleetError::Group {
                number: at + 1,
                id: spec.id.clone(),
                problem,
            };
            let group = Group::new(spec, start, file.seed).map_err(problem)?;
            for (before, other) in groups.iter().enumerate() {
                if let Some(id) = other.shared_id(&group) {
                    return Err(FleetError::Clash {
                        first: before + 1,
                        second: at + 1,
                        id,
                    });
                }
            }
            start += group.count;
            groups.push(group);
        }
        Ok(Self {
            seed: file.seed,
            groups,
            len: start,
        })
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no device.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    #[cfg(test)]
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The number of the device with this id.
    #[inline]
    pub(crate) fn number(&self, id: &str) -> Option<u32> {
        self.groups.iter().find_map(|group| group.number(id))
    }

    /// The group of a device and the device's position in it.
    pub(crate) fn place(&self, number: u32) -> Option<(&Group, u32)> {
        let at = self
            .groups
            .partition_point(|group| group.start + group.count <= number);
        let group = self.groups.get(at)?;
        Some((group, number.checked_sub(group.start)?))
    }

    /// The id of a device of the fleet.
    pub(crate) fn id(&self, number: u32) -> Option<String> {
        self.place(number)
            .map(|(group, position)| group.id(position))
    }
}

impl Group {
    fn new(spec: &GroupSpec, start: u32, seed: u64) -> Result<Self, String> {
        let id = IdPattern::parse(&spec.id)?;
        let last = spec.first.saturating_add(u64::from(spec.count));
        check_id(&id.id(last))?;
        let name = if spec.name.is_empty() {
            &spec.id
        } else {
            &spec.name
        };
        let key = mix(seed ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes()));
        let behaviour = spec.behaviour.clone();
        let taken = [
            behaviour.offline,
            behaviour.online_after.share,
            behaviour.reverts.share,
            behaviour.rejects,
            behaviour.abandons,
            behaviour.never_answers,
            behaviour.disabled,
        ]
        .iter()
        .map(|share| share.0)
        .sum::<f64>();
        if taken > 1.0 + 1e-9 {
            return Err(format!(
                "the shares of its behaviours add up to {:.1} %",
                taken * 100.0
            ));
        }
        let make =
            |values, salt: u64| Generator::new(values, spec.count, spec.first, mix(key ^ salt));
        Ok(Self {
            start,
            count: spec.count,
            first: spec.first,
            id,
            tags: make(&spec.tags, 1),
            reported: make(&spec.reported, 2),
            reported_after: make(&spec.reported_after_delivery, 3),
            behaviour,
            deal: Permutation::new(spec.count, mix(key ^ 4)),
            failing: Permutation::new(spec.count, mix(key ^ 9)),
            key,
        })
    }

    pub(crate) fn id(&self, position: u32) -> String {
        self.id.id(self.first + u64::from(position))
    }

    #[inline]
    fn number(&self, id: &str) -> Option<u32> {
        let position = self.id.index(id)?.checked_sub(self.first)?;
        let position = u32::try_from(position)
            .ok()
            .filter(|position| *position < self.count)?;
        Some(self.start + position)
    }

    /// An id that both groups have. Only patterns whose fixed parts agree can clash, and then the smaller
    /// group is tried device by device.
    fn shared_id(&self, other: &Self) -> Option<String> {
        let one_begins_with = |a: &str, b: &str| a.starts_with(b) || b.starts_with(a);
        let one_ends_with = |a: &str, b: &str| a.ends_with(b) || b.ends_with(a);
        if !one_begins_with(&self.id.prefix, &other.id.prefix)
            || !one_ends_with(&self.id.suffix, &other.id.suffix)
        {
            return None;
        }
        let (small, large) = if self.count <= other.count {
            (self, other)
        } else {
            (other, self)
        };
        (0..small.count)
            .map(|position| small.id(position))
            .find(|id| large.number(id).is_some())
    }

    /// What the device at `position` does with messages.
    pub(crate) fn conduct(&self, position: u32) -> Conduct {
        let behaviour = &self.behaviour;
        let share = self.deal.share(position);
        let mut end = 0.0;
        let mut falls = |part: f64| {
            end += part;
            share < end
        };
        if falls(behaviour.disabled.0) {
            Conduct::Disabled
        } else if falls(behaviour.offline.0) {
            Conduct::Offline
        } else if falls(behaviour.never_answers.0) {
            Conduct::NeverAnswers
        } else if falls(behaviour.rejects.0) {
            Conduct::Rejects
        } else if falls(behaviour.abandons.0) {
            Conduct::Abandons
        } else if falls(behaviour.online_after.share.0) {
            let draw = unit(mix(self.key ^ 5) ^ u64::from(position));
            Conduct::Completes {
                online_after: behaviour.online_after.after.at(draw),
            }
        } else {
            Conduct::Completes {
                online_after: Duration::ZERO,
            }
        }
    }

    /// How long after completing a message the device goes back to what it reported before, if it does.
    /// These devices are the last of the deal, which all others are dealt from its beginning.
    pub(crate) fn reverts_after(&self, position: u32) -> Option<Duration> {
        let reverts = self.behaviour.reverts;
        let is_one = reverts.share.0 > 0.0 && self.deal.share(position) >= 1.0 - reverts.share.0;
        is_one.then(|| {
            reverts
                .after
                .at(unit(mix(self.key ^ 7) ^ u64::from(position)))
        })
    }

    /// How the devices answer, if they do.
    pub(crate) fn answers(&self) -> Option<&AnswerSpec> {
        self.behaviour.answers.as_ref()
    }

    /// How long after it has completed a message the device's answer is final.
    pub(crate) fn answers_after(&self, position: u32) -> Duration {
        let draw = unit(mix(self.key ^ 8) ^ u64::from(position));
        self.answers()
            .map_or(Duration::ZERO, |answers| answers.after.at(draw))
    }

    /// Whether the device answers that it failed.
    pub(crate) fn fails(&self, position: u32) -> bool {
        let fails = self.answers().map_or(0.0, |answers| answers.fails.0);
        fails > 0.0 && self.failing.share(position) < fails
    }

    /// How long the device takes for its message number `nth`.
    pub(crate) fn latency(&self, position: u32, nth: u64) -> Duration {
        let draw = unit(mix(self.key ^ 6).wrapping_add(u64::from(position) << 20) ^ nth);
        self.behaviour.latency.at(draw)
    }
}

fn unit(seed: u64) -> f64 {
    (mix(seed) >> 11) as f64 / (1u64 << 53) as f64
}

/// Whether the hub allows this device id.
pub(crate) fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > 128 {
        return Err(format!("the id '{id}' does not have 1 to 128 characters"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-:.+%_#*?!(),=@;$'".contains(c);
    match id.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(format!(
            "the id '{id}' has the character {c:?}, which the hub does not allow"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = r#"
seed: 7
groups:
  - name: fridges
    count: 1000
    id: "fridge-{index:04}"
    tags:
      kind: fridge
      region: { $weighted: { eu: 70, us: 30 } }
    behaviour: { offline: 10%, rejects: 0.05, disabled: 1%, online_after: { share: 20%, after: 1s..2s }, reverts: { share: 7%, after: 3s } }
  - count: 5
    id: "oven-{index}"
    first: 10
"#;

    #[test]
    fn ids_and_numbers_belong_together() {
        let fleet = Fleet::from_yaml(YAML).unwrap();
        assert_eq!(fleet.len(), 1005);
        for number in 0..fleet.len() {
            let id = fleet.id(number).unwrap();
            assert_eq!(fleet.number(&id), Some(number), "{id}");
        }
        assert_eq!(fleet.id(1000).unwrap(), "oven-10");
        assert_eq!(fleet.number("oven-9"), None);
        assert_eq!(fleet.number("fridge-1000"), None);
        assert_eq!(fleet.id(1005), None);
    }

    #[test]
    fn shares_are_exact_and_repeat() {
        let conducts = || {
            let fleet = Fleet::from_yaml(YAML).unwrap();
            (0..1000)
                .map(|i| fleet.groups()[0].conduct(i))
                .collect::<Vec<_>>()
        };
        let count = |wanted: Conduct| conducts().iter().filter(|found| **found == wanted).count();
        assert_eq!(conducts(), conducts());
        assert_eq!(count(Conduct::Offline), 100);
        assert_eq!(count(Conduct::Rejects), 50);
        assert_eq!(count(Conduct::Disabled), 10);
        let fleet = Fleet::from_yaml(YAML).unwrap();
        let reverting = (0..1000).filter_map(|i| Some((i, fleet.groups()[0].reverts_after(i)?)));
        let reverting: Vec<_> = reverting.collect();
        assert_eq!(reverting.len(), 70);
        for (position, after) in reverting {
            assert_eq!(after, Duration::from_secs(3));
            let conduct = fleet.groups()[0].conduct(position);
            assert_eq!(
                conduct,
                Conduct::Completes {
                    online_after: Duration::ZERO
                }
            );
        }
        assert_eq!(
            count(Conduct::Completes {
                online_after: Duration::ZERO
            }),
            640
        );
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        let error =
            Fleet::from_yaml("groups:\n  - count: 1\n    id: 'a{index}'\n    colour: red\n")
                .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("colour") && text.contains("line 4"), "{text}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (yaml, expected) in [
            (
                "groups: [{count: 2, id: 'a{index}'}, {count: 1, id: 'a{index}', first: 1}]",
                "both have the device 'a1'",
            ),
            ("groups: [{count: 1, id: 'a b{index}'}]", "does not allow"),
            (
                "groups: [{count: 1, id: 'a{index}', behaviour: {offline: 60%, rejects: 50%}}]",
                "110.0 %",
            ),
            (
                "groups: [{count: 1, id: 'a{index}', behaviour: {offline: 160%}}]",
                "between 0 and 1",
            ),
            (
                "groups: [{count: 1, id: 'a{index}', tags: {x: {$nope: 1}}}]",
                "$nope",
            ),
            ("groups: [{count: 2000000000, id: 'a{index}'}]", "at most"),
        ] {
            let error = Fleet::from_yaml(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }
}
