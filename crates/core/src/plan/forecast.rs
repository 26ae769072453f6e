//! Forecasts when a plan will be sent, from the hubs' quotas, the schedule, and the waits at gates.
//!
//! A forecast steps through the openings and closings of the schedule, stage by stage. The sends of
//! a hub are an interval apart, also across a closed schedule or the end of a stage. The forecast
//! assumes that all gates pass, that approvals are given at once, and that no other sender uses the
//! hubs' quotas. The result is a pure function of the plan and a time. [`MAX_STEPS`] and
//! [`MAX_AHEAD`] bound the work.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Estimate;
use crate::evidence::BATCHING;
use crate::gate;
use crate::ids::{HubName, StageIndex, StageName};
use crate::spec::{Closed, Gate, Metric, RolloutSpec, ScheduleState, SuccessLevel};
use crate::time::{Timestamp, friendly};

/// The maximum number of openings and closings for each stage and hub: thirteen years of daily
/// windows.
const MAX_STEPS: usize = 10_000;
/// The maximum duration of a forecast. A longer plan is refused as a mistake.
const MAX_AHEAD: Duration = Duration::from_secs(20 * 365 * DAY.as_secs());
/// The sending time above which a warning is given.
const LONG: Duration = Duration::from_secs(90 * DAY.as_secs());
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Devices of the same stage, hub and zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The hub.
    pub hub: HubName,
    /// The value of the schedule's `zone_tag`, if any.
    pub zone: Option<String>,
    /// The number of devices.
    pub devices: u64,
}

/// A stage of a plan: the devices, and the time needed for sending.
#[derive(Debug, Clone)]
pub struct StageShares {
    /// The devices by hub and zone.
    pub shares: Vec<Share>,
    /// The sending time on each hub, without the schedule.
    pub estimate: Estimate,
}

/// The forecast of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageForecast {
    /// The stage.
    #[serde(rename = "stage")]
    pub name: StageName,
    /// The earliest time of the first message. For a stage without devices, the time when the
    /// stage's turn comes.
    pub starts_at: Timestamp,
    /// The earliest time at which all devices were sent to.
    pub sent_at: Timestamp,
    /// The earliest end of the stage: the bake has passed, the metrics are measured, and no device
    /// is waited for.
    pub ends_at: Timestamp,
    /// The end of the stage if its gate and all earlier gates wait for silent devices as long as
    /// allowed.
    pub ends_at_latest: Timestamp,
}

/// The forecast of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The start of the forecast.
    pub from: Timestamp,
    /// The stages, in order.
    pub stages: Vec<StageForecast>,
    /// The earliest end of the last stage.
    pub ends_at: Timestamp,
    /// The end of the last stage if the gates wait for silent devices as long as allowed.
    pub ends_at_latest: Timestamp,
    /// The number of stages with an approval. The forecast does not include the time until an
    /// approval.
    pub approvals: usize,
}

/// The reason why a plan can never be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The schedule never opens again, and devices are left.
    #[error(
        "stage {stage} can never be sent: the schedule{} is {why} at {at} and does not open again within 400 days: \
         shorten its freezes",
        .zone.as_ref().map(|zone| format!(" in the zone {zone}")).unwrap_or_default()
    )]
    NeverOpen {
        /// The stage.
        stage: StageName,
        /// The zone of the affected devices, if devices have zones of their own.
        zone: Option<String>,
        /// The time at which the schedule is closed.
        at: Timestamp,
        /// The reason why the schedule is closed.
        why: Closed,
    },
    /// Sending would take more than 20 years, or too many openings of the schedule.
    #[error(
        "stage {stage} would not be sent within 20 years: raise rate, the hub's units or share, or open the schedule for longer"
    )]
    TooLong {
        /// The stage.
        stage: StageName,
    },
    /// A hub's daily quota is smaller than a single message.
    #[error(
        "stage {stage} can never be sent: the daily quota of hub {hub} is smaller than one message \
         of the stage"
    )]
    NoQuota {
        /// The stage.
        stage: StageName,
        /// The hub.
        hub: HubName,
    },
}

