//! Assigns devices to stages, in one pass over the target, within a bounded memory.
//!
//! What a stage takes is said at [`Stage`](crate::spec::Stage). Whether a percent takes a device depends on all
//! devices of the target, over all hubs, and those are known only when the last has come by. But it is
//! known nearly from the start: cohorts are as good as random, so of N devices, the one at the
//! fraction p of their order has a cohort within some `sqrt(p (1 - p) / N)` of p.
//!
//! ```text
//!   0 ─────────────────────────[──────── p ────────]──────────────────────────── 1
//!       surely taken, counted       held, all with       surely not taken
//!                                    their ranks
//! ```
//!
//! So each hub keeps a [`Band`] about every cut, for as many devices as it has seen itself. The
//! target has no fewer, so the cut cannot lie outside; and as more come by, the band narrows, and what it
//! no longer covers is let go. Held are O(√N) devices at any time. In the end everything is counted, and
//! the cut is found exactly, by its number, among those that the bands still cover.
//!
//! * Nothing need be known beforehand: not N, nor how many of a list exist, nor how many are excluded.
//! * A device's stage depends on its id, the salt, its tags and the set of devices. The order in which a hub's devices
//!   are assigned depends on that hub's own order only. So the same fleet has the same plan,
//!   whichever hub is first.
//! * Should a cut lie outside of its band nevertheless, that is noticed ([`CutMissed`]): a plan is exact, or is none.

use std::collections::BinaryHeap;

use serde_json::Value;

use super::{Cohort, Group};
use crate::ids::{DeviceId, StageIndex};
use crate::query::{self, TagPath, TagSelector};
use crate::spec::{MAX_STAGES, Percent, RolloutSpec, Stage};

/// How wide bands are.
#[derive(Debug, Clone, Copy)]
struct Margin {
    /// Standard deviations to either side.
    deviations: f64,
    /// And so many devices: with few of them, deviations say little.
    devices: f64,
    /// Devices that a hub has seen before it narrows its bands for the first time. Until then it holds all.
    from: u64,
}

/// A cut lies outside of such a band once in 10^11 rollouts.
const MARGIN: Margin = Margin {
    deviations: 7.0,
    devices: 16.0,
    from: 1_000,
};

/// What the stages of a rollout take.
#[derive(Debug)]
pub struct StageRules {
    rules: Vec<Rule>,
    /// The percents, each once.
    cuts: Vec<Percent>,
    salt: String,
    margin: Margin,
    /// All devices belong to this stage.
    only: Option<StageIndex>,
}

#[derive(Debug)]
struct Rule {
    tags: TagSelector,
    /// Which of the cuts.
    cut: Option<usize>,
    max_devices: Option<usize>,
}

/// A set of stages, one bit each.
type StageSet = u64;
const _: () = assert!(
    MAX_STAGES + 1 < StageSet::BITS as usize,
    "and one for the rest, and one for those that join later"
);

impl StageRules {
    /// What the stages of `spec` take.
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

    /// Every device belongs to `stage`.
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

    /// The tags that must be known of a device, each once.
    #[must_use]
    pub fn tags(&self) -> Vec<TagPath> {
        let mut tags = Vec::new();
        for path in self.rules.iter().flat_map(|rule| rule.tags.keys()) {
            position(&mut tags, path.clone());
        }
        tags
    }

    /// Some stage takes devices by their place in the order of cohorts.
    fn are_by_rank(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.cut.is_some() || rule.max_devices.is_some())
    }

    /// The stages whose tags a device has.
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

/// Where `item` is in `items`, at the end of which it is put if it is not there.
fn position<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    let found = items.iter().position(|other| *other == item);
    found.unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

/// A device with its stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The stage.
    pub stage: StageIndex,
    /// What it shares with others of its batch.
    pub group: Group,
    /// The device.
    pub device: DeviceId,
}

/// A device's place in the order of cohorts. Devices of one cohort, as those with one id on two hubs,
/// follow each other in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    cohort: Cohort,
    device: DeviceId,
    hub: usize,
}

/// A device without a stage. Ordered by rank.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: Rank,
    group: Group,
    fits: StageSet,
}

impl Candidate {
    fn fits(&self, stage: usize) -> bool {
        self.fits >> stage & 1 == 1
    }

