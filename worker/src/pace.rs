//! Spreads blocks of permits into an even stream. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::permits::Grant;

/// The factor by which a block is sent faster than the average rate. A block is then used up before
/// the next block begins, so smoothing does not limit the rate.
const SPEED_UP: f64 = 1.25;
/// How much missed time is caught up at once. Timers are exact to a millisecond, and a block must
/// not lose permits to late timers.
const CATCH_UP: Duration = Duration::from_millis(20);
/// How long a permit may be used after its time. A later use would add to the sends of other
/// workers at that time.
pub(crate) const PERMIT_GRACE: Duration = Duration::from_millis(100);

/// A block of permits for a period of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    permits: u32,
    start: Instant,
    /// The end of the period. Permits are void afterwards.
    end: Instant,
    /// The time between two permits.
    period: Duration,
    /// The generation of the permits. A throttle begins a new generation, and voids permits of
    /// earlier generations.
    generation: u64,
}

impl Block {
    /// Creates the block that the store granted at `now`, at a rate of `per_minute`.
    pub(crate) fn new(grant: Grant, per_minute: f64, generation: u64, now: Instant) -> Self {
        let start = now + grant.wait;
        let interval = Duration::from_secs_f64(60.0 / per_minute);
        Self {
            permits: grant.permits,
            start,
            end: start + interval * grant.permits.saturating_sub(1) + PERMIT_GRACE,
            period: interval.div_f64(SPEED_UP),
            generation,
        }
    }
}

/// The right to send a message within a period of time. A permit belongs to the caller that took
/// the permit, and is never passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) not_before: Instant,
    end: Instant,
    generation: u64,
}

impl Permit {
    /// Returns whether the permit may be used at `now`, in this generation.
    pub(crate) fn is_valid(&self, now: Instant, generation: u64) -> bool {
        (self.not_before..=self.end).contains(&now) && self.generation == generation
    }
}

/// What a stream of permits needs to have fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// Nothing before this moment, the start of the newest block.
    NothingUntil(Instant),
    /// This many permits.
    Permits(u32),
}

/// A stream of permits: the block in use, and the block after.
#[derive(Debug, Default)]
pub(crate) struct PermitStream {
    blocks: VecDeque<Block>,
    /// When the next permit may be used, considering evenness only.
    even_at: Option<Instant>,
}

impl PermitStream {
    /// Adds the newest block.
    pub(crate) fn put(&mut self, block: Block) {
        self.blocks.push_back(block);
    }

    /// Takes a permit of this generation, usable at `now` or later, if available.
    pub(crate) fn take(&mut self, now: Instant, generation: u64) -> Option<Permit> {
        self.blocks.retain(|block| block.generation == generation);
        loop {
            // The newest block stays, even without permits: its start determines when the next
            // block may be fetched.
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

    /// Returns the permits to fetch at `now`, if callers request `requested` permits. The block
    /// after the newest block is fetched when the newest block begins, so that no time is lost
    /// between the blocks, and other users of the store's limiter see that this rollout wants more.
    pub(crate) fn need(&self, now: Instant, requested: u32) -> Need {
        match self.blocks.back() {
            None => Need::Permits(requested),
            Some(newest) if now < newest.start => Need::NothingUntil(newest.start),
            Some(_) => {
                let here: u32 = self.blocks.iter().map(|block| block.permits).sum();
                match requested.saturating_sub(here) {
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

    /// 100 permits a second: a block of 10 has a period of 8 ms, and expires 190 ms after the
    /// start.
    fn block(permits: u32, wait: u64, now: Instant) -> Block {
        Block::new(grant(permits, wait), 6_000.0, 0, now)
    }

    #[test]
    fn permits_of_a_block_are_spread_from_the_start() {
        let now = Instant::now();
        let mut stream = PermitStream::default();
        stream.put(block(3, 500, now));
        let taken = || stream.take(now, 0).map(|permit| permit.not_before - now);
        let taken: Vec<_> = std::iter::from_fn(taken).collect();
        assert_eq!(taken, [ms(500), ms(508), ms(516)]);
    }

    #[test]
    fn late_permits_catch_up_briefly_and_then_expire() {
        let now = Instant::now();
        for (late, good) in [(0, 10), (100, 10), (150, 8), (189, 3), (191, 0)] {
            let mut stream = PermitStream::default();
            stream.put(block(10, 0, now));
            let then = now + ms(late);
            let taken: Vec<_> = std::iter::from_fn(|| stream.take(then, 0)).collect();
            let at_once = taken.iter().filter(|it| it.not_before <= then).count();
            assert_eq!(taken.len(), good, "{late}");
            assert!(at_once <= 3, "{at_once} at once, {late} late");
        }
    }

    #[test]
    fn a_throttle_voids_available_and_taken_permits() {
        let now = Instant::now();
        let mut stream = PermitStream::default();
        stream.put(block(3, 0, now));
        let permit = stream.take(now, 0).unwrap();
        assert!(permit.is_valid(now, 0));
        assert!(!permit.is_valid(now, 1));
        assert_eq!(stream.take(now, 1), None);
        assert_eq!(stream.need(now, 7), Need::Permits(7));
    }

    #[test]
    fn the_next_block_is_fetched_when_the_newest_begins() {
        let now = Instant::now();
        let mut stream = PermitStream::default();
        assert_eq!(stream.need(now, 7), Need::Permits(7));
        stream.put(block(3, 500, now));
        assert_eq!(stream.need(now, 7), Need::NothingUntil(now + ms(500)));
        assert_eq!(stream.need(now + ms(500), 7), Need::Permits(4));
        assert_eq!(stream.need(now + ms(500), 3), Need::Nothing);
        // All permits are taken in advance: the start of the next fetch stays.
        while stream.take(now, 0).is_some() {}
        assert_eq!(stream.need(now, 7), Need::NothingUntil(now + ms(500)));
        // A block without permits: fetched again at the start of the block.
        stream.put(block(0, 900, now));
        assert_eq!(stream.take(now, 0), None);
        assert_eq!(stream.need(now, 7), Need::NothingUntil(now + ms(900)));
        assert_eq!(stream.need(now + ms(900), 7), Need::Permits(7));
    }

    proptest! {
        /// For permits taken and dropped at any time: no permit is used before the start of the
        /// block, after the end, or in the place of another permit; and no more permits are used in
        /// any period than the period, plus the catch-up, stands for.
        #[test]
        fn permits_are_used_only_while_valid(
            asks in prop::collection::vec((0u64..200, 0u64..1_000, 1u32..40), 1..40),
            per_minute in 60.0f64..60_000.0,
        ) {
            let mut stream = PermitStream::default();
            let mut now = Instant::now();
            let mut free_at = now;
            let mut given = Vec::new();
            let period = Duration::from_secs_f64(60.0 / per_minute / SPEED_UP);
            for (later, wait, permits) in asks {
                now += ms(later);
                let start = free_at.max(now + ms(wait));
                let granted = Grant { permits, wait: start - now };
                free_at = start + Duration::from_secs_f64(60.0 / per_minute) * permits;
                stream.put(Block::new(granted, per_minute, 0, now));
                let mut taken = 0;
                while let Some(permit) = stream.take(now, 0) {
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