/// Forecasts the sending of a plan that starts at `now`. `stages` has the order of
/// [`RolloutSpec::all_stages`].
///
/// # Errors
/// Returns [`Impossible`] if a part of the plan can never be sent.
pub fn forecast(
    spec: &RolloutSpec,
    stages: &[StageShares],
    now: Timestamp,
) -> Result<Forecast, Impossible> {
    let (mut earliest, mut latest) = (Walk::at(now), Walk::at(now));
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
        let Sent { starts_at, sent_at } = earliest.send(spec, &named.name, stage, began)?;
        earliest.now = gate.map_or(sent_at, |gate| passes_at(gate, earliest.now, sent_at));
        let sent_latest = latest.send(spec, &named.name, stage, began)?.sent_at;
        latest.now = gate.map_or(sent_latest, |gate| {
            passes_at(gate, latest.now, sent_latest).max(silent_until(spec, gate, sent_latest))
        });
        forecast.approvals += usize::from(gate.is_some_and(|gate| gate.approval.is_some()));
        forecast.stages.push(StageForecast {
            name: named.name,
            starts_at,
            sent_at,
            ends_at: earliest.now,
            ends_at_latest: latest.now,
        });
    }
    (forecast.ends_at, forecast.ends_at_latest) = (earliest.now, latest.now);
    Ok(forecast)
}

fn bake(gate: &Gate) -> Duration {
    gate.bake.map_or(Duration::ZERO, |bake| bake.0)
}

/// Returns when a gate lets a stage pass if all is well. `began` is the time of the stage's turn.
/// The gate passes when the bake is over and every metric has the required number of measurements.
fn passes_at(gate: &Gate, began: Timestamp, sent_at: Timestamp) -> Timestamp {
    let measured = |metric: &Metric| {
        let every = metric.every.0;
        let delay = metric.initial_delay.map_or(Duration::ZERO, |delay| delay.0);
        let first = began.plus(delay);
        // Measurements count from the first measurement after the last send.
        let before = sent_at.since(first).as_millis();
        let before = before.div_ceil(every.as_millis().max(1));
        let needed = before + u128::from(metric.count.saturating_sub(1));
        first.plus(every * u32::try_from(needed).unwrap_or(u32::MAX))
    };
    let metrics = gate.metrics.iter().map(measured);
    metrics.fold(sent_at.plus(bake(gate)), Timestamp::max)
}

/// Returns the time until which a gate waits for silent devices.
fn silent_until(spec: &RolloutSpec, gate: &Gate, sent_at: Timestamp) -> Timestamp {
    match gate.counts {
        SuccessLevel::Enqueued => sent_at,
        SuccessLevel::Delivered | SuccessLevel::Applied => {
            sent_at.plus(deadline(spec, gate) + BATCHING)
        }
    }
}

fn deadline(spec: &RolloutSpec, gate: &Gate) -> Duration {
    let ttl = spec.message.ttl.map(|ttl| ttl.0);
    let within = spec.answered_within();
    gate::deadline(gate, ttl, within, BATCHING)
}

/// The state of a walk through a rollout: the current time, and the usage of each hub.
struct Walk {
    now: Timestamp,
    hubs: Vec<(HubName, HubUsage)>,
}

/// The times of the first and the last message.
#[derive(Debug, Clone, Copy)]
struct Sent {
    starts_at: Timestamp,
    sent_at: Timestamp,
}

/// The usage of a hub.
#[derive(Debug, Clone, Copy, Default)]
struct HubUsage {
    /// The earliest time of the next send.
    free_at: Timestamp,
    /// The UTC day, in days since 1970, on which `devices` devices were sent to.
    day: u64,
    devices: u64,
}

impl Walk {
    fn at(now: Timestamp) -> Self {
        Self {
            now,
            hubs: Vec::new(),
        }
    }

