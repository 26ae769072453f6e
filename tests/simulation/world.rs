//! The world of a seed: hubs, fleets, rollouts, processes, commands, and faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use twincast_core::hub::{FeedbackQueue, FeedbackRules, HubLimits};
use twincast_core::ids::{DeviceId, HubName, RolloutName};
use twincast_core::outcome::Outcome;
use twincast_orchestrator::driver::DriverConfig;
use twincast_orchestrator::service::OrchestratorConfig;
use twincast_testkit::sim::{
    Chance, Dice, Faults, FeedbackFaults, HubFault, HubFaultWindow, SimFeedbackQueue, SimHub, Tags,
};
use twincast_testkit::{RuntimeClock, build};
use twincast_worker::WorkerConfig;

mod stages;

pub(crate) use stages::{GatePlan, StagePlan};

/// A world before the first event.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) hubs: Vec<HubPlan>,
    pub(crate) rollouts: Vec<RolloutPlan>,
    pub(crate) orchestrators: u64,
    pub(crate) workers: u64,
    pub(crate) orchestrator: OrchestratorConfig,
    pub(crate) worker: WorkerConfig,
    /// The longest delay before an ended process is started again.
    pub(crate) restart: Duration,
    /// The commands, with times.
    pub(crate) commands: Vec<(Duration, PlannedCommand)>,
    /// The times of stopping workers and orchestrators, each with a new start.
    pub(crate) stops: Vec<Duration>,
    /// The times of purging a hub's queue.
    pub(crate) purges: Vec<(Duration, HubName)>,
    pub(crate) faults: Faults,
}

#[derive(Debug, Clone)]
pub(crate) struct HubPlan {
    pub(crate) hub: Arc<SimHub>,
    pub(crate) limits: HubLimits,
}

#[derive(Debug, Clone)]
pub(crate) struct RolloutPlan {
    pub(crate) name: RolloutName,
    pub(crate) spec: Value,
    /// Another spec with the same name.
    pub(crate) conflicting: Value,
    pub(crate) at_most_once: bool,
    /// Per minute, on each hub.
    pub(crate) rate: Option<f64>,
    /// The devices of the target, computed independently of the engine.
    pub(crate) target: BTreeMap<HubName, BTreeSet<DeviceId>>,
    pub(crate) stages: Vec<StagePlan>,
    /// The lifetime of the messages, if devices are to answer.
    pub(crate) ttl: Option<Duration>,
    /// The shortest batching time of feedback among the hubs.
    pub(crate) batching: Duration,
    /// The devices that fulfil the `applied_when` of all gates.
    pub(crate) applies: BTreeSet<DeviceId>,
    /// The age of the world at the start of the last scan, for a continuous rollout.
    pub(crate) until: Option<Duration>,
}

/// A command about a rollout, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PlannedCommand {
    Start(usize),
    StartConflicting(usize),
    Pause(usize),
    Resume(usize),
    Abort(usize),
    Approve(usize),
    Reject(usize),
    /// Of a stage of a rollout, by position.
    Promote(usize, usize),
    /// A new attempt: at all failed devices, at devices without acceptance by the hub or the
    /// device, or at silent devices.
    Retry(usize, RetrySelection),
    StopAll,
    ResumeAll,
}

/// The devices to be sent to again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RetrySelection {
    Failed,
    Rejected,
    Silent,
    /// The failed devices of the first stage.
    First,
}

