//! Why a device is where it is in a rollout, what it waits for, and why it may not be there at all.
//!
//! It is told from what is stored: the spec, the plan, the rollout's record. The plan keeps no device's tags, so
//! of a stage that takes by tags it can be said that a device had them, or that it did not.

use crate::account::Activity;
use crate::batch::{BatchStatus, Held};
use crate::budget::FullGroup;
use crate::ids::{Attempt, DeviceId, StageIndex, StageName};
use crate::link::Impasse;
use crate::outcome::Outcome;
use crate::plan::Cohort;
use crate::query;
use crate::rollout::{Event, HistoryEntry, Phase, Rollout};
use crate::spec::{Exclusion, Order, RolloutSpec, Stage};
use crate::time::Timestamp;
use crate::waiting::{Named, Waiting};

/// Why a stage has taken a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageReason {
    /// The stage.
    pub stage: StageName,
    /// What it has taken the device by.
    pub because: String,
    /// The stages before it, and why they have not taken it.
    pub passed_over: Vec<(StageName, String)>,
}

/// Why the plan has put a device with this cohort into this stage. `None` for a stage that the spec does not have.
#[must_use]
pub fn why_stage(spec: &RolloutSpec, stage: StageIndex, cohort: Cohort) -> Option<StageReason> {
    let stages = spec.all_stages();
    let (before, from) = stages.split_at_checked(usize::from(stage.0))?;
    let own = from.first()?;
    let rules = rules(own, cohort);
    let because = match (rules.as_slice(), before) {
        _ if spec.late_stage() == Some(stage) => {
            "it takes devices that have joined the target since it was planned".to_owned()
        }
        ([], []) => "it takes all devices".to_owned(),
        ([], _) => "it takes all that the stages before it have left".to_owned(),
        (rules, _) => format!("it takes {}", rules.join(", and of these ")),
    };
    // Whoever joins later is not asked which of the others it belongs to.
    let before = if spec.late_stage() == Some(stage) {
        &[]
    } else {
        before
    };
    let passed_over = before.iter().map(|stage| {
        let rules = self::rules(stage, cohort);
        (
            stage.name.clone(),
            format!("it is not among {}", rules.join(", or of these not among ")),
        )
    });
    Some(StageReason {
        stage: own.name.clone(),
        because,
        passed_over: passed_over.collect(),
    })
}

/// What a stage takes, in words.
fn rules(stage: &Stage, cohort: Cohort) -> Vec<String> {
    let tags = (!stage.tags.is_empty())
        .then(|| format!("the devices with {}", query::matching(&stage.tags)));
    let percent = stage.percent.map(|percent| {
        let cohort = cohort.fraction();
        format!("the first {percent} of the target by cohort (its cohort is {cohort:.6})")
    });
    let max = stage
        .max_devices
        .map(|max| format!("the first {max} by cohort that came to it"));
    [tags, percent, max].into_iter().flatten().collect()
}

/// A device's place in a rollout.
#[derive(Debug, Clone, Copy)]
pub struct Seat<'a> {
    /// The rollout.
    pub rollout: &'a Rollout,
    /// The device's batch.
    pub batch: &'a BatchStatus,
    /// What is known of the device.
    pub outcome: Outcome,
    /// Groups of its batch that have no room for it.
    pub full: &'a [FullGroup],
    /// What keeps everything from being sent through its hub, if something does.
    pub impasse: Option<&'a Impasse>,
}

/// An attempt that was made, or is to be made, at devices of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried<'a> {
    /// Which one.
    pub attempt: Attempt,
    /// How it was asked for; `None` for the first, and when the history does not reach back to it.
    pub request: Option<&'a HistoryEntry>,
}

/// The attempts, oldest first, up to the `newest` of a batch of this stage. All devices were among those of the
/// first. Which were among those of a later one is not stored, only how they were chosen.
#[must_use]
pub fn attempts(rollout: &Rollout, stage: StageIndex, newest: Attempt) -> Vec<Tried<'_>> {
    let name = rollout
        .stages
        .get(usize::from(stage.0))
        .map(|stage| &stage.name);
    let is_retry = |entry: &&HistoryEntry| matches!(entry.event, Event::RetryRequested { .. });
    let requests = rollout.history.iter().rev().filter(is_retry);
    // The newest request is that of the newest attempt.
    let mut later: Vec<_> = (Attempt::FIRST.0 + 1..=rollout.attempt.0)
        .rev()
        .map(Attempt)
        .zip(requests.map(Some).chain(std::iter::repeat(None)))
        .filter(|(attempt, request)| {
            let of = request.and_then(|request| match &request.event {
                Event::RetryRequested { stage, .. } => stage.as_ref(),
                _ => None,
            });
            *attempt <= newest && of.is_none_or(|of| Some(of) == name)
        })
        .map(|(attempt, request)| Tried { attempt, request })
        .collect();
    later.push(Tried {
        attempt: Attempt::FIRST,
        request: None,
    });
    later.reverse();
    later
}