    fn assigned(self, stage: usize) -> Assigned {
        assigned(stage, self.group, self.rank.device)
    }
}

fn assigned(stage: usize, group: Group, device: DeviceId) -> Assigned {
    let stage = u16::try_from(stage).expect("there are at most MAX_STAGES stages");
    Assigned {
        stage: StageIndex(stage),
        group,
        device,
    }
}

/// On which side of a cut a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Taken,
    Undecided,
    NotTaken,
}

/// The cohorts among which a cut is, and the devices that have them.
#[derive(Debug)]
struct Band {
    low: Cohort,
    high: Cohort,
    /// How many devices have a lower cohort than `low`.
    below: u64,
    /// Those from `low` to `high`, whatever else is known of them.
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

    /// Narrows it to what is also within `low` to `high`.
    fn narrow(&mut self, low: Cohort, high: Cohort) {
        self.low = self.low.max(low);
        self.high = self.high.min(high);
        let all = self.within.len();
        self.within.retain(|rank| rank.cohort >= self.low);
        self.below += (all - self.within.len()) as u64;
        self.within.retain(|rank| rank.cohort <= self.high);
    }

    /// Narrows it to where the cut is if there are `seen` devices, or more.
    fn narrow_to(&mut self, cut: Percent, seen: u64, margin: Margin) {
        let (p, n) = (cut.fraction(), seen as f64);
        let half = margin.deviations * (p * (1.0 - p) / n).sqrt() + margin.devices / n;
        self.narrow(cohort_at(p - half), cohort_at(p + half));
    }

    /// Puts two hubs' bands together. Both are about the same cut, so they overlap.
    fn and(mut self, other: Self) -> Self {
        let (low, high) = (other.low, other.high);
        self.below += other.below;
        self.within.extend(other.within);
        self.narrow(low, high);
        self
    }
}

/// The first cohort at a fraction; the first or last of all for one beyond.
fn cohort_at(fraction: f64) -> Cohort {
    // The conversion saturates.
    Cohort((fraction * 2f64.powi(64)) as u64)
}

/// Assigns one hub's devices to stages.
#[derive(Debug)]
pub struct HubStager<'a> {
    rules: &'a StageRules,
    hub: usize,
    /// Some stage takes by rank.
    by_rank: bool,
    seen: u64,
    narrow_at: u64,
    /// By cut.
    bands: Vec<Band>,
    /// Devices that are undecided at a stage.
    held: Vec<(usize, Candidate)>,
    /// By stage: the first that came to it, no more than its `max_devices`.
    counted: Vec<BinaryHeap<Candidate>>,
}

/// A cut lies outside of the cohorts among which it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it cannot be told exactly which devices the first {percent} are, because their cohorts are spread too \
     unevenly; give the rollout another salt"
)]
pub struct CutMissed {
    /// Which one.
    pub percent: Percent,
}

impl<'a> HubStager<'a> {
    /// For the hub that is at `hub` in the order of the hubs' names.
    #[must_use]
    pub fn new(rules: &'a StageRules, hub: usize) -> Self {
        Self {
            rules,
            hub,
            by_rank: rules.are_by_rank(),
            seen: 0,
            narrow_at: rules.margin.from,
            bands: rules.cuts.iter().map(|_| Band::everything()).collect(),
            held: Vec::new(),
            counted: rules.rules.iter().map(|_| BinaryHeap::new()).collect(),
        }
    }