/// The longest period of lost writes of a losing store.
pub(crate) const MAX_LOST_WRITES: Duration = Duration::from_secs(1);
/// The number of crashes of a losing store per world.
pub(crate) const CRASHES: u32 = 4;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Plan {
    /// Returns the world of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let chance = Chance::of(seed).at("world");
        let mut dice = chance.dice();
        let chaos = dice.time(seconds(10)..=seconds(45));
        // In some worlds everything depends on answers, and on a live process to receive the
        // answers.
        let depends_on_answers = chance.at("answers").dice().happens(0.3);
        let hubs: Vec<_> = (0..dice.among(1..=3))
            .map(|n| {
                hub(
                    &mut chance.at(("hub", n)).dice(),
                    n,
                    chaos,
                    depends_on_answers,
                )
            })
            .collect();
        let rollouts: Vec<_> = (0..dice.among(1..=3))
            .map(|n| {
                let mut dice = chance.at(("rollout", n)).dice();
                rollout(&mut dice, n, &hubs, depends_on_answers)
            })
            .collect();
        let (mut hubs, mut rollouts) = (hubs, rollouts);
        move_devices(
            &mut chance.at("moves").dice(),
            &mut hubs,
            &mut rollouts,
            chaos,
        );
        let commands = commands(&mut chance.at("commands").dice(), rollouts.len(), chaos);
        let mut times = |probability: f64| {
            let many = if dice.happens(probability) {
                dice.among(1..=4)
            } else {
                0
            };
            (0..many)
                .map(|_| dice.time(Duration::ZERO..=chaos))
                .collect::<Vec<_>>()
        };
        let stops = times(if depends_on_answers { 1.0 } else { 0.4 });
        let purges = times(0.3)
            .into_iter()
            .map(|at| (at, dice.pick(&hubs).hub.name.clone()))
            .collect();
        Self {
            seed,
            orchestrators: dice.among(1..=3),
            workers: dice.among(1..=if depends_on_answers { 1 } else { 4 }),
            orchestrator: orchestrator(&mut dice),
            worker: worker(&mut dice),
            restart: match depends_on_answers {
                true => seconds(40),
                false => dice.pick(&[ms(100), seconds(3), seconds(15)]),
            },
            faults: faults(&mut chance.at("faults").dice(), chaos),
            hubs,
            rollouts,
            commands,
            stops,
            purges,
        }
    }

    /// Returns the same world with a store that crashes several times and loses up to a second of
    /// writes each time, and with no other fault.
    pub(crate) fn with_lost_writes(mut self) -> Self {
        let mut dice = Chance::of(self.seed).at("forgets").dice();
        let until = seconds(30);
        let losses: Vec<_> = (0..CRASHES)
            .map(|n| {
                // The first crash comes while most rollouts are planned.
                let from = seconds(6) * n;
                let lost = dice.time(ms(1)..=MAX_LOST_WRITES);
                (from + MAX_LOST_WRITES + dice.time(ms(0)..=seconds(3)), lost)
            })
            .collect();
        self.faults = Faults {
            until,
            latency: self.faults.latency,
            store_forgets: losses,
            // Storing a plan takes a while, so crashes hit plans.
            store_slow: dice.pick(&[0.0, 0.3, 0.8]),
            slow_for: ms(400),
            ..Faults::none()
        };
        for of in &mut self.hubs {
            let mut hub = (*of.hub).clone();
            hub.faults.clear();
            of.hub = Arc::new(hub);
        }
        self.purges.clear();
        self
    }

    /// Returns a rollout by name.
    pub(crate) fn rollout(&self, name: &RolloutName) -> Option<&RolloutPlan> {
        self.rollouts.iter().find(|of| of.name == *name)
    }

    /// Returns true if a device has joined by the given age of the world, and never leaves.
    pub(crate) fn stays(&self, hub: &HubName, device: &DeviceId, from: Duration) -> bool {
        let hub = self.hubs.iter().find(|of| of.hub.name == *hub);
        let coming = hub.and_then(|of| of.hub.temporary_devices.get(device));
        coming.is_none_or(|(came, goes)| *came <= from && *goes == Duration::MAX)
    }

    /// Returns the number of messages a hub may accept in a minute.
    pub(crate) fn quota(&self, hub: &HubName) -> f64 {
        let hub = self.hubs.iter().find(|of| of.hub.name == *hub);
        let quota = hub.and_then(|hub| hub.limits.sends_per_minute);
        quota.unwrap_or(f64::INFINITY)
    }

    /// Returns the number of a rollout's messages a hub may accept in a minute: the rate, both ends
    /// of the minute, and a second of sends, because the limiter makes up for some time and permits
    /// are used slightly late.
    pub(crate) fn rate(&self, rollout: &RolloutName) -> f64 {
        let of = self.rollouts.iter().find(|of| of.name == *rollout);
        let rate = of.and_then(|of| of.rate);
        rate.map_or(f64::INFINITY, |rate| rate + 1.0 + rate / 60.0)
    }

    /// Returns the largest number of dispatches waiting on a queue.
    pub(crate) fn queue_capacity(&self) -> usize {
        500
    }

    /// Returns the time limit for the end of all work after the last fault: enough to send
    /// everything once more, and to notice every pending wait.
    pub(crate) fn time_limit(&self) -> Duration {
        let sending = self.rollouts.iter().map(|rollout| {
            let on_hub = |(name, devices): (&HubName, &BTreeSet<DeviceId>)| {
                let hub = self.hubs.iter().find(|hub| hub.hub.name == *name);
                let quota = hub.and_then(|hub| hub.limits.sends_per_minute);
                let pace = quota
                    .unwrap_or(f64::MAX)
                    .min(rollout.rate.unwrap_or(f64::MAX));
                devices.len() as f64 * 60.0 / pace
            };
            rollout.target.iter().map(on_hub).fold(0.0, f64::max)
        });
        // Waits for answers last until the messages expire, also after each retry and pause.
        seconds(1_200) + Duration::from_secs_f64(4.0 * sending.sum::<f64>())
    }
}

