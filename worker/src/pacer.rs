//! From blocks of permits to an even stream of sends.
//!
//! The store hands out permits for a hub in blocks, so that workers agree on the quota at a
//! small cost. A block is spread by `governor` over most of the time it stands for, so that
//! the hub sees a stream and not bursts. While one block is being used the next one is fetched,
//! so that no time is lost between them, and the others see that this rollout wants more.
//!
//! A ramp's rate follows from the store's counts, which are read anew for a block when they are older than
//! [`LOOK_AGAIN`]. Nothing else is remembered, so all workers come to the same rate, at most that much later. Counts
//! only rise while devices are sent to, so an old one means a rate that is too low, never one too high.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubName, StageIndex};
use twincast_core::permits::{Grant, PermitRequest};
use twincast_core::ports::{Store, StoreError};
use twincast_core::spec::{Rate, RolloutSpec, StagePace};
use twincast_retry::Policy;

use crate::batch_run::next_delay;

/// How much faster than its average a block is sent, so that it is used up before the next one
/// begins: smoothing must not be what limits the rate.
const SPREAD: f64 = 1.25;
/// What may go at once: timers are exact to a millisecond, and a block must not lose time to that.
const CATCH_UP: Duration = Duration::from_millis(20);
/// How much later than the time it stands for a permit may be used. Later ones would come on top
/// of what others send then.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// Permits that took longer to get here are not used: what they stand for may be over by as much.
/// A little less than the jitter that the quota's headroom is for.
const STALE: Duration = Duration::from_millis(500);

/// How old the counts may be by which a ramp's rate is found, while it rises.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// And when it has reached the highest: counts fall when devices are tried again.
const LOOK_AGAIN_AT_TOP: Duration = Duration::from_secs(5);

/// The pace of one rollout on one hub.
pub(crate) struct Pacer {
    store: Arc<dyn Store>,
    /// All but how much is wanted, and the limit.
    request: PermitRequest,
    limits: HubLimits,
    pace: StagePace,
    counted: StdMutex<Option<Counted>>,
    /// One sender at a time waits here, the others queue up behind it in order.
    blocks: Mutex<Blocks>,
    /// Raised by a throttle: permits of an earlier generation are void.
    generation: AtomicU64,
}

/// What a ramp counted last.
#[derive(Debug, Clone, Copy)]
struct Counted {
    devices: u64,
    at: Instant,
}

/// Spreads permits over the time that they stand for.
struct Rhythm {
    per_minute: f64,
    smoother: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Duration>>,
}

impl Rhythm {
    fn at(per_minute: f64) -> Self {
        let period =
            Duration::from_secs_f64(60.0 / (per_minute * SPREAD)).max(Duration::from_nanos(1));
        let burst = (CATCH_UP.as_secs_f64() / period.as_secs_f64()) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)
            .expect("a period above zero")
            .allow_burst(burst);
        let clock = RuntimeClock(Instant::now());
        Self {
            per_minute,
            smoother: RateLimiter::direct_with_clock(quota, clock),
        }
    }
}

struct Blocks {
    rhythm: Rhythm,
    current: Block,
    /// Being fetched while the current one is used.
    next: Option<AbortOnDropHandle<Result<Block, StoreError>>>,
}

/// Permits, with the time that they stand for.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    permits: u32,
    per_minute: f64,
    start: Option<Instant>,
    end: Option<Instant>,
    generation: u64,
}

impl Block {
    fn is_good(&self, generation: u64) -> bool {
        self.permits > 0
            && self.generation == generation
            && self.end.is_some_and(|end| Instant::now() <= end)
    }
}

