//! Blocks of permits as an even line of permits. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::permits::Grant;

/// How much faster than its average a block is sent, so that it is used up before the next one begins: smoothing must not
/// be what limits the rate.
const SPREAD: f64 = 1.25;
/// What may go at once: timers are exact to a millisecond, and a block must not lose time to that.
const CATCH_UP: Duration = Duration::from_millis(20);
/// How much later than the time it stands for a permit may be used. Later ones would come on top of what others send then.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// Permits, with the time that they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    permits: u32,
    start: Instant,
    /// Afterwards they are worth nothing.
    end: Instant,
    /// Between two of them.
    period: Duration,
    /// They are void when a throttle has begun another one.
    generation: u64,
}

impl Block {
    /// What the store has granted `now`, at a rate of `per_minute`.
    pub(crate) fn new(grant: Grant, per_minute: f64, generation: u64, now: Instant) -> Self {
        let start = now + grant.wait;
        let interval = Duration::from_secs_f64(60.0 / per_minute);
        Self {
            permits: grant.permits,
            start,
            end: start + interval * grant.permits.saturating_sub(1) + LATE,
            period: interval.div_f64(SPREAD),
            generation,
        }
    }
}

/// The right to send one message, in a span of time. It belongs to whom it was given, and nobody gets it after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) not_before: Instant,
    end: Instant,
    generation: u64,
}

impl Permit {
    /// Whether it may be used at `now`, in this generation.
    pub(crate) fn is_good(&self, now: Instant, generation: u64) -> bool {
        (self.not_before..=self.end).contains(&now) && self.generation == generation
    }
}

/// What a line lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// Nothing before this moment: the newest block has not begun yet.
    NothingUntil(Instant),
    /// So many permits.
    Permits(u32),
}

/// The block that is used, and the one after it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    blocks: VecDeque<Block>,
    /// When the next permit may be used, as far as only evenness matters.
    even_at: Option<Instant>,
}

impl Line {
    /// Adds the newest block.
    pub(crate) fn put(&mut self, block: Block) {
        self.blocks.push_back(block);
    }

    /// Takes a permit of this generation that can be used at `now` or later, if there is one.
    pub(crate) fn take(&mut self, now: Instant, generation: u64) -> Option<Permit> {
        self.blocks.retain(|block| block.generation == generation);
        loop {
            // The newest one stays: it says when the next one may be fetched.
            let is_newest = self.blocks.len() == 1;
            let block = self.blocks.front_mut()?;
            let caught_up = now.checked_sub(CATCH_UP).unwrap_or(now);
            let even_at = self.even_at.unwrap_or(caught_up);
            let not_before = block.start.max(even_at).max(caught_up);
            if block.permits > 0 && not_before.max(now) <= block.end {
                block.permits -= 1;
                self.even_at = Some(not_before + block.period);
                return Some(Permit {
                    not_before,
                    end: block.end,
                    generation,
                });
            }
            if is_newest {
                block.permits = 0;
                return None;
            }
            self.blocks.pop_front();
        }
    }