fn hub(dice: &mut Dice, n: u64, chaos: Duration, depends_on_answers: bool) -> HubPlan {
    let name = build::hub(&format!("hub{n}"));
    let devices: BTreeMap<DeviceId, Tags> = (0..dice.among(0..=90))
        .map(|d| {
            let mut tags = Tags::new();
            if dice.happens(0.9) {
                tags.insert("region".into(), dice.pick(&REGIONS).into());
            }
            tags.insert("site".into(), dice.among(0..=5).to_string());
            (build::device(&format!("{name}-{d:03}")), tags)
        })
        .collect();
    let share = dice.pick(&[0.0, 0.0, 0.05]);
    let refused_devices = devices
        .keys()
        .filter(|_| dice.happens(share))
        .cloned()
        .collect::<Vec<_>>();
    let refused_devices = refused_devices
        .into_iter()
        .map(|device| {
            let how = [
                (Outcome::NotFound, 0),
                (Outcome::QueueFull, 0),
                (Outcome::Refused, 400_027),
            ];
            (device, dice.pick(&how))
        })
        .collect();
    let odd = match depends_on_answers {
        true => 0.3,
        false => dice.pick(&[0.0, 0.05, 0.3]),
    };
    let reactions = devices.keys().filter(|_| dice.happens(odd)).cloned();
    let reactions = reactions.collect::<Vec<_>>().into_iter().map(|device| {
        let how = [None, Some(Outcome::Rejected), Some(Outcome::Expired)];
        (device, dice.pick(&how))
    });
    let reactions = reactions.collect();
    let feedback_faults = FeedbackFaults {
        lost: match depends_on_answers {
            true => 0.0,
            false => dice.pick(&[0.0, 0.0, 0.1, 0.6]),
        },
        doubled: dice.pick(&[0.0, 0.3]),
        late: dice.pick(&[ms(50), seconds(3), seconds(40)]),
        foreign: (0..dice.pick(&[0, 0, 0, 3, 40]))
            .map(|_| dice.time(Duration::ZERO..=chaos))
            .collect(),
    };
    let feedback = FeedbackRules {
        queue: dice.pick(&[FeedbackQueue::Shared, FeedbackQueue::Exclusive]),
        lock: SimFeedbackQueue::LOCK,
        batching: feedback_faults.late,
    };
    let quota = dice.pick(&[None, None, Some(60.0), Some(120.0), Some(1_000.0)]);
    let limits = HubLimits {
        sends_per_minute: quota,
        feedback,
        ..HubLimits::unlimited()
    };
    let hub = SimHub {
        name,
        devices,
        temporary_devices: BTreeMap::new(),
        refused_devices,
        reactions,
        feedback_faults,
        feedback_queue: SimFeedbackQueue::default(),
        latency: dice.pick(&[ms(5), ms(50), ms(500)]),
        faults: hub_faults(dice, chaos),
    };
    HubPlan {
        hub: Arc::new(hub),
        limits,
    }
}

