//! Explanations for a device in a rollout: why it is in its stage, what it waits for, or why it may
//! be absent.
//!
//! The explanations use stored data only: the spec, the plan and the rollout's record. The plan
//! keeps no tags of devices, so for a stage selecting by tags only the past match or mismatch can
//! be stated.

use crate::account::Activity;
use crate::batch::{BatchStatus, Held};
use crate::budget::FullGroup;
use crate::ids::{Attempt, DeviceId, StageIndex, StageName};
use crate::link::LinkObstacle;
use crate::outcome::Outcome;
use crate::plan::Cohort;
use crate::query;
use crate::rollout::{Event, HistoryEntry, Phase, Rollout};
use crate::spec::{Exclusion, Order, RolloutSpec, Stage};
use crate::time::Timestamp;
use crate::waiting::{Shortlist, Waiting};

/// Why a device belongs to a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageReason {
    /// The stage.
    pub stage: StageName,
    /// The rule by which the stage took the device.
    pub reason: String,
    /// The earlier stages, each with the reason for not taking the device.
    pub passed_over: Vec<(StageName, String)>,
}

/// Returns why the plan put a device with this cohort into this stage; `None` for a stage unknown
/// to the spec.
#[must_use]
pub fn why_stage(spec: &RolloutSpec, stage: StageIndex, cohort: Cohort) -> Option<StageReason> {
    let stages = spec.all_stages();
    let (before, from) = stages.split_at_checked(usize::from(stage.0))?;
    let own = from.first()?;
    let rules = rules(own, cohort);
    let reason = match (rules.as_slice(), before) {
        _ if spec.late_stage() == Some(stage) => {
            "it takes devices that have joined the target after planning".to_owned()
        }
        ([], []) => "it takes all devices".to_owned(),
        ([], _) => "it takes all devices that the earlier stages have left".to_owned(),
        (rules, _) => format!("it takes {}", rules.join(", and of these ")),
    };
    // Late joiners are not tested against the other stages.
    let before = if spec.late_stage() == Some(stage) {
        &[]
    } else {
        before
    };
    let passed_over = before.iter().map(|stage| {
        let rules = self::rules(stage, cohort);
        (
            stage.name.clone(),
            format!("it is not among {}", rules.join(", or not among ")),
        )
    });
    Some(StageReason {
        stage: own.name.clone(),
        reason,
        passed_over: passed_over.collect(),
    })
}

/// Describes the devices of a stage.
fn rules(stage: &Stage, cohort: Cohort) -> Vec<String> {
    let tags = (!stage.tags.is_empty())
        .then(|| format!("the devices with {}", query::matching(&stage.tags)));
    let percent = stage.percent.map(|percent| {
        let cohort = cohort.fraction();
        format!("the first {percent} of the target by cohort (its cohort is {cohort:.6})")
    });
    let max = stage
        .max_devices
        .map(|max| format!("the first {max} of the remaining devices by cohort"));
    [tags, percent, max].into_iter().flatten().collect()
}

/// The facts about a device in a rollout.
#[derive(Debug, Clone, Copy)]
pub struct DeviceContext<'a> {
    /// The rollout.
    pub rollout: &'a Rollout,
    /// The device's batch.
    pub batch: &'a BatchStatus,
    /// The device's outcome.
    pub outcome: Outcome,
    /// Budget groups of the batch without room for the batch.
    pub full: &'a [FullGroup],
    /// The reason why nothing can be sent through the device's hub, if there is one.
    pub obstacle: Option<&'a LinkObstacle>,
}

/// An attempt made, or to be made, at devices of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptInfo<'a> {
    /// The attempt.
    pub attempt: Attempt,
    /// The retry request; `None` for the first attempt, and for a request no longer in the history.
    pub request: Option<&'a HistoryEntry>,
}

/// Returns the attempts, oldest first, up to the `newest` attempt at a batch of this stage. The
/// first attempt included all devices. The devices of a later attempt are not stored, only the rule
/// for choosing them.
#[must_use]
pub fn attempts(rollout: &Rollout, stage: StageIndex, newest: Attempt) -> Vec<AttemptInfo<'_>> {
    let name = rollout
        .stages
        .get(usize::from(stage.0))
        .map(|stage| &stage.name);
    let is_retry = |entry: &&HistoryEntry| matches!(entry.event, Event::RetryRequested { .. });
    let requests = rollout.history.iter().rev().filter(is_retry);
    // The newest request belongs to the newest attempt.
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
        .map(|(attempt, request)| AttemptInfo { attempt, request })
        .collect();
    later.push(AttemptInfo {
        attempt: Attempt::FIRST,
        request: None,
    });
    later.reverse();
    later
}

/// Returns whether the requested retry includes the device.
fn is_to_be_retried(context: DeviceContext<'_>) -> bool {
    let rollout = context.rollout;
    let stage = usize::from(context.batch.header.stage.0);
    let stage = rollout.stages.get(stage).map(|stage| &stage.name);
    rollout.retry.as_ref().is_some_and(|retry| {
        let is_of_stage = retry.stage.is_none() || retry.stage.as_ref() == stage;
        is_of_stage && retry.outcomes.contains(&context.outcome)
    })
}