    /// What is to be fetched at `now` when so many permits are `wanted`. The block after the newest one is fetched when
    /// that one begins, so that no time is lost between them, and others see that this rollout wants more.
    pub(crate) fn need(&self, now: Instant, wanted: u32) -> Need {
        match self.blocks.back() {
            None => Need::Permits(wanted),
            Some(newest) if now < newest.start => Need::NothingUntil(newest.start),
            Some(_) => {
                let here: u32 = self.blocks.iter().map(|block| block.permits).sum();
                match wanted.saturating_sub(here) {
                    0 => Need::Nothing,
                    lacking => Need::Permits(lacking),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn grant(permits: u32, wait: u64) -> Grant {
        Grant {
            permits,
            wait: ms(wait),
        }
    }

    /// 100 a second: a block of ten has a period of 8 ms, and is worth nothing 190 ms after its start.
    fn block(permits: u32, wait: u64, now: Instant) -> Block {
        Block::new(grant(permits, wait), 6_000.0, 0, now)
    }

    #[test]
    fn a_block_is_spread_from_its_start_on() {
        let now = Instant::now();
        let mut line = Line::default();
        line.put(block(3, 500, now));
        let taken = || line.take(now, 0).map(|permit| permit.not_before - now);
        let taken: Vec<_> = std::iter::from_fn(taken).collect();
        assert_eq!(taken, [ms(500), ms(508), ms(516)]);
    }

    #[test]
    fn what_is_late_catches_up_a_little_and_then_is_worth_nothing() {
        let now = Instant::now();
        for (late, good) in [(0, 10), (100, 10), (150, 8), (189, 3), (191, 0)] {
            let mut line = Line::default();
            line.put(block(10, 0, now));
            let then = now + ms(late);
            let taken: Vec<_> = std::iter::from_fn(|| line.take(then, 0)).collect();
            let at_once = taken.iter().filter(|it| it.not_before <= then).count();
            assert_eq!(taken.len(), good, "{late}");
            assert!(at_once <= 3, "{at_once} at once, {late} late");
        }
    }

    #[test]
    fn a_throttle_voids_what_is_there_and_what_was_taken() {
        let now = Instant::now();
        let mut line = Line::default();
        line.put(block(3, 0, now));
        let permit = line.take(now, 0).unwrap();
        assert!(permit.is_good(now, 0));
        assert!(!permit.is_good(now, 1));
        assert_eq!(line.take(now, 1), None);
        assert_eq!(line.need(now, 7), Need::Permits(7));
    }

    #[test]
    fn the_next_block_is_fetched_when_the_newest_begins() {
        let now = Instant::now();
        let mut line = Line::default();
        assert_eq!(line.need(now, 7), Need::Permits(7));
        line.put(block(3, 500, now));
        assert_eq!(line.need(now, 7), Need::NothingUntil(now + ms(500)));
        assert_eq!(line.need(now + ms(500), 7), Need::Permits(4));
        assert_eq!(line.need(now + ms(500), 3), Need::Nothing);
        // All taken in advance: the place of the next one is kept.
        while line.take(now, 0).is_some() {}
        assert_eq!(line.need(now, 7), Need::NothingUntil(now + ms(500)));
        // None given: asked again then.
        line.put(block(0, 900, now));
        assert_eq!(line.take(now, 0), None);
        assert_eq!(line.need(now, 7), Need::NothingUntil(now + ms(900)));
        assert_eq!(line.need(now + ms(900), 7), Need::Permits(7));
    }

    proptest! {
        /// Whoever takes permits when, and drops as many: none is used before its block begins, after its end, or in the
        /// place of another one; and no more go in any time than that time, and what is caught up, stand for.
        #[test]
        fn no_permit_is_used_out_of_its_time(
            asks in prop::collection::vec((0u64..200, 0u64..1_000, 1u32..40), 1..40),
            per_minute in 60.0f64..60_000.0,
        ) {
            let mut line = Line::default();
            let mut now = Instant::now();
            let mut free_at = now;
            let mut given = Vec::new();
            let period = Duration::from_secs_f64(60.0 / per_minute / SPREAD);
            for (later, wait, permits) in asks {
                now += ms(later);
                let start = free_at.max(now + ms(wait));
                let granted = Grant { permits, wait: start - now };
                free_at = start + Duration::from_secs_f64(60.0 / per_minute) * permits;
                line.put(Block::new(granted, per_minute, 0, now));
                let mut taken = 0;
                while let Some(permit) = line.take(now, 0) {
                    taken += 1;
                    prop_assert!(permit.end >= permit.not_before);
                    given.push(permit.not_before);
                }
                prop_assert!(taken <= permits);
                prop_assert!(given.last().is_none_or(|last| *last >= start - CATCH_UP || taken == 0));
            }
            for pair in given.windows(2) {
                prop_assert!(pair[1] + CATCH_UP >= pair[0] + period);
            }
        }
    }
}