fn hub_faults(dice: &mut Dice, chaos: Duration) -> Vec<HubFaultWindow> {
    if dice.happens(0.4) {
        return Vec::new();
    }
    let windows = (0..dice.among(1..=4)).map(|_| {
        let from = dice.time(Duration::ZERO..=chaos);
        let share = dice.pick(&[0.02, 0.2, 0.8]);
        let retry_after = dice.pick(&[None, Some(ms(500)), Some(seconds(8))]);
        HubFaultWindow {
            from,
            to: (from + dice.time(ms(200)..=seconds(20))).min(chaos),
            fault: match dice.among(0..=6) {
                0 => HubFault::Unavailable { retry_after },
                1 => HubFault::Unreachable,
                2 => HubFault::Throttling { share, retry_after },
                3 => HubFault::Refusing { share },
                4 => HubFault::LosingAnswers { share },
                5 => HubFault::LosingMessages { share },
                _ => HubFault::Slow { by: seconds(3) },
            },
        }
    });
    windows.collect()
}

fn rollout(dice: &mut Dice, n: u64, hubs: &[HubPlan], depends_on_answers: bool) -> RolloutPlan {
    let name = build::name(&format!("r{n}"));
    let all: Vec<_> = hubs.iter().map(|hub| &*hub.hub).collect();
    let named = match dice.happens(0.3) {
        true => vec![dice.pick(&all)],
        false => Vec::new(),
    };
    let (mut target, mut means, list) = selector(dice, &all);
    if !named.is_empty() {
        let names: Vec<_> = named.iter().map(|hub| hub.name.as_str()).collect();
        target["hubs"] = json!(names);
    }
    let mut by_tag = false;
    if dice.happens(0.3) {
        let (rule, excludes) = exclusion(dice, &all);
        by_tag = rule.get("tags").is_some();
        target["exclude"] = json!([rule]);
        let selects = means;
        means = Box::new(move |device, tags| selects(device, tags) && !excludes(device, tags));
    }
    let batch_by = dice.pick(&[vec![], vec!["region"], vec!["region", "site"]]);
    let target_hubs = if named.is_empty() { all } else { named };
    // A list for a single hub is taken unchanged if no data about the devices is needed.
    let as_listed = list.filter(|_| target_hubs.len() == 1 && batch_by.is_empty() && !by_tag);
    let meant = target_hubs.iter().map(|hub| {
        let known = || hub.devices.iter();
        let devices = match &as_listed {
            Some(list) => list
                .iter()
                .filter(|device| means(device, &Tags::new()))
                .cloned()
                .collect(),
            None => known()
                .filter(|(device, tags)| means(device, tags))
                .map(|(device, _)| device.clone())
                .collect(),
        };
        (hub.name.clone(), devices)
    });
    let rate = dice.pick(&[None, None, None, Some(60.0), Some(900.0)]);
    let at_most_once = dice.happens(0.3);
    let mut spec = json!({
        "name": name,
        "target": target,
        "message": {"body": {"text": name}},
        "batch_by": batch_by,
        "weight": dice.pick(&[1, 1, 5]),
    });
    if let Some(rate) = rate {
        spec["rate"] = json!(format!("{rate}/min"));
    }
    if at_most_once {
        spec["delivery"] = json!("at_most_once");
    }
    let target: BTreeMap<HubName, BTreeSet<DeviceId>> = meant.collect();
    let devices = target.values().map(|devices| devices.len() as u64).sum();
    let stages = stages::of(dice, &mut spec, devices, depends_on_answers);
    let ttl = spec["message"].get("ttl").map(|_| stages::TTL);
    let batching = target_hubs.iter().map(|hub| hub.feedback_faults.late).min();
    let batching = batching.unwrap_or_default();
    let applies = target_hubs.iter().flat_map(|hub| hub.devices.iter());
    let applies = applies
        .filter(|(_, tags)| !has(tags, "site", &["3"]))
        .map(|(device, _)| device.clone());
    let applies = applies.collect();
    let mut conflicting = spec.clone();
    conflicting["description"] = json!("something else");
    RolloutPlan {
        name,
        spec,
        conflicting,
        at_most_once,
        rate,
        target,
        stages,
        ttl,
        batching,
        applies,
        until: None,
    }
}

