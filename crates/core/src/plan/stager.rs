//! Assigns devices to stages, in a single pass over the target and within bounded memory.
//!
//! [`Stage`](crate::spec::Stage) defines the devices of a stage. Whether a percent takes a device
//! depends on all devices of the target, over all hubs, so the exact boundary (the *cut*) is known
//! only after the last device. The approximate cut is known from the start: cohorts are uniformly
//! distributed, so among N devices, the device at the fraction p of the cohort order has a cohort
//! within a few `sqrt(p (1 - p) / N)` of p.
//!
//! ```text
//!   0 ─────────────────────────[──────── p ────────]──────────────────────────── 1
//!       surely taken, counted    held, with ranks      surely not taken
//! ```
//!
//! Each hub therefore keeps a [`Band`] of cohorts around every cut, as wide as required by the
//! number of devices seen on that hub. The whole target has at least as many devices, so the cut
//! lies inside the band. The band narrows as more devices arrive, and devices outside of the
//! narrower band are released. At any time, O(√N) devices are held. After the last device, the
//! number of devices below the band is known, and the exact cut is found by rank among the devices
//! in the band.
//!
//! * The stager needs no advance knowledge: neither N, nor the number of existing devices in a
//!   list, nor the number of exclusions.
//! * The stage of a device depends on the device id, the salt, the tags and the set of devices. The
//!   order in which a hub's devices are assigned depends on the order of that hub only. The same
//!   fleet therefore gets the same plan, regardless of which hub answers first.
//! * A cut outside of the band is detected ([`CutMissed`]): a plan is either exact or rejected.

use std::collections::BinaryHeap;

use serde_json::Value;

use super::{Cohort, TagGroup};
use crate::ids::{DeviceId, StageIndex};
use crate::query::{self, TagPath, TagSelector};
use crate::spec::{MAX_STAGES, Percent, RolloutSpec, Stage};

/// The width of a band.
#[derive(Debug, Clone, Copy)]
struct Margin {
    /// Standard deviations on either side of the cut.
    deviations: f64,
    /// Additional devices on either side of the cut. With few devices, standard deviations say
    /// little.
    devices: f64,
    /// The number of devices on a hub before the first narrowing. Until then, the hub holds all
    /// devices.
    narrow_from: u64,
}

/// With this margin, a cut lies outside of the band in 1 of 10^11 rollouts.
const MARGIN: Margin = Margin {
    deviations: 7.0,
    devices: 16.0,
    narrow_from: 1_000,
};

/// The rules by which the stages of a rollout take devices.
#[derive(Debug)]
pub struct StageRules {
    rules: Vec<Rule>,
    /// The distinct percents.
    cuts: Vec<Percent>,
    salt: String,
    margin: Margin,
    /// If set, all devices belong to this stage.
    only: Option<StageIndex>,
}

#[derive(Debug)]
struct Rule {
    tags: TagSelector,
    /// The index of the stage's percent in `cuts`.
    cut: Option<usize>,
    max_devices: Option<usize>,
}

/// A set of stages, as a bit mask.
type StageSet = u64;
const _: () = assert!(
    MAX_STAGES + 1 < StageSet::BITS as usize,
    "and one for the rest, and one for those that join later"
);

impl StageRules {
    /// Returns the rules of all stages of `spec`.
    #[must_use]
    pub fn of(spec: &RolloutSpec) -> Self {
        let mut cuts = Vec::new();
        let rules = spec.all_stages().into_iter().map(|stage| {
            let cut = stage.percent.map(|percent| position(&mut cuts, percent));
            Rule::of(stage, cut)
        });
        Self {
            rules: rules.collect(),
            cuts,
            salt: spec.salt().to_owned(),
            margin: MARGIN,
            only: None,
        }
    }

    /// Returns rules that assign every device to `stage`.
    #[must_use]
    pub fn only(stage: StageIndex) -> Self {
        Self {
            rules: Vec::new(),
            cuts: Vec::new(),
            salt: String::new(),
            margin: MARGIN,
            only: Some(stage),
        }
    }

