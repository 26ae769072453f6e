//! The slowdown of sending by a disturbance: turns with and without the disturbance, in pairs, in
//! reverse order in every second pair.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use serde::Serialize;

use super::{Counter, Rounds};

/// The time limit of the first send of the planned rollout.
const SENDS_WITHIN: Duration = Duration::from_secs(60);

/// The result of the pairs of turns.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// Sends per second, alone and disturbed.
    alone: Rounds,
    disturbed: Rounds,
    /// The ratio of each pair: disturbed divided by alone.
    ratios: Vec<f64>,
    ratio: Rounds,
    mean_ratio: f64,
}

impl Comparison {
    fn of(pairs: Vec<(f64, f64)>) -> Self {
        let (alone, disturbed): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let ratios: Vec<_> = alone.iter().zip(&disturbed).map(|(a, d)| d / a).collect();
        Self {
            alone: Rounds::of(alone),
            disturbed: Rounds::of(disturbed),
            mean_ratio: ratios.iter().sum::<f64>() / ratios.len() as f64,
            ratio: Rounds::of(ratios.clone()),
            ratios,
        }
    }

    /// Prints the lines of a table; `disturbed` is the label of the disturbed turns.
    pub(crate) fn print(&self, disturbed: &str) {
        let line = |name: &str, of: Rounds, digits: usize| {
            println!(
                "{name:<32} {:>12.digits$}  ({:.digits$} to {:.digits$})",
                of.median, of.least, of.most
            );
        };
        line("sends a second, alone", self.alone, 0);
        line(&format!("sends a second, {disturbed}"), self.disturbed, 0);
        line("ratio (goal 0.98)", self.ratio, 4);
        println!("{:<32} {:>12.4}", "mean ratio", self.mean_ratio);
    }
}

/// Compares the sends per second of each pair of turns: alone, and while `disturbs` is set.
pub(crate) fn compare(
    pairs: usize,
    turn: Duration,
    counter: &mut Counter,
    disturbs: &AtomicBool,
) -> Result<Comparison> {
    let (before, started_at) = (counter.read()?.accepted, Instant::now());
    while counter.read()?.accepted == before {
        ensure!(started_at.elapsed() < SENDS_WITHIN, "nothing is sent");
        pause(Duration::from_millis(10));
    }
    pause(Duration::from_secs(3));
    let mut one = |is_disturbed: bool| {
        disturbs.store(is_disturbed, Ordering::Relaxed);
        // Let the work of the other turn end.
        pause(Duration::from_secs(1));
        let (from, started_at) = (counter.read()?.accepted, Instant::now());
        pause(turn);
        let sent = counter.read()?.accepted - from;
        ensure!(sent > 0, "the rollout is over: give it more devices");
        Ok(sent as f64 / started_at.elapsed().as_secs_f64())
    };
    let pairs: Result<_> = (0..pairs)
        .map(|pair| {
            if pair % 2 == 0 {
                let alone = one(false)?;
                Ok((alone, one(true)?))
            } else {
                let disturbed = one(true)?;
                Ok((one(false)?, disturbed))
            }
        })
        .collect();
    Ok(Comparison::of(pairs?))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the beat of a measurement, not a wait for luck"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