/// Lets devices come and go in some worlds, and makes all rollouts continuous. Worlds with a list
/// are excluded: listed devices do not move.
fn move_devices(
    dice: &mut Dice,
    hubs: &mut [HubPlan],
    rollouts: &mut [RolloutPlan],
    chaos: Duration,
) {
    let lists = rollouts
        .iter()
        .any(|of| of.spec["target"].get("devices").is_some());
    if lists || !dice.happens(0.4) {
        return;
    }
    for of in hubs {
        let hub = Arc::make_mut(&mut of.hub);
        for device in hub.devices.keys() {
            let from = match dice.happens(0.3) {
                true => dice.time(Duration::ZERO..=chaos),
                false => Duration::ZERO,
            };
            let to = match dice.happens(0.2) {
                true => from + dice.time(Duration::ZERO..=chaos),
                false => Duration::MAX,
            };
            if (from, to) != (Duration::ZERO, Duration::MAX) {
                hub.temporary_devices.insert(device.clone(), (from, to));
            }
        }
    }
    for of in rollouts {
        let until = dice.time(seconds(5)..=chaos + seconds(30));
        of.until = Some(until);
        of.stages.push(stages::late(&of.stages));
        let at = RuntimeClock::start().plus(until).to_string();
        for spec in [&mut of.spec, &mut of.conflicting] {
            spec["continuous"] = json!({"every": "1m", "until": at});
        }
    }
}

/// A rule: returns true for the devices of a target.
type Selector = Box<dyn Fn(&DeviceId, &Tags) -> bool>;

fn has(tags: &Tags, tag: &str, values: &[&str]) -> bool {
    tags.get(tag)
        .is_some_and(|value| values.contains(&value.as_str()))
}

/// Returns a target as a spec, as a rule, and, for a list, as a set of devices.
fn selector(dice: &mut Dice, hubs: &[&SimHub]) -> (Value, Selector, Option<BTreeSet<DeviceId>>) {
    let region = dice.pick(&REGIONS);
    let (target, means): (Value, Selector) = match dice.among(0..=9) {
        0..=4 => (json!({"all": true}), Box::new(|_, _| true)),
        5 => (
            json!({"tags": {"region": region}}),
            Box::new(move |_, tags| has(tags, "region", &[region])),
        ),
        6 => (
            json!({"tags": {"region": ["eu", region]}, "where": "tags.site != '3'"}),
            Box::new(move |_, tags| {
                has(tags, "region", &["eu", region]) && !has(tags, "site", &["3"])
            }),
        ),
        7 => (json!({"tags": {"region": "mars"}}), Box::new(|_, _| false)),
        _ => {
            let (ids, listed) = listed(dice, hubs);
            let list = listed.clone();
            let means = move |device: &DeviceId, _: &Tags| listed.contains(device);
            return (json!({"devices": ids}), Box::new(means), Some(list));
        }
    };
    (target, means, None)
}

fn exclusion(dice: &mut Dice, hubs: &[&SimHub]) -> (Value, Selector) {
    if dice.happens(0.5) {
        let (ids, listed) = listed(dice, hubs);
        return (
            json!({"devices": ids}),
            Box::new(move |device, _| listed.contains(device)),
        );
    }
    let region = dice.pick(&REGIONS);
    (
        json!({"tags": {"region": region, "site": ["1", "2"]}}),
        Box::new(move |_, tags| has(tags, "region", &[region]) && has(tags, "site", &["1", "2"])),
    )
}

/// Returns some devices of all hubs, with a duplicate.
fn listed(dice: &mut Dice, hubs: &[&SimHub]) -> (Vec<String>, BTreeSet<DeviceId>) {
    let devices = hubs.iter().flat_map(|hub| hub.devices.keys());
    let mut ids: Vec<_> = devices
        .filter(|_| dice.happens(0.4))
        .map(ToString::to_string)
        .collect();
    // A list must not be empty.
    ids.push("hub0-000".into());
    ids.extend(ids.first().cloned());
    let listed = ids.iter().map(|id| build::device(id)).collect();
    (ids, listed)
}