/// The device is among those that the rollout is to make another attempt at.
fn is_to_be_retried(seat: Seat<'_>) -> bool {
    let rollout = seat.rollout;
    let stage = usize::from(seat.batch.header.stage.0);
    let stage = rollout.stages.get(stage).map(|stage| &stage.name);
    rollout.retry.as_ref().is_some_and(|retry| {
        let is_of_stage = retry.stage.is_none() || retry.stage.as_ref() == stage;
        is_of_stage && retry.outcomes.contains(&seat.outcome)
    })
}

/// What a device waits for at `now`; `None` when it waits for nothing. `standstill` is what the rollout's current stage
/// waits for.
#[must_use]
pub fn waits_for(seat: Seat<'_>, standstill: Option<Waiting>, now: Timestamp) -> Option<Waiting> {
    let rollout = seat.rollout;
    if seat.outcome.is_settled() && !is_to_be_retried(seat) {
        let is_asked = rollout.spec.message.answers();
        return (seat.outcome == Outcome::Enqueued && is_asked).then_some(Waiting::Delivery);
    }
    let reason = || rollout.phase.reason().unwrap_or_default().to_owned();
    match &rollout.phase {
        Phase::Accepted | Phase::Planning => Some(Waiting::Plan),
        Phase::Running => Some(while_running(seat, standstill, now)),
        Phase::Paused { .. } => Some(Waiting::Paused(reason())),
        Phase::Halted { .. } => Some(Waiting::Halted(reason())),
        Phase::Aborting { .. } => Some(Waiting::Aborting(reason())),
        Phase::Aborted { .. }
        | Phase::Succeeded
        | Phase::FinishedWithFailures
        | Phase::Failed { .. } => None,
    }
}

fn while_running(seat: Seat<'_>, standstill: Option<Waiting>, now: Timestamp) -> Waiting {
    let (rollout, header) = (seat.rollout, &seat.batch.header);
    if rollout.retry.is_some() {
        return Waiting::Retry;
    }
    let current = rollout.stage();
    if header.stage > current {
        let before = (current.0..header.stage.0)
            .filter_map(|index| Some(rollout.stages.get(usize::from(index))?.name.clone()));
        return Waiting::Stage {
            before: before.collect(),
            standstill: standstill.map(Box::new),
        };
    }
    let opening = rollout.spec.opening(&header.group, now);
    if let Some(closed) = Waiting::of_schedule(&opening) {
        return closed;
    }
    let worker = match &seat.batch.held {
        _ if seat.batch.quarantined => Waiting::Quarantined,
        Some(Held { by, until }) => Waiting::Held {
            by: by.clone(),
            until: *until,
        },
        None => match Waiting::of_budgets(seat.full) {
            Some(full) => return full,
            None if seat.batch.lapsed => Waiting::Lapsed,
            None => Waiting::Worker(match rollout.spec.order_of(header.stage) {
                Some(Order::By(tag)) => Some(tag.clone()),
                Some(Order::Shuffled) | None => None,
            }),
        },
    };
    let hub = &header.hub;
    if let Some(impasse) = seat.impasse {
        return Waiting::of_hubs([(hub.clone(), impasse.clone())], 0).then(worker);
    }
    let account = &rollout.notes.account;
    let first = match account.doing() {
        Activity::Blocked => account.held_back(now).cloned(),
        Activity::Throttled => Some(Waiting::Quota(Named::of([hub.clone()]))),
        _ => None,
    };
    match first {
        Some(first) => first.then(worker),
        None => worker,
    }
}

/// Why a device is not in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// What is certain; nothing else need be looked at then.
    pub certain: Option<String>,
    /// What may be.
    pub possible: Vec<String>,
    /// The query that tells, on each hub, whether the device is in the target now.
    pub query: String,
}

