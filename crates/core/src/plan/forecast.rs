//! When a plan will be sent: by the hubs' quotas, the schedule, and the waits at gates.
//!
//! A forecast walks through the openings and closings of the schedule, stage by stage. Sends of a hub are an interval
//! apart, also when the schedule was closed or a stage has ended in between. It assumes that all gates pass, that approvals are given at once, and that nobody else uses the hubs' quotas. It is a pure
//! function of the plan and a time, and its work is bounded by [`MAX_STEPS`] and [`MAX_AHEAD`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Estimate;
use crate::evidence::BATCHING;
use crate::gate;
use crate::ids::{HubName, StageIndex, StageName};
use crate::spec::{Closed, Gate, Metric, Opening, RolloutSpec, Rung};
use crate::time::{Timestamp, friendly};

/// Openings and closings that are looked at for each stage and hub: thirteen years of daily windows.
const MAX_STEPS: usize = 10_000;
/// What takes longer than this is refused: nobody means it.
const MAX_AHEAD: Duration = Duration::from_secs(20 * 365 * DAY.as_secs());
/// Sending that takes longer than this is warned of.
const LONG: Duration = Duration::from_secs(90 * DAY.as_secs());
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Devices of one stage on one hub that have the same zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The hub.
    pub hub: HubName,
    /// The value of the schedule's `zone_tag`, if there is one.
    pub zone: Option<String>,
    /// How many.
    pub devices: u64,
}

/// One stage of a plan: what is to be sent, and how fast that goes.
#[derive(Debug, Clone)]
pub struct StageShares {
    /// By hub and zone.
    pub shares: Vec<Share>,
    /// What it takes on each hub, the schedule aside.
    pub estimate: Estimate,
}

/// When one stage is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageForecast {
    /// The stage.
    #[serde(rename = "stage")]
    pub name: StageName,
    /// When its first message may leave, at the earliest; without devices, when its turn comes.
    pub starts_at: Timestamp,
    /// When all its devices were sent to, at the earliest.
    pub sent_at: Timestamp,
    /// When it is over, at the earliest: its bake has passed, its metrics are measured, and no device is waited for.
    pub ends_at: Timestamp,
    /// The same when silent devices are waited for as long as its gate and those before it allow.
    pub ends_at_latest: Timestamp,
}

/// When a plan is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Since when it is reckoned.
    pub from: Timestamp,
    /// By stage, in order.
    pub stages: Vec<StageForecast>,
    /// When the last stage is over, at the earliest.
    pub ends_at: Timestamp,
    /// The same when silent devices are waited for as long as the gates allow.
    pub ends_at_latest: Timestamp,
    /// How many stages wait for an approval. However long that takes comes on top.
    pub approvals: usize,
}

/// Why a plan can never be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The schedule does not open any more while devices are left.
    #[error(
        "stage {stage} can never be sent: the schedule{} is {why} at {at} and does not open again within 400 days: \
         shorten its freezes",
        .zone.as_ref().map(|zone| format!(" in the zone {zone}")).unwrap_or_default()
    )]
    NeverOpen {
        /// The stage.
        stage: StageName,
        /// Whose zone, if devices have their own.
        zone: Option<String>,
        /// When.
        at: Timestamp,
        /// Why.
        why: Closed,
    },
    /// It would take for ever, more or less.
    #[error(
        "stage {stage} would not be sent within 20 years: raise rate, the hub's units or share, or open the schedule for longer"
    )]
    TooLong {
        /// The stage.
        stage: StageName,
    },
    /// A hub's daily quota holds no message.
    #[error(
        "stage {stage} can never be sent: the daily quota of hub {hub} does not hold one message of it"
    )]
    NoQuota {
        /// The stage.
        stage: StageName,
        /// The hub.
        hub: HubName,
    },
}