fn commands(dice: &mut Dice, rollouts: usize, chaos: Duration) -> Vec<(Duration, PlannedCommand)> {
    let mut commands = Vec::new();
    for rollout in 0..rollouts {
        let start = dice.time(Duration::ZERO..=chaos / 3);
        let later = |dice: &mut Dice| dice.time(start..=chaos);
        commands.push((start, PlannedCommand::Start(rollout)));
        for _ in 0..dice.among(0..=2) {
            commands.push((later(dice), PlannedCommand::Start(rollout)));
        }
        if dice.happens(0.3) {
            commands.push((later(dice), PlannedCommand::StartConflicting(rollout)));
        }
        for _ in 0..dice.pick(&[0, 0, 0, 1, 1, 2, 4]) {
            let at = later(dice);
            commands.push((at, PlannedCommand::Pause(rollout)));
            commands.push((
                at + dice.time(ms(1)..=seconds(10)),
                PlannedCommand::Resume(rollout),
            ));
        }
        for _ in 0..dice.pick(&[0, 0, 1, 2, 5]) {
            let again = [
                RetrySelection::Failed,
                RetrySelection::Rejected,
                RetrySelection::Silent,
                RetrySelection::First,
            ];
            commands.push((
                later(dice),
                PlannedCommand::Retry(rollout, dice.pick(&again)),
            ));
        }
        if dice.happens(0.2) {
            commands.push((later(dice), PlannedCommand::Abort(rollout)));
        }
        for _ in 0..dice.pick(&[0, 0, 1, 2, 6]) {
            let stage = dice.among(0..=3) as usize;
            let planned = match dice.among(0..=5) {
                0 => PlannedCommand::Promote(rollout, stage),
                1 => PlannedCommand::Reject(rollout),
                2 => PlannedCommand::Resume(rollout),
                _ => PlannedCommand::Approve(rollout),
            };
            commands.push((later(dice), planned));
        }
    }
    for _ in 0..dice.pick(&[0, 0, 0, 1, 2]) {
        let at = dice.time(Duration::ZERO..=chaos);
        commands.push((at, PlannedCommand::StopAll));
        commands.push((
            at + dice.time(ms(1)..=seconds(10)),
            PlannedCommand::ResumeAll,
        ));
    }
    commands.sort_by_key(|(at, _)| *at);
    commands
}

fn orchestrator(dice: &mut Dice) -> OrchestratorConfig {
    OrchestratorConfig {
        claim: dice.pick(&[seconds(4), seconds(10)]),
        driver: DriverConfig {
            per_consumer: dice.pick(&[1, 2]),
            ahead: dice.pick(&[1, 4]),
            ..DriverConfig::default()
        },
        ..OrchestratorConfig::default()
    }
}

fn worker(dice: &mut Dice) -> WorkerConfig {
    WorkerConfig {
        slots: dice.pick(&[1, 2, 4]),
        window: dice.pick(&[2, 4, 16]),
        lease: dice.pick(&[seconds(3), seconds(10)]),
        tries: dice.pick(&[3, 8]),
        drain: dice.pick(&[seconds(2), seconds(15)]),
        give_up: dice.pick(&[None, None, Some(seconds(20))]),
        ..WorkerConfig::default()
    }
}

/// Many worlds leave out a kind of fault: a fault could hide defects visible only in the absence of
/// the fault.
fn faults(dice: &mut Dice, chaos: Duration) -> Faults {
    let away = (0..dice.pick(&[0, 0, 0, 1, 2])).map(|_| {
        let from = dice.time(Duration::ZERO..=chaos);
        (from, from + dice.time(ms(100)..=seconds(60)))
    });
    Faults {
        until: chaos,
        store_away: away.collect(),
        store_forgets: Vec::new(),
        latency: dice.pick(&[ms(0), ms(2), ms(20)]),
        crash: dice.pick(&[0.0, 0.0, 0.000_5, 0.002, 0.01]),
        stall: dice.pick(&[0.0, 0.0, 0.0, 0.001]),
        stall_for: dice.pick(&[seconds(2), seconds(6), seconds(25)]),
        store_fails: dice.pick(&[0.0, 0.0, 0.002, 0.02]),
        store_slow: dice.pick(&[0.0, 0.0, 0.01]),
        slow_for: dice.pick(&[ms(500), seconds(5)]),
        queue_fails: dice.pick(&[0.0, 0.0, 0.05]),
        dispatch_lost: dice.pick(&[0.0, 0.0, 0.1, 0.5]),
        dispatch_doubled: dice.pick(&[0.0, 0.0, 0.2]),
        dispatch_late: dice.pick(&[0.0, 0.0, 0.2]),
        consumer_cut: dice.pick(&[0.0, 0.0, 0.02]),
        events_fail: dice.pick(&[0.0, 0.0, 0.2]),
    }
}