/// The runtime's clock, which tests can pause.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    type Instant = Duration;
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Pacer {
    /// The pacer of a rollout's stage on a hub; `None` when neither has a limit.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        hub: &HubName,
        limits: HubLimits,
        spec: &RolloutSpec,
        stage: StageIndex,
    ) -> Option<Self> {
        let pace = spec.pace_of(stage);
        let at_first = limits.pace(pace.rate_at(0))?;
        let request = PermitRequest {
            hub: hub.clone(),
            wanted: 0,
            // A limit of the hub's that cannot be reached stands for none.
            per_minute: limits.pace(None).unwrap_or(1e9),
            rollout: spec.name.clone(),
            weight: spec.weight,
            limit: None,
        };
        let blocks = Blocks {
            rhythm: Rhythm::at(at_first),
            current: Block::default(),
            next: None,
        };
        Some(Self {
            store,
            request,
            limits,
            pace,
            counted: StdMutex::default(),
            blocks: Mutex::new(blocks),
            generation: AtomicU64::new(0),
        })
    }

    /// Waits for the right to send one message, in order of asking. The caller has `more` messages
    /// to send after this one.
    ///
    /// Cancel safety: if dropped, nothing is lost but the caller's place in the line.
    pub(crate) async fn acquire(self: Arc<Self>, more: usize) -> Result<(), StoreError> {
        let mut blocks = self.blocks.lock().await;
        loop {
            let generation = self.generation.load(Ordering::Acquire);
            if !blocks.current.is_good(generation) {
                self.next_block(&mut blocks, more).await?;
                continue;
            }
            let smoother = &blocks.rhythm.smoother;
            match smoother.check() {
                Ok(()) => {
                    blocks.current.permits -= 1;
                    return Ok(());
                }
                Err(not_until) => {
                    let wait = not_until.wait_time_from(smoother.clock().now());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Makes the next block the current one when its time has come, and fetches the one after it
    /// if that will be wanted.
    async fn next_block(
        self: &Arc<Self>,
        blocks: &mut Blocks,
        more: usize,
    ) -> Result<(), StoreError> {
        let wanted = u32::try_from(more + 1).unwrap_or(u32::MAX);
        let fetching = match &mut blocks.next {
            Some(fetching) => fetching,
            none => none.insert(self.fetch(wanted)),
        };
        let fetched = fetching.await;
        blocks.next = None;
        let block =
            fetched.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        blocks.current = block;
        #[expect(clippy::float_cmp, reason = "the same rate gives the same number")]
        if block.per_minute != blocks.rhythm.per_minute {
            blocks.rhythm = Rhythm::at(block.per_minute);
        }
        if let Some(start) = block.start {
            tokio::time::sleep_until(start).await;
        }
        if block.permits > 0 && wanted > block.permits {
            blocks.next = Some(self.fetch(wanted - block.permits));
        }
        Ok(())
    }

    fn fetch(self: &Arc<Self>, wanted: u32) -> AbortOnDropHandle<Result<Block, StoreError>> {
        let pacer = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move { pacer.ask(wanted).await }))
    }

    /// The rate now, which follows from what is counted if there is a ramp.
    async fn rate(&self) -> Result<Option<Rate>, StoreError> {
        if self.pace.ramp().is_none() {
            return Ok(self.pace.rate_at(0));
        }
        let last = *self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |last: &Counted| {
            let rises = self.pace.next_step(last.devices).is_some();
            let age = if rises { LOOK_AGAIN } else { LOOK_AGAIN_AT_TOP };
            last.at.elapsed() < age
        };
        if let Some(last) = last.filter(is_good) {
            return Ok(self.pace.rate_at(last.devices));
        }
        let at = Instant::now();
        let tallies = self.store.tallies(&self.request.rollout).await?;
        let devices = self.pace.counted(&tallies);
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Counted { devices, at });
        Ok(self.pace.rate_at(devices))
    }

    /// Asks for a block of permits at the rate of this moment.
    async fn ask_once(&self, wanted: u32) -> Result<(Grant, f64), StoreError> {
        let rate = self.rate().await?;
        let request = PermitRequest {
            wanted,
            limit: HubLimits::unlimited().pace(rate),
            ..self.request.clone()
        };
        let mut grant = self.store.take_permits(&request).await?;
        if grant.permits == 0 && self.pace.ramp().is_some() {
            // The rate may be another one by then.
            grant.wait = grant.wait.min(LOOK_AGAIN);
        }
        let per_minute = self.limits.pace(rate).unwrap_or(self.request.per_minute);
        Ok((grant, per_minute))
    }

    /// Asks for a block for as long as it takes: who waits for it is told to stop by others.
    async fn ask(&self, wanted: u32) -> Result<Block, StoreError> {
        let mut delays = Policy::store_retry().delays();
        let mut is_told = false;
        loop {
            let generation = self.generation.load(Ordering::Acquire);
            let asked_at = Instant::now();
            match self.ask_once(wanted).await {
                Ok(_) if asked_at.elapsed() > STALE => {}
                Ok((grant, per_minute)) => {
                    let start = Instant::now() + grant.wait;
                    let interval = Duration::from_secs_f64(60.0 / per_minute);
                    let last = start + interval * grant.permits.saturating_sub(1);
                    return Ok(Block {
                        permits: grant.permits,
                        per_minute,
                        start: Some(start),
                        end: Some(last + LATE),
                        generation,
                    });
                }
                Err(error @ StoreError::Unavailable { .. }) => {
                    let delay = next_delay(&mut delays);
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(hub = %self.request.hub, ?error, "no permits, the store does not answer");
                    }
                    tokio::time::sleep(delay).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The hub refused a send for its quota: voids what is at hand, and slows everyone down.
    pub(crate) async fn throttled(&self, retry_after: Option<Duration>) -> Result<(), StoreError> {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.store.throttled(&self.request.hub, retry_after).await
    }
}
