//! A prepared fleet: maps a device number to the device's properties, and an id to the number.

use std::time::Duration;

use super::file::{AnswerSpec, Behaviour, FleetError, FleetFile, GroupSpec};
use super::generator::Generator;
use super::pattern::IdPattern;
use super::permutation::{Permutation, mix};

/// The largest number of devices in a fleet; higher numbers are for devices added while the hub
/// runs.
pub(crate) const DEVICES_MAX: u64 = 1 << 30;

/// A fleet of computed devices.
#[derive(Debug, Clone)]
pub struct Fleet {
    seed: u64,
    groups: Vec<Group>,
    len: u32,
}

/// A group of similar devices.
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
    permutation: Permutation,
    failing: Permutation,
    key: u64,
}

/// The reaction of a device to messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageBehaviour {
    /// Completes messages once connected, `online_after` after the hub's start.
    Completes { online_after: Duration },
    /// Rejects messages.
    Rejects,
    /// Abandons messages, up to the delivery limit.
    Abandons,
    /// Receives messages without settling them.
    NeverAnswers,
    /// Never connected.
    Offline,
    /// Disabled: sends are refused.
    Disabled,
    /// Not simulated: the client connected as this device settles messages.
    Real,
}

impl Fleet {
    /// Creates a fleet without devices; devices can be added over the registry.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            seed: 0,
            groups: Vec::new(),
            len: 0,
        }
    }

    /// Creates a fleet of `count` well-behaved devices without tags, with ids such as
    /// `device-{index:06}`.
    ///
    /// # Errors
    ///
    /// The pattern has no placeholder for the number, or gives ids not allowed by the hub.
    pub fn plain(count: u32, id: &str) -> Result<Self, FleetError> {
        Self::new(&FleetFile {
            seed: 0,
            groups: vec![GroupSpec::plain(count, id)],
        })
    }

    /// Reads a fleet file and prepares the fleet.
    ///
    /// # Errors
    ///
    /// An error names the invalid line or group.
    pub fn from_yaml(yaml: &str) -> Result<Self, FleetError> {
        Self::new(&FleetFile::parse(yaml)?)
    }

    /// Prepares a fleet.
    ///
    /// # Errors
    ///
    /// A group is invalid, or two groups have a device in common.
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

    /// Returns the number of devices.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the fleet has no devices.
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

    /// Returns the number of the device with this id.
    #[inline]
    pub(crate) fn number(&self, id: &str) -> Option<u32> {
        self.groups.iter().find_map(|group| group.number(id))
    }

    /// Returns the group of a device, and the device's position in the group.
    pub(crate) fn locate(&self, number: u32) -> Option<(&Group, u32)> {
        let at = self
            .groups
            .partition_point(|group| group.start + group.count <= number);
        let group = self.groups.get(at)?;
        Some((group, number.checked_sub(group.start)?))
    }

    /// Returns the id of a device of the fleet.
    pub(crate) fn id(&self, number: u32) -> Option<String> {
        self.locate(number)
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
                "the shares of its behaviours add up to {:.1} %; at most 100 % is allowed",
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
            permutation: Permutation::new(spec.count, mix(key ^ 4)),
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

    /// Returns an id present in both groups, if any. Only patterns with matching fixed parts can
    /// have a common id; then each device of the smaller group is tried.
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

    /// Returns the reaction of the device at `position` to messages.
    pub(crate) fn message_behaviour(&self, position: u32) -> MessageBehaviour {
        let behaviour = &self.behaviour;
        let share = self.permutation.share(position);
        let mut end = 0.0;
        let mut falls = |part: f64| {
            end += part;
            share < end
        };
        if falls(behaviour.disabled.0) {
            MessageBehaviour::Disabled
        } else if falls(behaviour.offline.0) {
            MessageBehaviour::Offline
        } else if falls(behaviour.never_answers.0) {
            MessageBehaviour::NeverAnswers
        } else if falls(behaviour.rejects.0) {
            MessageBehaviour::Rejects
        } else if falls(behaviour.abandons.0) {
            MessageBehaviour::Abandons
        } else if falls(behaviour.online_after.share.0) {
            let draw = unit(mix(self.key ^ 5) ^ u64::from(position));
            MessageBehaviour::Completes {
                online_after: behaviour.online_after.after.at(draw),
            }
        } else {
            MessageBehaviour::Completes {
                online_after: Duration::ZERO,
            }
        }
    }

    /// Returns the time from the completion of a message until the device reverts the reported
    /// properties, if the device reverts. Reverting devices are taken from the end of the
    /// permutation, and all other shares from the beginning.
    pub(crate) fn reverts_after(&self, position: u32) -> Option<Duration> {
        let reverts = self.behaviour.reverts;
        let is_one =
            reverts.share.0 > 0.0 && self.permutation.share(position) >= 1.0 - reverts.share.0;
        is_one.then(|| {
            reverts
                .after
                .at(unit(mix(self.key ^ 7) ^ u64::from(position)))
        })
    }

    /// Returns the description of the devices' answers, if the devices answer.
    pub(crate) fn answers(&self) -> Option<&AnswerSpec> {
        self.behaviour.answers.as_ref()
    }

    /// Returns the time from the completion of a message to the device's final answer.
    pub(crate) fn answers_after(&self, position: u32) -> Duration {
        let draw = unit(mix(self.key ^ 8) ^ u64::from(position));
        self.answers()
            .map_or(Duration::ZERO, |answers| answers.after.at(draw))
    }

    /// Whether the device's final answer is `failed`.
    pub(crate) fn fails(&self, position: u32) -> bool {
        let fails = self.answers().map_or(0.0, |answers| answers.fails.0);
        fails > 0.0 && self.failing.share(position) < fails
    }

    /// Returns the device's latency for the message number `nth`.
    pub(crate) fn latency(&self, position: u32, nth: u64) -> Duration {
        let draw = unit(mix(self.key ^ 6).wrapping_add(u64::from(position) << 20) ^ nth);
        self.behaviour.latency.at(draw)
    }
}