/// Why a device may not be in a rollout's plan, as far as its spec says it.
#[must_use]
pub fn why_absent(spec: &RolloutSpec, device: &DeviceId) -> Absence {
    let target = &spec.target;
    let mut certain = None;
    let last = match spec.continuous {
        Some(_) => "it was looked for devices last",
        None => "the plan was made",
    };
    let mut possible = vec![format!("the hubs did not have it when {last}")];
    if !target.devices.is_empty() && !target.devices.contains(device) {
        let listed = target.devices.len();
        certain = Some(format!(
            "it is not one of the {listed} ids in target.devices"
        ));
    }
    if let Some(path) = &target.devices_file {
        possible.push(format!(
            "it is not in target.devices_file, {}",
            path.display()
        ));
    }
    let selected = spec.selected();
    if !selected.is_empty() {
        possible.push(format!(
            "it did not fulfil the target's condition, {selected}"
        ));
    }
    for (index, rule) in target.exclude.iter().enumerate() {
        let reason = rule.reason.as_ref();
        let reason = reason
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        let field = format!("target.exclude[{index}]");
        let Exclusion {
            tags,
            devices,
            devices_file,
            ..
        } = rule;
        if devices.contains(device) {
            certain.get_or_insert(format!("{field} leaves it out by its id{reason}"));
        }
        if let Some(path) = devices_file {
            possible.push(format!(
                "{field} leaves it out{reason}: it is in {}",
                path.display()
            ));
        }
        if !tags.is_empty() {
            let tags = query::matching(tags);
            possible.push(format!("{field} leaves it out{reason}: it had {tags}"));
        }
    }
    if let Some(tag) = spec.skips_unknown_zones() {
        possible.push(format!(
            "schedule.unknown_zone leaves it out: its tags.{tag} was no time zone"
        ));
    }
    let mut id = String::new();
    query::write_text_literal(device.as_str(), &mut id);
    let is_it = format!("deviceId = {id}");
    let condition = query::all_of([is_it.as_str(), spec.condition().as_str()]);
    Absence {
        certain,
        possible,
        query: format!("SELECT deviceId, tags FROM devices WHERE {condition}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::{BatchId, Holder, HubHost, HubName};
    use crate::outcome::Counts;
    use crate::plan::{BatchHeader, Group, Place};
    use crate::ports::HubTrouble;
    use crate::rollout::Word;

    const START: Timestamp = Timestamp(1_790_000_000_000);

    fn spec(more: &str) -> RolloutSpec {
        let text = format!("{{name: a, message: {{body: {{text: x}}, ack: full}}, {more}}}");
        RolloutSpec::read("x", &text).unwrap()
    }

    const STAGES: &str = "target: {all: true}, stages: [{name: canary, tags: {ring: canary}}, \
        {name: tenth, percent: 10%}, {name: few, tags: {ring: [a, b]}, percent: 50%, max_devices: 7}]";

    #[test]
    fn a_stage_says_what_it_took_a_device_by() {
        let because = |spec: &RolloutSpec, stage| {
            let why = why_stage(spec, StageIndex(stage), Cohort(1 << 61))?;
            let passed = why.passed_over.into_iter();
            let passed: Vec<_> = passed
                .map(|(stage, why)| format!("{stage}: {why}"))
                .collect();
            Some((why.because, passed.join("; ")))
        };
        let staged = spec(STAGES);
        let tenth = "the first 10% of the target by cohort (its cohort is 0.125000)";
        let canary = "canary: it is not among the devices with tags.ring = 'canary'";
        let few = "the devices with tags.ring IN ['a', 'b']";
        let half = "the first 50% of the target by cohort (its cohort is 0.125000)";
        let expected = [
            (
                "it takes the devices with tags.ring = 'canary'".to_owned(),
                String::new(),
            ),
            (format!("it takes {tenth}"), canary.to_owned()),
            (
                format!(
                    "it takes {few}, and of these {half}, and of these the first 7 by cohort that came to it"
                ),
                format!("{canary}; tenth: it is not among {tenth}"),
            ),
            (
                "it takes all that the stages before it have left".to_owned(),
                format!(
                    "{canary}; tenth: it is not among {tenth}; few: it is not among {few}, or of these not among \
                    {half}, or of these not among the first 7 by cohort that came to it"
                ),
            ),
        ];
        for (stage, expected) in (0..).zip(expected) {
            assert_eq!(because(&staged, stage), Some(expected), "stage {stage}");
        }
        assert_eq!(because(&staged, 4), None);
        let plain = because(&spec("target: {all: true}"), 0).unwrap();
        assert_eq!(plain, ("it takes all devices".to_owned(), String::new()));
    }

    #[test]
    fn what_is_certain_of_an_absent_device_is_told_from_what_may_be() {
        let device = DeviceId::new("d'1").unwrap();
        let absence = |more| why_absent(&spec(more), &device);
        let listed = absence("target: {devices: [a, b]}");
        assert_eq!(
            listed.certain.unwrap(),
            "it is not one of the 2 ids in target.devices"
        );
        let left_out = absence(
            "target: {tags: {type: fridge}, exclude: [{tags: {vip: true}, reason: calm}, {devices: [\"d'1\"], reason: broken}]}",
        );
        assert_eq!(
            left_out.certain.unwrap(),
            "target.exclude[1] leaves it out by its id (broken)"
        );
        let unknown = absence(
            "target: {tags: {type: fridge}, exclude: [{tags: {vip: true}, reason: calm}, {devices_file: out.txt}]}",
        );
        let zoned = absence(
            "target: {all: true}, batch_by: [zone], schedule: {zone_tag: zone, unknown_zone: skip}",
        );
        assert_eq!(
            zoned.possible[1],
            "schedule.unknown_zone leaves it out: its tags.zone was no time zone"
        );
        assert_eq!(unknown.certain, None);
        assert_eq!(
            unknown.possible,
            [
                "the hubs did not have it when the plan was made",
                "it did not fulfil the target's condition, tags.type = 'fridge'",
                "target.exclude[0] leaves it out (calm): it had tags.vip = true",
                "target.exclude[1] leaves it out: it is in out.txt",
            ]
        );
        assert!(
            unknown
                .query
                .starts_with("SELECT deviceId, tags FROM devices WHERE (deviceId = 'd")
        );
        assert!(
            unknown.query.contains("tags.vip != true"),
            "{}",
            unknown.query
        );
    }

    fn running(more: &str) -> Rollout {
        let plan = serde_json::json!({
            "devices": 10, "batches": 4, "digest": "", "checksum": {"batches": 4, "devices": 10, "sum": 0}, "hubs": [], "excluded": [], "repeated": 0, "stages": []
        });
        let plan = serde_json::from_value(plan).unwrap();
        let rollout = Rollout::accepted(spec(more), Default::default(), START);
        let rollout = rollout
            .after(Event::PlanningStarted, START)
            .unwrap()
            .unwrap();
        let rollout = rollout.after(Event::PlanCompleted { plan }, START);
        rollout.unwrap().unwrap()
    }

    fn batch(stage: u16) -> BatchStatus {
        BatchStatus {
            header: BatchHeader {
                id: BatchId(stage.into()),
                hub: HubName::new("h").unwrap(),
                host: HubHost::new("h").unwrap(),
                stage: StageIndex(stage),
                group: Group::default(),
                further: Vec::new(),
                place: Place::default(),
                budgets: Vec::new(),
                devices: 1,
            },
            counts: Counts::pending(1),
            held: None,
            lapsed: false,
            quarantined: false,
            begun: false,
        }
    }

    fn says(
        rollout: &Rollout,
        batch: &BatchStatus,
        outcome: Outcome,
        standstill: Option<Waiting>,
    ) -> String {
        let seat = Seat {
            rollout,
            batch,
            outcome,
            full: &[],
            impasse: None,
        };
        let waits = waits_for(seat, standstill, START);
        waits.map_or_else(|| "nothing".to_owned(), |waits| waits.to_string())
    }

    fn pending(rollout: &Rollout, batch: &BatchStatus) -> String {
        says(rollout, batch, Outcome::Pending, None)
    }

    #[test]
    fn attempts_are_those_that_may_concern_a_device() {
        let mut rollout = running(STAGES);
        let mut retry = |stage: Option<&str>, outcomes: &[Outcome]| {
            let event = Event::RetryRequested {
                outcomes: outcomes.to_vec(),
                stage: stage.map(|stage| StageName::new(stage).unwrap()),
                word: Word::default(),
            };
            let requested = rollout.after(event, START).unwrap().unwrap();
            let prepared = requested.after(Event::RetryPrepared, START);
            rollout = prepared.unwrap().unwrap();
            requested
        };
        let requested = retry(None, &[Outcome::NotFound]);
        let again = says(&requested, &batch(0), Outcome::NotFound, None);
        assert_eq!(
            again,
            "the retry to be prepared: until then nothing is sent"
        );
        assert_eq!(
            says(&requested, &batch(0), Outcome::Refused, None),
            "nothing"
        );
        retry(Some("canary"), &[Outcome::Refused]);
        retry(None, &[Outcome::Refused]);
        let of = |stage, newest| {
            let tried = attempts(&rollout, StageIndex(stage), Attempt(newest)).into_iter();
            let tried = tried.map(|tried| (tried.attempt.0, tried.request.is_some()));
            tried.collect::<Vec<_>>()
        };
        assert_eq!(of(0, 4), [(1, false), (2, true), (3, true), (4, true)]);
        assert_eq!(
            of(1, 4),
            [(1, false), (2, true), (4, true)],
            "not its stage"
        );
        assert_eq!(of(0, 2), [(1, false), (2, true)]);
        assert_eq!(of(0, 1), [(1, false)]);
        rollout.history.clear();
        let tried = attempts(&rollout, StageIndex(1), Attempt(2));
        assert_eq!(tried.len(), 2, "it may have been");
    }

    #[test]
    fn a_device_waits_for_what_stands_before_it() {
        let rollout = running(STAGES);
        assert_eq!(pending(&rollout, &batch(0)), "a worker to take its batch");
        let held = BatchStatus {
            held: Some(Held {
                by: Holder::new("w").unwrap(),
                until: START.plus(Duration::from_secs(10)),
            }),
            ..batch(0)
        };
        assert_eq!(
            pending(&rollout, &held),
            "worker w, which has its batch until 2026-09-21T14:13:30Z or longer"
        );
        let lapsed = BatchStatus {
            lapsed: true,
            ..batch(0)
        };
        assert!(pending(&rollout, &lapsed).starts_with("another worker"));
        let full = |group: &str| FullGroup {
            group: group.to_owned(),
            in_progress: 2,
            at_most: 2,
        };
        let held_back = |full: &[FullGroup]| {
            let seat = Seat {
                rollout: &rollout,
                batch: &batch(0),
                outcome: Outcome::Pending,
                full,
                impasse: None,
            };
            waits_for(seat, None, START).unwrap().to_string()
        };
        let impasse = Impasse {
            trouble: HubTrouble::Unreachable,
            reason: "no route".into(),
        };
        let out_of_reach = Seat {
            rollout: &rollout,
            batch: &held,
            outcome: Outcome::Pending,
            full: &[],
            impasse: Some(&impasse),
        };
        assert_eq!(
            waits_for(out_of_reach, None, START).unwrap().to_string(),
            "hub h, which cannot be reached: no route; then worker w, which has its batch until 2026-09-21T14:13:30Z or longer"
        );
        assert_eq!(
            held_back(&[full("site=oslo")]),
            "room in site=oslo (2 of 2 devices in progress)"
        );
        let many = ["a", "b", "c", "d", "e"].map(full);
        assert!(held_back(&many).ends_with("c (2 of 2 devices in progress) and 2 more"));
        assert_eq!(
            says(
                &rollout,
                &batch(1),
                Outcome::Pending,
                Some(Waiting::Approval { until: None })
            ),
            "the turn of its stage, after stage canary, which waits for an approval"
        );
        assert_eq!(
            pending(&rollout, &batch(3)),
            "the turn of its stage, after stages canary, tenth, few; now it is the turn of canary, which is under way"
        );
        assert_eq!(
            says(&rollout, &batch(0), Outcome::NotFound, None),
            "nothing"
        );
        let enqueued = says(&rollout, &batch(0), Outcome::Enqueued, None);
        assert_eq!(
            enqueued,
            "the device to take the message, and the hub to tell of it"
        );

        let pause = Event::PauseRequested {
            reason: "lunch".into(),
        };
        let paused = rollout.after(pause, START).unwrap().unwrap();
        assert_eq!(
            pending(&paused, &batch(0)),
            "the rollout to be resumed; it is paused: lunch"
        );
        let later = running("target: {all: true}, schedule: {start_at: 2027-01-01T00:00:00Z}");
        assert_eq!(
            pending(&later, &batch(0)),
            "2027-01-01T00:00:00Z: it is before its start"
        );
    }
}