    /// Sends a stage through all hubs at once. Returns the first message of the earliest hub and
    /// the last message of the slowest hub.
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
            let index = match self.hubs.iter().position(|(hub, _)| hub == work.hub) {
                Some(at) => at,
                None => {
                    self.hubs.push((work.hub.clone(), HubUsage::default()));
                    self.hubs.len() - 1
                }
            };
            let usage = &mut self.hubs[index].1;
            if let Some(sent) = work.send(self.now, usage)? {
                usage.free_at = sent.sent_at.plus(hub.last_interval());
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

/// Returns the number of devices within a day's quota.
fn messages_a_day(devices: u64, metered: u64, quota: Option<u64>) -> Option<u64> {
    let each = metered.checked_div(devices).unwrap_or(1);
    quota.map(|quota| quota / each.max(1))
}

/// The sends of a hub for a stage.
struct Work<'a> {
    spec: &'a RolloutSpec,
    stage: &'a StageName,
    hub: &'a HubName,
    /// The time between two sends; zero without a limit.
    interval_ms: f64,
    /// The maximum number of devices per day; `None` without a limit.
    a_day: Option<u64>,
    /// The remaining devices by zone.
    left: Vec<(Option<&'a str>, u64)>,
    /// The earliest time at which the rollout may send at all.
    began: Timestamp,
}

/// The next step of a hub.
enum Step {
    /// Nothing can be sent before this time.
    Wait(Timestamp),
    /// This number of devices is sent to, the first of them immediately.
    Send(u64),
}

impl Work<'_> {
    /// Sends to all remaining devices, starting at `from`. Returns `None` without devices.
    fn send(&mut self, from: Timestamp, usage: &mut HubUsage) -> Result<Option<Sent>, Impossible> {
        let mut now = from.max(usage.free_at);
        let mut whole: Option<Sent> = None;
        for _ in 0..MAX_STEPS {
            if now.since(self.began) > MAX_AHEAD {
                break;
            }
            self.left.retain(|(_, devices)| *devices > 0);
            if self.left.is_empty() {
                return Ok(whole);
            }
            now = match self.step(now, usage)? {
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

    /// Returns the time after a number of intervals.
    fn after(&self, now: Timestamp, intervals: u64) -> Timestamp {
        // Ignore rounding errors below a thousandth of a millisecond.
        let ms = (self.interval_ms * intervals as f64 - 1e-3).ceil();
        now.plus(Duration::from_millis(ms as u64))
    }

    /// Returns the step at `now`, which ends at the next change of the schedule or the quota.
    fn step(&mut self, now: Timestamp, usage: &mut HubUsage) -> Result<Step, Impossible> {
        let mut change = Timestamp::MAX;
        let mut open = Vec::with_capacity(self.left.len());
        for (zone, _) in &self.left {
            let state = match &self.spec.schedule {
                Some(schedule) => schedule.state_at(now, *zone),
                None => ScheduleState::Open { until: None },
            };
            let until = match state {
                ScheduleState::Open { until } => {
                    open.push(true);
                    until.unwrap_or(Timestamp::MAX)
                }
                ScheduleState::Closed {
                    until: Some(until), ..
                } => {
                    open.push(false);
                    until
                }
                ScheduleState::Closed { until: None, why } => {
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
        let mut allowed = all;
        // The hub counts by UTC days.
        let day_ms = DAY.as_millis() as u64;
        let day = now.0 / day_ms;
        if usage.day != day {
            (usage.day, usage.devices) = (day, 0);
        }
        if let Some(quota) = self.a_day.filter(|quota| self.is_binding(*quota)) {
            if quota == 0 {
                return Err(Impossible::NoQuota {
                    stage: self.stage.clone(),
                    hub: self.hub.clone(),
                });
            }
            let midnight = Timestamp((day + 1) * day_ms);
            allowed = allowed.min(quota.saturating_sub(usage.devices));
            if allowed == 0 {
                return Ok(Step::Wait(midnight));
            }
            change = change.min(midnight);
        }
        let sent = allowed.min(self.until(change, now));
        usage.devices += sent;
        self.take(&open, sent, all);
        Ok(Step::Send(sent))
    }

    /// Returns the number of sends from `now` until just before `change`; at least 1.
    fn until(&self, change: Timestamp, now: Timestamp) -> u64 {
        let intervals = change.since(now).as_millis() as f64 / self.interval_ms;
        // Ignore rounding errors below a millionth of an interval.
        ((intervals - 1e-6).ceil() as u64).max(1)
    }

    /// Removes `sent` of the `all` devices in open zones, from each zone in proportion.
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

    /// Returns whether a day of sending at this pace exceeds a day's quota.
    fn is_binding(&self, quota: u64) -> bool {
        DAY.as_millis() as f64 / self.interval_ms > quota as f64
    }
}

/// Returns warnings about possible but probably unintended plans, each as a sentence.
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
                "hub {}: the rollout needs {days:.1} days of its whole daily quota, at a rate that \
                 uses up a day's quota before the end of the day; the hub then accepts no messages \
                 from any client until midnight UTC",
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

/// Warns of a `ttl` longer than a window: a hub keeps messages for offline devices, regardless of
/// windows.
fn ttl_after_window(spec: &RolloutSpec) -> Option<String> {
    let ttl = spec.message.ttl?.0;
    let windows = &spec.schedule.as_ref()?.windows;
    let shortest = windows.iter().map(|window| window.length.0).min()?;
    (ttl > shortest).then(|| {
        format!(
            "message.ttl is {}, longer than a window ({}): offline devices may receive the message \
             while the window is closed",
            friendly(ttl),
            friendly(shortest)
        )
    })
}

#[cfg(test)]
mod tests;