    /// Returns the distinct tags needed to assign a device.
    #[must_use]
    pub fn tags(&self) -> Vec<TagPath> {
        let mut tags = Vec::new();
        for path in self.rules.iter().flat_map(|rule| rule.tags.keys()) {
            position(&mut tags, path.clone());
        }
        tags
    }

    /// Returns whether any stage takes devices by cohort order.
    fn needs_ranks(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.cut.is_some() || rule.max_devices.is_some())
    }

    /// Returns the stages with matching tags.
    fn fitting<'t>(&self, tag: impl Fn(&TagPath) -> Option<&'t Value>) -> StageSet {
        if let Some(stage) = self.only {
            return 1 << stage.0;
        }
        let fits = |rule: &Rule| StageSet::from(query::matches(&rule.tags, &tag));
        let rules = self.rules.iter().enumerate();
        rules.fold(0, |set, (index, rule)| set | fits(rule) << index)
    }
}

impl Rule {
    fn of(stage: Stage, cut: Option<usize>) -> Self {
        let max_devices = stage
            .max_devices
            .map(|max| usize::try_from(max).expect("a hundred thousand at the most"));
        Self {
            tags: stage.tags,
            cut,
            max_devices,
        }
    }
}

/// Returns the index of `item` in `items`, after appending a missing item.
fn position<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    let found = items.iter().position(|other| *other == item);
    found.unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

/// A device with the assigned stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedDevice {
    /// The stage.
    pub stage: StageIndex,
    /// The tag group of the device.
    pub group: TagGroup,
    /// The device.
    pub device: DeviceId,
}

/// The position of a device in the cohort order. Devices of the same cohort, such as the same
/// device id on two hubs, have a fixed order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    cohort: Cohort,
    device: DeviceId,
    hub: usize,
}

/// A device without a stage. Candidates are ordered by rank.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: Rank,
    group: TagGroup,
    fits: StageSet,
}

impl Candidate {
    fn fits(&self, stage: usize) -> bool {
        self.fits >> stage & 1 == 1
    }

    fn assign(self, stage: usize) -> AssignedDevice {
        assign(stage, self.group, self.rank.device)
    }
}

fn assign(stage: usize, group: TagGroup, device: DeviceId) -> AssignedDevice {
    let stage = u16::try_from(stage).expect("there are at most MAX_STAGES stages");
    AssignedDevice {
        stage: StageIndex(stage),
        group,
        device,
    }
}

/// The position of a device relative to a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Taken,
    Undecided,
    NotTaken,
}

/// A range of cohorts that contains a cut, with the devices in the range.
#[derive(Debug)]
struct Band {
    low: Cohort,
    high: Cohort,
    /// The number of devices with a cohort lower than `low`.
    below: u64,
    /// The ranks of all devices from `low` to `high`, including assigned devices and devices with
    /// other tags.
    within: Vec<Rank>,
}

impl Band {
    fn everything() -> Self {
        Self {
            low: Cohort(0),
            high: Cohort(u64::MAX),
            below: 0,
            within: Vec::new(),
        }
    }

    fn side(&self, cohort: Cohort) -> Side {
        if cohort < self.low {
            Side::Taken
        } else if cohort <= self.high {
            Side::Undecided
        } else {
            Side::NotTaken
        }
    }

    fn add(&mut self, rank: &Rank) {
        match self.side(rank.cohort) {
            Side::Taken => self.below += 1,
            Side::Undecided => self.within.push(rank.clone()),
            Side::NotTaken => {}
        }
    }

    /// Narrows the band to the intersection with `low` to `high`.
    fn narrow(&mut self, low: Cohort, high: Cohort) {
        self.low = self.low.max(low);
        self.high = self.high.min(high);
        let all = self.within.len();
        self.within.retain(|rank| rank.cohort >= self.low);
        self.below += (all - self.within.len()) as u64;
        self.within.retain(|rank| rank.cohort <= self.high);
    }

    /// Narrows the band to the possible positions of the cut among at least `seen` devices.
    fn narrow_to(&mut self, cut: Percent, seen: u64, margin: Margin) {
        let (p, n) = (cut.fraction(), seen as f64);
        let half = margin.deviations * (p * (1.0 - p) / n).sqrt() + margin.devices / n;
        self.narrow(cohort_at(p - half), cohort_at(p + half));
    }