    /// Takes a device of the target; `tag` gives its tags. Adds to `assigned` whichever devices have a
    /// stage by it: this one, or some that were held, or none.
    pub fn push<'t>(
        &mut self,
        device: DeviceId,
        group: Group,
        tag: impl Fn(&TagPath) -> Option<&'t Value>,
        assigned: &mut Vec<Assigned>,
    ) {
        let fits = self.rules.fitting(tag);
        if !self.by_rank {
            // The last stage takes all.
            assigned.push(self::assigned(
                fits.trailing_zeros() as usize,
                group,
                device,
            ));
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

    /// Leads a device through the stages, from one on, until it is taken or held.
    fn route(&mut self, from: usize, mut candidate: Candidate, assigned: &mut Vec<Assigned>) {
        for (stage, rule) in self.rules.rules.iter().enumerate().skip(from) {
            match self.side(stage, rule, &candidate) {
                Side::NotTaken => continue,
                Side::Undecided => return self.held.push((stage, candidate)),
                Side::Taken => {}
            }
            let Some(max) = rule.max_devices else {
                return assigned.push(candidate.assigned(stage));
            };
            let first = &mut self.counted[stage];
            first.push(candidate);
            if first.len() <= max {
                return;
            }
            // Whatever else comes, so many are before this one.
            candidate = first.pop().expect("one was just added");
        }
        unreachable!("the last stage takes all that comes to it");
    }

    /// Whether a stage takes a device, its `max_devices` aside.
    fn side(&self, stage: usize, rule: &Rule, candidate: &Candidate) -> Side {
        if !candidate.fits(stage) {
            return Side::NotTaken;
        }
        rule.cut.map_or(Side::Taken, |cut| {
            self.bands[cut].side(candidate.rank.cohort)
        })
    }

    /// Narrows the bands to what was seen, and lets go what they no longer cover.
    fn narrow(&mut self, assigned: &mut Vec<Assigned>) {
        for (band, cut) in self.bands.iter_mut().zip(&self.rules.cuts) {
            band.narrow_to(*cut, self.seen, self.rules.margin);
        }
        for (stage, candidate) in std::mem::take(&mut self.held) {
            self.route(stage, candidate, assigned);
        }
        // By an eighth: a band is never much wider than it must be, and this costs a hundred looks at it at the most.
        self.narrow_at = self.seen + self.seen / 8 + 1;
    }

    /// How many devices it holds, and ranks of such as it does not.
    #[must_use]
    pub fn held(&self) -> usize {
        let ranks = self.bands.iter().map(|band| band.within.len());
        let counted = self.counted.iter().map(BinaryHeap::len);
        self.held.len() + ranks.sum::<usize>() + counted.sum::<usize>()
    }
}

/// Assigns what is held, once all devices of all hubs have come by. Gives each hub's devices, by stage and cohort.
///
/// # Errors
/// [`CutMissed`]; then what was assigned before is worth nothing either.
pub fn finish_stages(hubs: Vec<HubStager<'_>>) -> Result<Vec<Vec<Assigned>>, CutMissed> {
    let mut taken: Vec<Vec<Assigned>> = hubs.iter().map(|_| Vec::new()).collect();
    let Some(rules) = hubs.first().map(|hub| hub.rules) else {
        return Ok(taken);
    };
    let seen = hubs.iter().map(|hub| hub.seen).sum();
    let mut bands: Vec<_> = rules.cuts.iter().map(|_| Band::everything()).collect();
    let mut coming: Vec<Vec<Candidate>> = rules.rules.iter().map(|_| Vec::new()).collect();
    for hub in hubs {
        let both = bands.into_iter().zip(hub.bands);
        bands = both.map(|(all, one)| all.and(one)).collect();
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
                taken[candidate.rank.hub].push(candidate.assigned(stage));
            } else {
                passed_on.push(candidate);
            }
        }
    }
    assert!(passed_on.is_empty(), "the last stage takes all");
    Ok(taken)
}

/// Where a percent cuts, exactly.
#[derive(Debug)]
struct Cut {
    band: Band,
    /// The first in the band that is not taken, if there is one.
    first_out: Option<Rank>,
}

impl Cut {
    /// Finds the cut of `seen` devices in all.
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

