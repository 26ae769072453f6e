//! Computes when each hub has sent everything, at a pace that may rise.
//!
//! A hub's first message is sent immediately. An interval follows each message, at the rate for the
//! number of devices counted before that message. So `n` messages take `n - 1` intervals, up to the
//! time that a rollout with a rate of its own may [make up for](crate::permits::MAKE_UP).

use crate::hub::HubLimits;
use crate::spec::StagePace;

/// The pace and the sending time of a hub.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SendingTime {
    /// The final pace per minute; `None` without a limit.
    pub(super) pace: Option<f64>,
    /// Minutes from the first device to the last; `None` without a limit.
    pub(super) minutes: Option<f64>,
}

/// A hub's part of the devices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) devices: u64,
    pub(super) limits: HubLimits,
}

/// Simulates the sending of all hubs at once, from step to step of the ramp. `before` is the number
/// of devices counted before the start. Every device counts as soon as its message is sent.
pub(super) fn sending_times(pace: &StagePace, before: u64, parts: &[Part]) -> Vec<SendingTime> {
    // The remaining intervals of each hub.
    let left = parts.iter().map(|part| part.devices.saturating_sub(1));
    let mut left: Vec<f64> = left.map(|left| left as f64).collect();
    let alone = parts.iter().filter(|part| part.devices == 1).count();
    let mut counted = before as f64 + alone as f64;
    let mut now = 0.0;
    let start = |part: &Part| {
        let pace = part.limits.pace(pace.rate_at(before));
        SendingTime {
            pace,
            minutes: pace.map(|_| 0.0),
        }
    };
    let mut sending_times: Vec<_> = parts.iter().map(start).collect();
    while left.iter().any(|left| *left > 0.0) {
        let rate = pace.rate_at(counted as u64);
        let paces: Vec<_> = parts.iter().map(|part| part.limits.pace(rate)).collect();
        let mut total = 0.0;
        let mut first_done = f64::INFINITY;
        for (left, pace) in left.iter_mut().zip(&paces) {
            match pace {
                // A hub without a limit is done immediately.
                None => *left = 0.0,
                Some(pace) if *left > 0.0 => {
                    total += pace;
                    first_done = first_done.min(*left / pace);
                }
                Some(_) => {}
            }
        }
        if total <= 0.0 {
            break;
        }
        let step = pace.next_step(counted as u64).map(|next| next as f64);
        let until_step = step.map_or(f64::INFINITY, |next| (next - counted) / total);
        let lasts = first_done.min(until_step);
        now += lasts;
        counted = match step {
            Some(next) if until_step <= first_done => next,
            _ => counted + total * lasts,
        };
        for ((left, pace), time) in left.iter_mut().zip(&paces).zip(&mut sending_times) {
            let Some(pace) = pace.filter(|_| *left > 0.0) else {
                continue;
            };
            *left -= pace * lasts;
            time.pace = Some(pace);
            // Ignore rounding errors below a thousandth of a device.
            if *left < 1e-3 {
                *left = 0.0;
                time.minutes = Some(now);
                // No interval follows the last device.
                counted += 1.0;
            }
        }
    }
    sending_times
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HEADROOM;
    use crate::ids::StageIndex;
    use crate::spec::RolloutSpec;

    fn pace(text: &str) -> StagePace {
        let text =
            format!("{{name: r, target: {{all: true}}, message: {{body: {{text: hi}}}}, {text}}}");
        RolloutSpec::read("x", &text)
            .unwrap()
            .pace_of(StageIndex(0))
    }

    /// Returns the minutes at the full rate, without the headroom, for hubs with these numbers of
    /// devices and quotas.
    fn minutes(pace: &StagePace, before: u64, hubs: &[(u64, Option<f64>)]) -> Vec<f64> {
        let part = |(devices, quota): &(u64, Option<f64>)| Part {
            devices: *devices,
            limits: HubLimits {
                sends_per_minute: *quota,
                ..HubLimits::unlimited()
            },
        };
        let parts: Vec<_> = hubs.iter().map(part).collect();
        let sending_times = sending_times(pace, before, &parts).into_iter();
        sending_times
            .map(|time| time.minutes.map_or(-1.0, |minutes| minutes * HEADROOM))
            .map(|minutes| (minutes * 1e6).round() / 1e6)
            .collect()
    }

    #[test]
    fn the_time_follows_the_ramp() {
        let doubling = pace("ramp: {base: 50/min, factor: 2, every: 1000}");
        // 1000 intervals at 50, 1000 at 100, 1000 at 200, the rest at 400.
        assert_eq!(minutes(&doubling, 0, &[(1_000, None)]), [19.98]);
        assert_eq!(minutes(&doubling, 0, &[(1_001, None)]), [20.0]);
        assert_eq!(minutes(&doubling, 0, &[(4_001, None)]), [37.5]);
        assert_eq!(minutes(&doubling, 0, &[(4_001, Some(100.0))]), [50.0]);
        assert_eq!(minutes(&doubling, 2_000, &[(1_001, None)]), [5.0]);
        // Two hubs count together: a step comes after ten minutes, and another step before the last
        // interval.
        assert_eq!(
            minutes(&doubling, 0, &[(501, None), (1_501, None), (0, None)]),
            [10.0, 19.995, 0.0]
        );
        let capped = pace("rate: 100/min, ramp: {base: 50/min, factor: 2, every: 1000}");
        assert_eq!(minutes(&capped, 0, &[(4_001, None)]), [50.0]);
        let constant = pace("rate: 100/min");
        assert_eq!(
            minutes(&constant, 0, &[(251, None), (51, None)]),
            [2.5, 0.5]
        );
        assert_eq!(minutes(&pace("weight: 1"), 0, &[(250, None)]), [-1.0]);
        assert_eq!(minutes(&constant, 0, &[]), [0.0; 0]);
    }

    #[test]
    fn n_messages_take_n_minus_one_intervals() {
        let slow = pace("rate: 1/min");
        assert_eq!(
            minutes(&slow, 0, &[(0, None), (1, None), (2, None), (7, None)]),
            [0.0, 0.0, 1.0, 6.0]
        );
        // Counted before each send: 0, 1, 2, 3, 4. The four intervals take 1, 1, 0.5 and 0.5
        // minutes.
        let ramp = pace("ramp: {base: 1/min, factor: 2, every: 2}");
        assert_eq!(minutes(&ramp, 0, &[(5, None)]), [3.0]);
        // The single device of the other hub counts: 1, 2, 3 before each send.
        assert_eq!(minutes(&ramp, 0, &[(3, None), (1, None)]), [1.5, 0.0]);
    }

    #[test]
    fn many_small_steps_come_to_an_end() {
        let slow = pace("ramp: {base: 0.001/min, factor: 1.01, every: 1}");
        let took = minutes(&slow, 0, &[(10_000_000, Some(50_000.0)), (2, None)]);
        assert!(took[0] > 200.0 && took[1] > 900.0, "{took:?}");
    }
}