/// Reckons when a plan is sent that starts at `now`. `stages` has the stages in order, the one for the rest last.
///
/// # Errors
/// [`Impossible`], when some of it never is.
pub fn forecast(
    spec: &RolloutSpec,
    stages: &[StageShares],
    now: Timestamp,
) -> Result<Forecast, Impossible> {
    let (mut early, mut late) = (Track::at(now), Track::at(now));
    let schedule = spec.schedule.as_ref();
    let start_at = schedule.and_then(|schedule| schedule.start_at);
    let began = start_at.map_or(now, |start_at| start_at.max(now));
    let mut forecast = Forecast {
        from: now,
        stages: Vec::new(),
        ends_at: now,
        ends_at_latest: now,
        approvals: 0,
    };
    for ((index, stage), named) in (0u16..).zip(stages).zip(spec.all_stages()) {
        let gate = spec.gate_of(StageIndex(index));
        let Sent { starts_at, sent_at } = early.send(spec, &named.name, stage, began)?;
        early.now = gate.map_or(sent_at, |gate| passes_at(gate, early.now, sent_at));
        let sent_late = late.send(spec, &named.name, stage, began)?.sent_at;
        late.now = gate.map_or(sent_late, |gate| {
            passes_at(gate, late.now, sent_late).max(silent_until(spec, gate, sent_late))
        });
        forecast.approvals += usize::from(gate.is_some_and(|gate| gate.approval.is_some()));
        forecast.stages.push(StageForecast {
            name: named.name,
            starts_at,
            sent_at,
            ends_at: early.now,
            ends_at_latest: late.now,
        });
    }
    (forecast.ends_at, forecast.ends_at_latest) = (early.now, late.now);
    Ok(forecast)
}

fn bake(gate: &Gate) -> Duration {
    gate.bake.map_or(Duration::ZERO, |bake| bake.0)
}

/// When a gate lets a stage through whose turn came at `began`, when all is well: its bake has passed, and its metrics were
/// measured as often as they must be.
fn passes_at(gate: &Gate, began: Timestamp, sent_at: Timestamp) -> Timestamp {
    let measured = |metric: &Metric| {
        let every = metric.every.0;
        let delay = metric.initial_delay.map_or(Duration::ZERO, |delay| delay.0);
        let first = began.plus(delay);
        // Measurements count from the first one on that finds all of the stage sent.
        let before = sent_at.since(first).as_millis();
        let before = before.div_ceil(every.as_millis().max(1));
        let needed = before + u128::from(metric.count.saturating_sub(1));
        first.plus(every * u32::try_from(needed).unwrap_or(u32::MAX))
    };
    let metrics = gate.metrics.iter().map(measured);
    metrics.fold(sent_at.plus(bake(gate)), Timestamp::max)
}

/// Until when a gate waits for silent devices.
fn silent_until(spec: &RolloutSpec, gate: &Gate, sent_at: Timestamp) -> Timestamp {
    match gate.counts {
        Rung::Enqueued => sent_at,
        Rung::Delivered | Rung::Applied => sent_at.plus(deadline(spec, gate) + BATCHING),
    }
}

fn deadline(spec: &RolloutSpec, gate: &Gate) -> Duration {
    let ttl = spec.message.ttl.map(|ttl| ttl.0);
    let within = spec.answered_within();
    gate::deadline(gate, ttl, within, BATCHING)
}

/// A rollout that is gone through: where it is, and each hub.
struct Track {
    now: Timestamp,
    lines: Vec<(HubName, Line)>,
}

/// When the first message of something leaves, and when the last one.
#[derive(Debug, Clone, Copy)]
struct Sent {
    starts_at: Timestamp,
    sent_at: Timestamp,
}

/// What was used of a hub.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    /// The next send comes no sooner.
    free_at: Timestamp,
    /// The day of UTC on which so many devices were sent to.
    day: u64,
    devices: u64,
}

impl Track {
    fn at(now: Timestamp) -> Self {
        Self {
            now,
            lines: Vec::new(),
        }
    }