    /// Merges the bands of two hubs. Bands around the same cut overlap.
    fn merge(mut self, other: Self) -> Self {
        let (low, high) = (other.low, other.high);
        self.below += other.below;
        self.within.extend(other.within);
        self.narrow(low, high);
        self
    }
}

/// Returns the first cohort at a fraction. A fraction below 0 gives the first of all cohorts, a
/// fraction above 1 the last.
fn cohort_at(fraction: f64) -> Cohort {
    // The conversion saturates.
    Cohort((fraction * 2f64.powi(64)) as u64)
}

/// Assigns one hub's devices to stages.
///
/// ```
/// use twincast_core::ids::{DeviceId, StageIndex};
/// use twincast_core::plan::{HubStager, StageRules, TagGroup, finish_stages};
/// # use twincast_core::spec::RolloutSpec;
/// # let text = "{name: r, target: {all: true}, message: {body: {text: hi}}, \
/// #     stages: [{name: canary, percent: 10%}]}";
/// # let spec = RolloutSpec::read("r.yaml", text)?;
/// // The only stage in the spec, `canary`, takes 10% of the devices.
/// let rules = StageRules::of(&spec);
/// let mut stager = HubStager::new(&rules, 0);
/// let mut assigned = Vec::new();
/// for number in 0..50 {
///     let device = DeviceId::new(format!("fridge-{number}"))?;
///     stager.push(device, TagGroup::default(), |_| None, &mut assigned);
/// }
/// assigned.extend(finish_stages(vec![stager])?.remove(0));
/// let canary = assigned.iter().filter(|device| device.stage == StageIndex(0));
/// assert_eq!((canary.count(), assigned.len()), (5, 50));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct HubStager<'a> {
    rules: &'a StageRules,
    hub: usize,
    /// Whether any stage takes devices by rank.
    needs_ranks: bool,
    seen: u64,
    narrow_at: u64,
    /// The band of each cut.
    bands: Vec<Band>,
    /// Undecided devices, each with the index of the undecided stage.
    held: Vec<(usize, Candidate)>,
    /// For each stage, the candidates of lowest rank, at most `max_devices`.
    counted: Vec<BinaryHeap<Candidate>>,
}

/// A cut lies outside of the band.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the first {percent} of the devices cannot be determined exactly, because their cohorts are \
     spread too unevenly; give the rollout another salt"
)]
pub struct CutMissed {
    /// The percent of the cut.
    pub percent: Percent,
}

impl<'a> HubStager<'a> {
    /// Creates the stager of the hub at index `hub` in the order of hub names.
    #[must_use]
    pub fn new(rules: &'a StageRules, hub: usize) -> Self {
        Self {
            rules,
            hub,
            needs_ranks: rules.needs_ranks(),
            seen: 0,
            narrow_at: rules.margin.narrow_from,
            bands: rules.cuts.iter().map(|_| Band::everything()).collect(),
            held: Vec::new(),
            counted: rules.rules.iter().map(|_| BinaryHeap::new()).collect(),
        }
    }