/// Returns the reason for a device's wait at `now`; `None` for a device without a wait.
/// `standstill` is the reason for the wait of the rollout's current stage.
#[must_use]
pub fn waits_for(
    context: DeviceContext<'_>,
    standstill: Option<Waiting>,
    now: Timestamp,
) -> Option<Waiting> {
    let rollout = context.rollout;
    if context.outcome.is_settled() && !is_to_be_retried(context) {
        let wants_feedback = rollout.spec.message.wants_feedback();
        return (context.outcome == Outcome::Enqueued && wants_feedback)
            .then_some(Waiting::Delivery);
    }
    let reason = || rollout.phase.reason().unwrap_or_default().to_owned();
    match &rollout.phase {
        Phase::Accepted | Phase::Planning => Some(Waiting::Plan),
        Phase::Running => Some(while_running(context, standstill, now)),
        Phase::Paused { .. } => Some(Waiting::Paused(reason())),
        Phase::Halted { .. } => Some(Waiting::Halted(reason())),
        Phase::Aborting { .. } => Some(Waiting::Aborting(reason())),
        Phase::Aborted { .. }
        | Phase::Succeeded
        | Phase::FinishedWithFailures
        | Phase::Failed { .. } => None,
    }
}

fn while_running(
    context: DeviceContext<'_>,
    standstill: Option<Waiting>,
    now: Timestamp,
) -> Waiting {
    let (rollout, header) = (context.rollout, &context.batch.header);
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
    let schedule = rollout.spec.schedule_state(&header.group, now);
    if let Some(closed) = Waiting::of_schedule(&schedule) {
        return closed;
    }
    let worker = match &context.batch.held {
        _ if context.batch.quarantined => Waiting::Quarantined,
        Some(Held { by, until }) => Waiting::Held {
            by: by.clone(),
            until: *until,
        },
        None => match Waiting::of_budgets(context.full) {
            Some(full) => return full,
            None if context.batch.lapsed => Waiting::Lapsed,
            None => Waiting::Worker(match rollout.spec.order_of(header.stage) {
                Some(Order::By(tag)) => Some(tag.clone()),
                Some(Order::Shuffled) | None => None,
            }),
        },
    };
    let hub = &header.hub;
    if let Some(obstacle) = context.obstacle {
        return Waiting::of_hubs([(hub.clone(), obstacle.clone())], 0).then(worker);
    }
    let account = &rollout.notes.account;
    let first = match account.doing() {
        Activity::Blocked => account.held_back(now).cloned(),
        Activity::Throttled => Some(Waiting::Quota(Shortlist::of([hub.clone()]))),
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
    /// The certain reason; the other fields do not matter then.
    pub certain: Option<String>,
    /// The possible reasons.
    pub possible: Vec<String>,
    /// The query for checking on each hub whether the device is in the target now.
    pub query: String,
}

/// Returns the reasons for a device's absence from a rollout's plan, as far as the spec tells.
#[must_use]
pub fn why_absent(spec: &RolloutSpec, device: &DeviceId) -> Absence {
    let target = &spec.target;
    let mut certain = None;
    let last = match spec.continuous {
        Some(_) => "the target was last scanned",
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
            "it did not match the target's condition, {selected}"
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
            certain.get_or_insert(format!("{field} excludes it by its id{reason}"));
        }
        if let Some(path) = devices_file {
            possible.push(format!(
                "{field} excludes it{reason}: it is in {}",
                path.display()
            ));
        }
        if !tags.is_empty() {
            let tags = query::matching(tags);
            possible.push(format!("{field} excludes it{reason}: it had {tags}"));
        }
    }
    if let Some(tag) = spec.skips_unknown_zones() {
        possible.push(format!(
            "schedule.unknown_zone excludes it: its tags.{tag} was not a time zone"
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
    use crate::plan::{BatchHeader, SortKey, TagGroup};
    use crate::ports::HubTrouble;
    use crate::rollout::Attribution;

    const START: Timestamp = Timestamp(1_790_000_000_000);

    fn spec(more: &str) -> RolloutSpec {
        let text = format!("{{name: a, message: {{body: {{text: x}}, ack: full}}, {more}}}");
        RolloutSpec::read("x", &text).unwrap()
    }

    const STAGES: &str = "target: {all: true}, stages: [{name: canary, tags: {ring: canary}}, \
        {name: tenth, percent: 10%}, {name: few, tags: {ring: [a, b]}, percent: 50%, max_devices: 7}]";

    #[test]
    fn stage_selection_is_explained() {
        let reason = |spec: &RolloutSpec, stage| {
            let why = why_stage(spec, StageIndex(stage), Cohort(1 << 61))?;
            let passed = why.passed_over.into_iter();
            let passed: Vec<_> = passed
                .map(|(stage, why)| format!("{stage}: {why}"))
                .collect();
            Some((why.reason, passed.join("; ")))
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
                    "it takes {few}, and of these {half}, and of these the first 7 of the \
                     remaining devices by cohort"
                ),
                format!("{canary}; tenth: it is not among {tenth}"),
            ),
            (
                "it takes all devices that the earlier stages have left".to_owned(),
                format!(
                    "{canary}; tenth: it is not among {tenth}; few: it is not among {few}, or not \
                     among {half}, or not among the first 7 of the remaining devices by cohort"
                ),
            ),
        ];
        for (stage, expected) in (0..).zip(expected) {
            assert_eq!(reason(&staged, stage), Some(expected), "stage {stage}");
        }
        assert_eq!(reason(&staged, 4), None);
        let plain = reason(&spec("target: {all: true}"), 0).unwrap();
        assert_eq!(plain, ("it takes all devices".to_owned(), String::new()));
    }

    #[test]
    fn certain_and_possible_reasons_of_absence_are_separate() {
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
            "target.exclude[1] excludes it by its id (broken)"
        );
        let unknown = absence(
            "target: {tags: {type: fridge}, exclude: [{tags: {vip: true}, reason: calm}, {devices_file: out.txt}]}",
        );
        let zoned = absence(
            "target: {all: true}, batch_by: [zone], schedule: {zone_tag: zone, unknown_zone: skip}",
        );
        assert_eq!(
            zoned.possible[1],
            "schedule.unknown_zone excludes it: its tags.zone was not a time zone"
        );
        assert_eq!(unknown.certain, None);
        assert_eq!(
            unknown.possible,
            [
                "the hubs did not have it when the plan was made",
                "it did not match the target's condition, tags.type = 'fridge'",
                "target.exclude[0] excludes it (calm): it had tags.vip = true",
                "target.exclude[1] excludes it: it is in out.txt",
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
                group: TagGroup::default(),
                further_groups: Vec::new(),
                sort_key: SortKey::default(),
                budgets: Vec::new(),
                devices: 1,
            },
            counts: Counts::pending(1),
            held: None,
            lapsed: false,
            quarantined: false,
            is_counted: false,
        }
    }

    fn says(
        rollout: &Rollout,
        batch: &BatchStatus,
        outcome: Outcome,
        standstill: Option<Waiting>,
    ) -> String {
        let context = DeviceContext {
            rollout,
            batch,
            outcome,
            full: &[],
            obstacle: None,
        };
        let waits = waits_for(context, standstill, START);
        waits.map_or_else(|| "nothing".to_owned(), |waits| waits.to_string())
    }

    fn pending(rollout: &Rollout, batch: &BatchStatus) -> String {
        says(rollout, batch, Outcome::Pending, None)
    }

    #[test]
    fn attempts_exclude_retries_of_other_stages() {
        let mut rollout = running(STAGES);
        let mut retry = |stage: Option<&str>, outcomes: &[Outcome]| {
            let event = Event::RetryRequested {
                outcomes: outcomes.to_vec(),
                stage: stage.map(|stage| StageName::new(stage).unwrap()),
                attribution: Attribution::default(),
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
            "the retry to be prepared; nothing is sent until then"
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
            "attempt 3 is of another stage"
        );
        assert_eq!(of(0, 2), [(1, false), (2, true)]);
        assert_eq!(of(0, 1), [(1, false)]);
        rollout.history.clear();
        let tried = attempts(&rollout, StageIndex(1), Attempt(2));
        assert_eq!(tried.len(), 2, "attempt 2 is possible");
    }

    #[test]
    fn waiting_reasons_of_device_are_reported() {
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
            "worker w, which holds the lease on its batch until 2026-09-21T14:13:30Z or longer"
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
            let context = DeviceContext {
                rollout: &rollout,
                batch: &batch(0),
                outcome: Outcome::Pending,
                full,
                obstacle: None,
            };
            waits_for(context, None, START).unwrap().to_string()
        };
        let obstacle = LinkObstacle {
            trouble: HubTrouble::Unreachable,
            reason: "no route".into(),
        };
        let out_of_reach = DeviceContext {
            rollout: &rollout,
            batch: &held,
            outcome: Outcome::Pending,
            full: &[],
            obstacle: Some(&obstacle),
        };
        assert_eq!(
            waits_for(out_of_reach, None, START).unwrap().to_string(),
            "hub h, which cannot be reached: no route; then worker w, which holds the lease on its \
             batch until 2026-09-21T14:13:30Z or longer"
        );
        assert_eq!(
            held_back(&[full("site=oslo")]),
            "room in the budget of site=oslo (2 of 2 devices in progress)"
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
            "the start of its stage, after stage canary, which waits for an approval"
        );
        assert_eq!(
            pending(&rollout, &batch(3)),
            "the start of its stage, after stages canary, tenth, few; the current stage is canary, \
             which is under way"
        );
        assert_eq!(
            says(&rollout, &batch(0), Outcome::NotFound, None),
            "nothing"
        );
        let enqueued = says(&rollout, &batch(0), Outcome::Enqueued, None);
        assert_eq!(
            enqueued,
            "the device to accept the message, and the hub to report this"
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
            "the schedule to open at 2027-01-01T00:00:00Z (before its start)"
        );
    }
}