fn unit(seed: u64) -> f64 {
    (mix(seed) >> 11) as f64 / (1u64 << 53) as f64
}

/// Checks a device id against the hub's rules.
pub(crate) fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > 128 {
        return Err(format!("the id '{id}' must have 1 to 128 characters"));
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
        let behaviours = || {
            let fleet = Fleet::from_yaml(YAML).unwrap();
            (0..1000)
                .map(|i| fleet.groups()[0].message_behaviour(i))
                .collect::<Vec<_>>()
        };
        let count = |expected: MessageBehaviour| {
            behaviours()
                .iter()
                .filter(|found| **found == expected)
                .count()
        };
        assert_eq!(behaviours(), behaviours());
        assert_eq!(count(MessageBehaviour::Offline), 100);
        assert_eq!(count(MessageBehaviour::Rejects), 50);
        assert_eq!(count(MessageBehaviour::Disabled), 10);
        let fleet = Fleet::from_yaml(YAML).unwrap();
        let reverting = (0..1000).filter_map(|i| Some((i, fleet.groups()[0].reverts_after(i)?)));
        let reverting: Vec<_> = reverting.collect();
        assert_eq!(reverting.len(), 70);
        for (position, after) in reverting {
            assert_eq!(after, Duration::from_secs(3));
            let behaviour = fleet.groups()[0].message_behaviour(position);
            assert_eq!(
                behaviour,
                MessageBehaviour::Completes {
                    online_after: Duration::ZERO
                }
            );
        }
        assert_eq!(
            count(MessageBehaviour::Completes {
                online_after: Duration::ZERO
            }),
            640
        );
    }

    #[test]
    fn unknown_fields_are_reported_with_the_line() {
        let error =
            Fleet::from_yaml("groups:\n  - count: 1\n    id: 'a{index}'\n    colour: red\n")
                .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("colour") && text.contains("line 4"), "{text}");
    }

    #[test]
    fn invalid_fleets_are_refused_with_the_reason() {
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