    /// Adds a device of the target; `tag` returns the tags of the device. Appends to `assigned`
    /// every device whose stage is now certain: the new device, some held devices, or none.
    pub fn push<'t>(
        &mut self,
        device: DeviceId,
        group: TagGroup,
        tag: impl Fn(&TagPath) -> Option<&'t Value>,
        assigned: &mut Vec<AssignedDevice>,
    ) {
        let fits = self.rules.fitting(tag);
        if !self.needs_ranks {
            // The last stage takes every device.
            assigned.push(assign(fits.trailing_zeros() as usize, group, device));
            return;
        }
        let rank = Rank {
            cohort: Cohort::of(&device, &self.rules.salt),
            device,
            hub: self.hub,
        };
        self.seen += 1;
        self.bands.iter_mut().for_each(|band| band.add(&rank));
        self.route(0, Candidate { rank, group, fits }, assigned);
        if self.seen >= self.narrow_at {
            self.narrow(assigned);
        }
    }

    /// Offers a device to the stages, starting at stage `from`, until the device is taken or held.
    fn route(&mut self, from: usize, mut candidate: Candidate, assigned: &mut Vec<AssignedDevice>) {
        for (stage, rule) in self.rules.rules.iter().enumerate().skip(from) {
            match self.side(stage, rule, &candidate) {
                Side::NotTaken => continue,
                Side::Undecided => return self.held.push((stage, candidate)),
                Side::Taken => {}
            }
            let Some(max) = rule.max_devices else {
                return assigned.push(candidate.assign(stage));
            };
            let first = &mut self.counted[stage];
            first.push(candidate);
            if first.len() <= max {
                return;
            }
            // At least `max` devices precede this candidate, so the stage cannot take the
            // candidate.
            candidate = first.pop().expect("one was just added");
        }
        unreachable!("the last stage takes all that comes to it");
    }

    /// Decides whether a stage takes a device, ignoring `max_devices`.
    fn side(&self, stage: usize, rule: &Rule, candidate: &Candidate) -> Side {
        if !candidate.fits(stage) {
            return Side::NotTaken;
        }
        rule.cut.map_or(Side::Taken, |cut| {
            self.bands[cut].side(candidate.rank.cohort)
        })
    }

    /// Narrows the bands to the number of devices seen, and routes the held devices again.
    fn narrow(&mut self, assigned: &mut Vec<AssignedDevice>) {
        for (band, cut) in self.bands.iter_mut().zip(&self.rules.cuts) {
            band.narrow_to(*cut, self.seen, self.rules.margin);
        }
        for (stage, candidate) in std::mem::take(&mut self.held) {
            self.route(stage, candidate, assigned);
        }
        // After an eighth more devices: a band is never much wider than necessary, and is narrowed
        // about a hundred times at most.
        self.narrow_at = self.seen + self.seen / 8 + 1;
    }

    /// Returns the number of devices and ranks in memory. The ranks of assigned devices count, too.
    #[must_use]
    pub fn held(&self) -> usize {
        let ranks = self.bands.iter().map(|band| band.within.len());
        let counted = self.counted.iter().map(BinaryHeap::len);
        self.held.len() + ranks.sum::<usize>() + counted.sum::<usize>()
    }
}

/// Assigns the held devices after the last device of all hubs. Returns the devices of each hub,
/// ordered by stage and cohort.
///
/// # Errors
/// Returns [`CutMissed`] when a cut lies outside of the band. Devices assigned before are then
/// invalid, too.
pub fn finish_stages(hubs: Vec<HubStager<'_>>) -> Result<Vec<Vec<AssignedDevice>>, CutMissed> {
    let mut taken: Vec<Vec<AssignedDevice>> = hubs.iter().map(|_| Vec::new()).collect();
    let Some(rules) = hubs.first().map(|hub| hub.rules) else {
        return Ok(taken);
    };
    let seen = hubs.iter().map(|hub| hub.seen).sum();
    let mut bands: Vec<_> = rules.cuts.iter().map(|_| Band::everything()).collect();
    let mut coming: Vec<Vec<Candidate>> = rules.rules.iter().map(|_| Vec::new()).collect();
    for hub in hubs {
        let both = bands.into_iter().zip(hub.bands);
        bands = both.map(|(all, one)| all.merge(one)).collect();
        for (stage, candidate) in hub.held {
            coming[stage].push(candidate);
        }
        for (stage, first) in coming.iter_mut().zip(hub.counted) {
            stage.extend(first);
        }
    }
    let cuts = rules.cuts.iter().zip(bands);
    let cuts = cuts
        .map(|(percent, band)| Cut::find(*percent, seen, band))
        .collect::<Result<Vec<_>, _>>()?;

    let mut passed_on = Vec::new();
    for ((stage, rule), mut here) in rules.rules.iter().enumerate().zip(coming) {
        here.append(&mut passed_on);
        here.sort_unstable();
        let mut room = rule.max_devices.unwrap_or(usize::MAX);
        for candidate in here {
            let within = rule.cut.is_none_or(|cut| cuts[cut].takes(&candidate.rank));
            if candidate.fits(stage) && within && room > 0 {
                room -= 1;
                taken[candidate.rank.hub].push(candidate.assign(stage));
            } else {
                passed_on.push(candidate);
            }
        }
    }
    assert!(passed_on.is_empty(), "the last stage takes all");
    Ok(taken)
}