    /// Sends a stage, all hubs at once: from the first message of the earliest to the last of the slowest.
    fn send(
        &mut self,
        spec: &RolloutSpec,
        name: &StageName,
        stage: &StageShares,
        began: Timestamp,
    ) -> Result<Sent, Impossible> {
        let mut whole: Option<Sent> = None;
        for hub in &stage.estimate.hubs {
            let shares = stage.shares.iter().filter(|it| it.hub == hub.plan.hub);
            let mut work = Work {
                spec,
                stage: name,
                hub: &hub.plan.hub,
                interval_ms: hub.mean_interval() * 1_000.0,
                a_day: messages_a_day(hub.plan.devices, hub.metered_messages, hub.messages_per_day),
                left: shares
                    .map(|share| (share.zone.as_deref(), share.devices))
                    .collect(),
                began,
            };
            let line = match self.lines.iter().position(|(hub, _)| hub == work.hub) {
                Some(at) => at,
                None => {
                    self.lines.push((work.hub.clone(), Line::default()));
                    self.lines.len() - 1
                }
            };
            let line = &mut self.lines[line].1;
            if let Some(sent) = work.send(self.now, line)? {
                line.free_at = sent.sent_at.plus(hub.last_interval());
                whole = Some(whole.map_or(sent, |whole| Sent {
                    starts_at: whole.starts_at.min(sent.starts_at),
                    sent_at: whole.sent_at.max(sent.sent_at),
                }));
            }
        }
        Ok(whole.unwrap_or(Sent {
            starts_at: self.now,
            sent_at: self.now,
        }))
    }
}

/// Devices that a day's quota is enough for.
fn messages_a_day(devices: u64, metered: u64, quota: Option<u64>) -> Option<u64> {
    let each = metered.checked_div(devices).unwrap_or(1);
    quota.map(|quota| quota / each.max(1))
}

/// What one hub has to do for a stage.
struct Work<'a> {
    spec: &'a RolloutSpec,
    stage: &'a StageName,
    hub: &'a HubName,
    /// Between two sends; zero without a limit.
    interval_ms: f64,
    /// Devices a day; `None` without a limit.
    a_day: Option<u64>,
    /// Devices by zone.
    left: Vec<(Option<&'a str>, u64)>,
    /// When the rollout may send at all.
    began: Timestamp,
}

/// How a hub goes on from some moment.
enum Step {
    /// Nothing can be sent before then.
    Wait(Timestamp),
    /// So many are sent, the first of them at once.
    Send(u64),
}