    /// A device of a fleet, and the value of its tag `ring`.
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
    ) -> Result<Vec<Vec<Assigned>>, CutMissed> {
        let mut stagers: Vec<_> = (0..hubs).map(|hub| HubStager::new(rules, hub)).collect();
        let mut by_hub: Vec<_> = (0..hubs).map(|_| Vec::new()).collect();
        for Device { hub, id, ring } in devices {
            let group = Group(vec![("of".into(), Some(id.to_string()))]);
            let tag = |path: &TagPath| ring.as_ref().filter(|_| path.as_str() == "ring");
            stagers[*hub].push(id.clone(), group, tag, &mut by_hub[*hub]);
        }
        for (all, rest) in by_hub.iter_mut().zip(finish_stages(stagers)?) {
            all.extend(rest);
        }
        Ok(by_hub)
    }

    fn places(by_hub: &[Vec<Assigned>]) -> Places {
        let mut places = Places::new();
        for (hub, all) in by_hub.iter().enumerate() {
            for Assigned {
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

    /// The same, by the words of [`Stage`].
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
            // Percents rise, as a spec wants it.
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
        // Large hubs and small ones, and some ids are on several.
        let hub = prop_oneof![9 => Just(0usize), 3 => Just(1), 1 => Just(2)];
        let place = (hub, 0usize..1_000, 0u8..4);
        prop::collection::vec(place, 0..400).prop_map(|devices| {
            let unique: BTreeMap<_, _> = devices.into_iter().map(|(h, n, r)| ((h, n), r)).collect();
            let devices = unique.into_iter();
            devices.map(|((h, n), r)| device(h, n, r)).collect()
        })
    }

    fn any_margin() -> impl Strategy<Value = Margin> {
        (0.0f64..3.0, 0.0f64..4.0, 1u64..200).prop_map(|(deviations, devices, from)| Margin {
            deviations,
            devices,
            from,
        })
    }

    proptest! {
        /// Each device is in the stage in which the definition puts it, in whichever order they come by.
        #[test]
        fn stages_are_as_defined(
            stages in any_stages(),
            (fleet, shuffled) in any_fleet().prop_flat_map(|fleet| (Just(fleet.clone()), Just(fleet).prop_shuffle())),
        ) {
            let rules = rules(&stages, Margin { from: 20, ..MARGIN });
            let expected = by_definition(&spec(&stages), &fleet);
            prop_assert_eq!(&places(&stage(&rules, 3, &fleet).unwrap()), &expected);
            prop_assert_eq!(&places(&stage(&rules, 3, &shuffled).unwrap()), &expected);
        }

        /// However narrow the bands are, there is the right answer or none.
        #[test]
        fn a_missed_cut_is_noticed(stages in any_stages(), fleet in any_fleet().prop_shuffle(), margin in any_margin()) {
            if let Ok(found) = stage(&rules(&stages, margin), 3, &fleet) {
                prop_assert_eq!(places(&found), by_definition(&spec(&stages), &fleet));
            }
        }

        /// Which hub is first has no influence, not even on the order of a hub's devices.
        #[test]
        fn hubs_may_take_turns(stages in any_stages(), fleet in any_fleet()) {
            let margin = Margin { from: 20, ..MARGIN };
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
            from: 1,
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
        let rules = rules(&text.join(", "), Margin { from: 50, ..MARGIN });
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
    fn what_is_held_does_not_grow_with_the_fleet() {
        let rules = rules(
            "{name: a, percent: 1%}, {name: b, max_devices: 500}, {name: c, percent: 10%}, {name: d, percent: 50%}",
            MARGIN,
        );
        let mut stager = HubStager::new(&rules, 0);
        let mut sizes = [0u64; 5];
        let (mut out, mut most) = (Vec::new(), 0);
        for n in 0..500_000 {
            let id = DeviceId::new(format!("fridge-{n}")).unwrap();
            stager.push(id, Group::default(), |_| None, &mut out);
            most = most.max(stager.held());
            out.drain(..)
                .for_each(|a| sizes[usize::from(a.stage.0)] += 1);
        }
        assert!(most < 25_000, "{most} were held");
        let rest = finish_stages(vec![stager]).unwrap();
        rest.iter()
            .flatten()
            .for_each(|a| sizes[usize::from(a.stage.0)] += 1);
        assert_eq!(sizes, [5_000, 500, 44_500, 200_000, 250_000]);
    }

    #[test]
    fn without_ranks_nothing_is_held() {
        let rules = StageRules::of(&spec("{name: a, tags: {ring: 1}}"));
        assert_eq!(rules.tags(), [TagPath::new("ring").unwrap()]);
        let mut stager = HubStager::new(&rules, 0);
        let mut out = Vec::new();
        for n in 0..6 {
            let ring = json!(n % 3);
            let id = DeviceId::new(format!("d{n}")).unwrap();
            stager.push(id, Group::default(), |_| Some(&ring), &mut out);
        }
        assert_eq!((stager.held(), out.len()), (0, 6));
        let stages: Vec<_> = out.iter().map(|assigned| assigned.stage.0).collect();
        assert_eq!(stages, [1, 0, 1, 1, 0, 1]);
        assert_eq!(StageRules::of(&spec("")).tags(), []);
    }
}