/// The exact cut of a percent.
#[derive(Debug)]
struct Cut {
    band: Band,
    /// The first rank of the band beyond the cut; `None` if the cut takes the whole band.
    first_out: Option<Rank>,
}

impl Cut {
    /// Finds the cut among `seen` devices in total.
    fn find(percent: Percent, seen: u64, mut band: Band) -> Result<Self, CutMissed> {
        let in_band = percent.of(seen).checked_sub(band.below);
        let in_band = in_band.and_then(|count| usize::try_from(count).ok());
        match in_band.filter(|count| *count <= band.within.len()) {
            None => Err(CutMissed { percent }),
            Some(count) => {
                band.within.sort_unstable();
                let first_out = band.within.get(count).cloned();
                Ok(Self { band, first_out })
            }
        }
    }

    fn takes(&self, rank: &Rank) -> bool {
        match self.band.side(rank.cohort) {
            Side::Taken => true,
            Side::NotTaken => false,
            Side::Undecided => self.first_out.as_ref().is_none_or(|out| rank < out),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spec(stages: &str) -> RolloutSpec {
        let text = format!(
            "{{name: r, target: {{all: true}}, message: {{body: {{text: hi}}}}, stages: [{stages}]}}"
        );
        RolloutSpec::read("test", &text).unwrap()
    }

    fn rules(stages: &str, margin: Margin) -> StageRules {
        StageRules {
            margin,
            ..StageRules::of(&spec(stages))
        }
    }

    /// A device of a fleet, with the value of the tag `ring`.
    #[derive(Debug, Clone)]
    struct Device {
        hub: usize,
        id: DeviceId,
        ring: Option<Value>,
    }

    fn device(hub: usize, number: usize, ring: u8) -> Device {
        Device {
            hub,
            id: DeviceId::new(format!("d-{number}")).unwrap(),
            ring: (ring > 0).then(|| json!(ring)),
        }
    }

    /// The stage of each device, by hub and id.
    type Places = BTreeMap<(usize, String), usize>;

    fn stage(
        rules: &StageRules,
        hubs: usize,
        devices: &[Device],
    ) -> Result<Vec<Vec<AssignedDevice>>, CutMissed> {
        let mut stagers: Vec<_> = (0..hubs).map(|hub| HubStager::new(rules, hub)).collect();
        let mut by_hub: Vec<_> = (0..hubs).map(|_| Vec::new()).collect();
        for Device { hub, id, ring } in devices {
            let group = TagGroup(vec![("of".into(), Some(id.to_string()))]);
            let tag = |path: &TagPath| ring.as_ref().filter(|_| path.as_str() == "ring");
            stagers[*hub].push(id.clone(), group, tag, &mut by_hub[*hub]);
        }
        for (all, rest) in by_hub.iter_mut().zip(finish_stages(stagers)?) {
            all.extend(rest);
        }
        Ok(by_hub)
    }

    fn places(by_hub: &[Vec<AssignedDevice>]) -> Places {
        let mut places = Places::new();
        for (hub, all) in by_hub.iter().enumerate() {
            for AssignedDevice {
                stage,
                group,
                device,
            } in all
            {
                assert_eq!(group.0[0].1.as_deref(), Some(device.as_str()));
                let place = usize::from(stage.0);
                let before = places.insert((hub, device.to_string()), place);
                assert_eq!(before, None, "{device} is assigned twice");
            }
        }
        places
    }

    /// The expected stages, computed from the definition of [`Stage`].
    fn by_definition(spec: &RolloutSpec, devices: &[Device]) -> Places {
        let mut order: Vec<_> = devices.iter().collect();
        order.sort_by_key(|d| (Cohort::of(&d.id, spec.salt()), d.id.clone(), d.hub));
        let mut rest: Vec<_> = order.into_iter().enumerate().collect();
        let mut places = Places::new();
        for (place, stage) in spec.all_stages().into_iter().enumerate() {
            let reach = stage
                .percent
                .map_or(u64::MAX, |percent| percent.of(devices.len() as u64));
            let mut room = stage.max_devices.unwrap_or(u32::MAX);
            rest.retain(|(rank, device)| {
                let has_tags = query::matches(&stage.tags, |_| device.ring.as_ref());
                let taken = has_tags && (*rank as u64) < reach && room > 0;
                if taken {
                    room -= 1;
                    places.insert((device.hub, device.id.to_string()), place);
                }
                !taken
            });
        }
        places
    }

    fn any_stages() -> impl Strategy<Value = String> {
        let percent = prop::option::of(1u32..=1_000_000);
        let max = prop::option::of(1u32..60);
        let ring = prop::option::of(1u8..4);
        let stage = (percent, max, ring);
        prop::collection::vec(stage, 0..5).prop_map(|mut stages| {
            // A valid spec has ascending percents.
            let mut percents: Vec<_> = stages.iter().filter_map(|stage| stage.0).collect();
            percents.sort_unstable();
            percents.dedup();
            let mut percents = percents.into_iter();
            for stage in &mut stages {
                stage.0 = stage.0.and_then(|_| percents.next());
            }
            stages.retain(|stage| *stage != (None, None, None));
            let texts = stages
                .iter()
                .enumerate()
                .map(|(index, (percent, max, ring))| {
                    let mut text = format!("{{name: s{index}");
                    if let Some(percent) = percent {
                        text +=
                            &format!(", percent: {}.{:04}%", percent / 10_000, percent % 10_000);
                    }
                    if let Some(max) = max {
                        text += &format!(", max_devices: {max}");
                    }
                    if let Some(ring) = ring {
                        text += &format!(", tags: {{ring: {ring}}}");
                    }
                    text + "}"
                });
            texts.collect::<Vec<_>>().join(", ")
        })
    }

    fn any_fleet() -> impl Strategy<Value = Vec<Device>> {
        // Large and small hubs; some ids exist on several hubs.
        let hub = prop_oneof![9 => Just(0usize), 3 => Just(1), 1 => Just(2)];
        let place = (hub, 0usize..1_000, 0u8..4);
        prop::collection::vec(place, 0..400).prop_map(|devices| {
            let unique: BTreeMap<_, _> = devices.into_iter().map(|(h, n, r)| ((h, n), r)).collect();
            let devices = unique.into_iter();
            devices.map(|((h, n), r)| device(h, n, r)).collect()
        })
    }

    fn any_margin() -> impl Strategy<Value = Margin> {
        (0.0f64..3.0, 0.0f64..4.0, 1u64..200).prop_map(|(deviations, devices, narrow_from)| {
            Margin {
                deviations,
                devices,
                narrow_from,
            }
        })
    }

    proptest! {
        /// Each device is in the stage given by the definition, in any order of arrival.
        #[test]
        fn stages_are_as_defined(
            stages in any_stages(),
            (fleet, shuffled) in any_fleet().prop_flat_map(|fleet| (Just(fleet.clone()), Just(fleet).prop_shuffle())),
        ) {
            let rules = rules(&stages, Margin { narrow_from: 20, ..MARGIN });
            let expected = by_definition(&spec(&stages), &fleet);
            prop_assert_eq!(&places(&stage(&rules, 3, &fleet).unwrap()), &expected);
            prop_assert_eq!(&places(&stage(&rules, 3, &shuffled).unwrap()), &expected);
        }

        /// With any margin, the result is either right or an error.
        #[test]
        fn a_missed_cut_is_noticed(stages in any_stages(), fleet in any_fleet().prop_shuffle(), margin in any_margin()) {
            if let Ok(found) = stage(&rules(&stages, margin), 3, &fleet) {
                prop_assert_eq!(places(&found), by_definition(&spec(&stages), &fleet));
            }
        }

        /// The order of hubs has no influence, not even on the order of a hub's devices.
        #[test]
        fn hub_order_does_not_affect_stages(stages in any_stages(), fleet in any_fleet()) {
            let margin = Margin { narrow_from: 20, ..MARGIN };
            let one_by_one = stage(&rules(&stages, margin), 3, &fleet).unwrap();
            let mut turns: Vec<_> = (0..3).map(|hub| fleet.iter().filter(move |d| d.hub == hub)).collect();
            let mut mixed = Vec::new();
            while mixed.len() < fleet.len() {
                mixed.extend(turns.iter_mut().rev().filter_map(Iterator::next).cloned());
            }
            prop_assert_eq!(stage(&rules(&stages, margin), 3, &mixed).unwrap(), one_by_one);
        }
    }

    #[test]
    fn both_ends_of_a_narrow_band_are_met() {
        let fleet: Vec<_> = (0..400).map(|n| device(0, n, 0)).collect();
        let nothing = Margin {
            deviations: 0.0,
            devices: 0.0,
            narrow_from: 1,
        };
        let missed = stage(&rules("{name: a, percent: 30%}", nothing), 1, &fleet).unwrap_err();
        assert!(missed.to_string().contains("30%"), "{missed}");
        let exact = stage(&rules("{name: a, percent: 100%}", nothing), 1, &fleet).unwrap();
        assert!(
            exact[0]
                .iter()
                .all(|assigned| assigned.stage == StageIndex(0))
        );
    }

    #[test]
    fn percents_are_exact_at_every_size() {
        let stages = ["1%", "10%", "33.3333%", "50%", "100%"];
        let text: Vec<_> = stages
            .iter()
            .map(|percent| {
                format!(
                    "{{name: s{}, percent: {percent}}}",
                    percent.replace('%', "")
                )
            })
            .collect();
        let rules = rules(
            &text.join(", "),
            Margin {
                narrow_from: 50,
                ..MARGIN
            },
        );
        for size in 0..=1_000 {
            let fleet: Vec<_> = (0..size).map(|n| device(n % 2, n, 0)).collect();
            let mut sizes = [0u64; 6];
            for assigned in stage(&rules, 2, &fleet).unwrap().into_iter().flatten() {
                sizes[usize::from(assigned.stage.0)] += 1;
            }
            let mut reached = 0;
            for (percent, taken) in stages.iter().zip(sizes) {
                reached += taken;
                let percent: Percent = percent.parse().unwrap();
                assert_eq!(reached, percent.of(size as u64), "{percent} of {size}");
            }
            assert_eq!(sizes[5], 0);
        }
    }

    #[test]
    fn held_devices_are_bounded() {
        let rules = rules(
            "{name: a, percent: 1%}, {name: b, max_devices: 500}, {name: c, percent: 10%}, {name: d, percent: 50%}",
            MARGIN,
        );
        let mut stager = HubStager::new(&rules, 0);
        let mut sizes = [0u64; 5];
        let (mut out, mut most) = (Vec::new(), 0);
        for n in 0..500_000 {
            let id = DeviceId::new(format!("fridge-{n}")).unwrap();
            stager.push(id, TagGroup::default(), |_| None, &mut out);
            most = most.max(stager.held());
            out.drain(..)
                .for_each(|a| sizes[usize::from(a.stage.0)] += 1);
        }
        assert!(most < 25_000, "{most} devices were held");
        let rest = finish_stages(vec![stager]).unwrap();
        rest.iter()
            .flatten()
            .for_each(|a| sizes[usize::from(a.stage.0)] += 1);
        assert_eq!(sizes, [5_000, 500, 44_500, 200_000, 250_000]);
    }

    #[test]
    fn stager_without_ranks_holds_no_devices() {
        let rules = StageRules::of(&spec("{name: a, tags: {ring: 1}}"));
        assert_eq!(rules.tags(), [TagPath::new("ring").unwrap()]);
        let mut stager = HubStager::new(&rules, 0);
        let mut out = Vec::new();
        for n in 0..6 {
            let ring = json!(n % 3);
            let id = DeviceId::new(format!("d{n}")).unwrap();
            stager.push(id, TagGroup::default(), |_| Some(&ring), &mut out);
        }
        assert_eq!((stager.held(), out.len()), (0, 6));
        let stages: Vec<_> = out.iter().map(|assigned| assigned.stage.0).collect();
        assert_eq!(stages, [1, 0, 1, 1, 0, 1]);
        assert_eq!(StageRules::of(&spec("")).tags(), []);
    }
}