impl Work<'_> {
    /// Sends everything, from `from` on, if there is anything.
    fn send(&mut self, from: Timestamp, line: &mut Line) -> Result<Option<Sent>, Impossible> {
        let mut now = from.max(line.free_at);
        let mut whole: Option<Sent> = None;
        for _ in 0..MAX_STEPS {
            if now.since(self.began) > MAX_AHEAD {
                break;
            }
            self.left.retain(|(_, devices)| *devices > 0);
            if self.left.is_empty() {
                return Ok(whole);
            }
            now = match self.step(now, line)? {
                Step::Wait(until) => until,
                Step::Send(sent) => {
                    let starts_at = whole.map_or(now, |whole| whole.starts_at);
                    let sent_at = self.after(now, sent - 1);
                    whole = Some(Sent { starts_at, sent_at });
                    self.after(now, sent)
                }
            };
        }
        Err(Impossible::TooLong {
            stage: self.stage.clone(),
        })
    }

    /// So many intervals later.
    fn after(&self, now: Timestamp, intervals: u64) -> Timestamp {
        // Less than a thousandth of a millisecond is the arithmetic's.
        let ms = (self.interval_ms * intervals as f64 - 1e-3).ceil();
        now.plus(Duration::from_millis(ms as u64))
    }

    /// What is done at `now`, until something changes.
    fn step(&mut self, now: Timestamp, line: &mut Line) -> Result<Step, Impossible> {
        let mut change = Timestamp::MAX;
        let mut open = Vec::with_capacity(self.left.len());
        for (zone, _) in &self.left {
            let opening = match &self.spec.schedule {
                Some(schedule) => schedule.at(now, *zone),
                None => Opening::Open { until: None },
            };
            let until = match opening {
                Opening::Open { until } => {
                    open.push(true);
                    until.unwrap_or(Timestamp::MAX)
                }
                Opening::Closed {
                    until: Some(until), ..
                } => {
                    open.push(false);
                    until
                }
                Opening::Closed { until: None, why } => {
                    return Err(Impossible::NeverOpen {
                        stage: self.stage.clone(),
                        zone: zone.map(str::to_owned),
                        at: now,
                        why,
                    });
                }
            };
            change = change.min(until);
        }
        let waiting = self.left.iter().zip(&open);
        let all: u64 = waiting
            .filter(|(_, open)| **open)
            .map(|((_, devices), _)| devices)
            .sum();
        if all == 0 {
            return Ok(Step::Wait(change));
        }
        let mut wanted = all;
        // The hub counts by days of UTC.
        let day_ms = DAY.as_millis() as u64;
        let day = now.0 / day_ms;
        if line.day != day {
            (line.day, line.devices) = (day, 0);
        }
        if let Some(quota) = self.a_day.filter(|quota| self.is_binding(*quota)) {
            if quota == 0 {
                return Err(Impossible::NoQuota {
                    stage: self.stage.clone(),
                    hub: self.hub.clone(),
                });
            }
            let midnight = Timestamp((day + 1) * day_ms);
            wanted = wanted.min(quota.saturating_sub(line.devices));
            if wanted == 0 {
                return Ok(Step::Wait(midnight));
            }
            change = change.min(midnight);
        }
        let sent = wanted.min(self.until(change, now));
        line.devices += sent;
        self.take(&open, sent, all);
        Ok(Step::Send(sent))
    }

    /// How many are sent from `now` on before `change`; at least one.
    fn until(&self, change: Timestamp, now: Timestamp) -> u64 {
        let intervals = change.since(now).as_millis() as f64 / self.interval_ms;
        // Less than a millionth of an interval is the arithmetic's.
        ((intervals - 1e-6).ceil() as u64).max(1)
    }

    /// Takes `sent` of the `all` devices whose zones are open, from each zone its part.
    fn take(&mut self, open: &[bool], sent: u64, all: u64) {
        let mut rest = sent;
        let waiting = || open.iter().enumerate().filter(|(_, open)| **open);
        for (zone, _) in waiting() {
            let devices = &mut self.left[zone].1;
            let part = u128::from(*devices) * u128::from(sent) / u128::from(all);
            let part = u64::try_from(part).expect("a part is no more than the whole");
            *devices -= part;
            rest -= part;
        }
        for (zone, _) in waiting() {
            let devices = &mut self.left[zone].1;
            let part = rest.min(*devices);
            *devices -= part;
            rest -= part;
        }
    }

    /// Whether a day at the pace sends more than a day's quota.
    fn is_binding(&self, quota: u64) -> bool {
        DAY.as_millis() as f64 / self.interval_ms > quota as f64
    }
}

/// What is possible and yet may not be what was meant, each in a sentence.
#[must_use]
pub fn warnings(spec: &RolloutSpec, whole: &Estimate) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(gate::advice::of_spec(spec));
    warnings.extend(ttl_after_window(spec));
    for hub in &whole.hubs {
        let (Some(quota), days) = (hub.messages_per_day, hub.days_of_quota().unwrap_or(0.0)) else {
            continue;
        };
        let devices = hub.plan.devices.max(1);
        let a_day = hub
            .sends_per_minute
            .map(|pace| pace * 24.0 * 60.0 * (hub.metered_messages / devices) as f64);
        if days > 1.0 && a_day.is_none_or(|a_day| a_day > quota as f64) {
            warnings.push(format!(
                "hub {}: the rollout needs {days:.1} days of its whole daily quota, at a pace that uses a day's up \
                 before the day is over; then the hub takes nothing from anybody until midnight UTC",
                hub.plan.hub
            ));
        }
    }
    if let Some(sending) = whole.sending.filter(|sending| *sending > LONG) {
        warnings.push(format!(
            "sending alone takes {}; raise rate, or the hub's units or share",
            friendly(sending)
        ));
    }
    warnings
}

/// Messages wait at the hub for devices that are away, and the hub knows no windows.
fn ttl_after_window(spec: &RolloutSpec) -> Option<String> {
    let ttl = spec.message.ttl?.0;
    let windows = &spec.schedule.as_ref()?.windows;
    let shortest = windows.iter().map(|window| window.length.0).min()?;
    (ttl > shortest).then(|| {
        format!(
            "message.ttl is {}, longer than a window ({}): devices that are away get the message also when the \
             window is closed",
            friendly(ttl),
            friendly(shortest)
        )
    })
}

#[cfg(test)]
mod tests;
