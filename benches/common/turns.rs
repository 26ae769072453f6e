//! How much something slows sending: turns with and without it, in pairs, the other way round in every second one.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Counter;

/// How long the first send of the planned rollout may take.
const SENDS_WITHIN: Duration = Duration::from_secs(60);

/// Sends a second of each pair of turns: alone, and while `disturbs` is set.
pub(crate) fn take(
    pairs: usize,
    turn: Duration,
    counter: &mut Counter,
    disturbs: &AtomicBool,
) -> Result<Vec<(f64, f64)>> {
    let (before, begun) = (counter.read()?.accepted, Instant::now());
    while counter.read()?.accepted == before {
        ensure!(begun.elapsed() < SENDS_WITHIN, "nothing is sent");
        pause(Duration::from_millis(10));
    }
    pause(Duration::from_secs(3));
    let mut one = |is_disturbed: bool| {
        disturbs.store(is_disturbed, Ordering::Relaxed);
        // What the other turn has begun comes to its end.
        pause(Duration::from_secs(1));
        let (from, begun) = (counter.read()?.accepted, Instant::now());
        pause(turn);
        let sent = counter.read()?.accepted - from;
        ensure!(sent > 0, "the rollout is over: give it more devices");
        Ok(sent as f64 / begun.elapsed().as_secs_f64())
    };
    (0..pairs)
        .map(|pair| {
            if pair % 2 == 0 {
                let alone = one(false)?;
                Ok((alone, one(true)?))
            } else {
                let disturbed = one(true)?;
                Ok((one(false)?, disturbed))
            }
        })
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the beat of a measurement, not a wait for luck"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
