//! From blocks of permits to an even stream of sends.
//!
//! The store hands out permits for a hub in blocks, so that workers agree on the quota at a
//! small cost. A block is spread by `governor` over most of the time it stands for, so that
//! the hub sees a stream and not bursts. While one block is being used the next one is fetched,
//! so that no time is lost between them, and the others see that this rollout wants more.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use twincast_core::permits::PermitRequest;
use twincast_core::ports::{Store, StoreError};
use twincast_core::spec::RolloutSpec;
use twincast_retry::Policy;

use crate::batch_run::next_delay;

/// How much faster than its average a block is sent, so that it is used up before the next one
/// begins: smoothing must not be what limits the rate.
const SPREAD: f64 = 1.25;
/// What may go at once: timers are exact to a millisecond, and a block must not lose time to that.
const CATCH_UP: Duration = Duration::from_millis(20);
/// How much later than the time it stands for a permit may be used. Later ones would come on top
/// of what others send then.
const LATE: Duration = Duration::from_millis(100);

/// Permits that took longer to get here are not used: what they stand for may be over by as much.
/// A little less than the jitter that the quota's headroom is for.
const STALE: Duration = Duration::from_millis(500);

/// The pace of one rollout on one hub.
pub(crate) struct Pacer {
    store: Arc<dyn Store>,
    request: PermitRequest,
    /// The pace of one permit after the other.
    interval: Duration,
    smoother: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Duration>>,
    /// One sender at a time waits here, the others queue up behind it in order.
    blocks: Mutex<Blocks>,
    /// Raised by a throttle: permits of an earlier generation are void.
    generation: AtomicU64,
}

#[derive(Default)]
struct Blocks {
    current: Block,
    /// Being fetched while the current one is used.
    next: Option<AbortOnDropHandle<Result<Block, StoreError>>>,
}

/// Permits, with the time that they stand for.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    permits: u32,
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
        let rate = spec.rate_of(stage);
        let pace = limits.pace(rate)?;
        let request = PermitRequest {
            hub: hub.clone(),
            wanted: 0,
            // A limit of the hub's that cannot be reached stands for none.
            per_minute: limits.pace(None).unwrap_or(1e9),
            rollout: spec.name.clone(),
            weight: spec.weight,
            limit: HubLimits::unlimited().pace(rate),
        };
        let period = Duration::from_secs_f64(60.0 / (pace * SPREAD)).max(Duration::from_nanos(1));
        let burst = (CATCH_UP.as_secs_f64() / period.as_secs_f64()) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)
            .expect("a period above zero")
            .allow_burst(burst);
        Some(Self {
            store,
            request,
            interval: Duration::from_secs_f64(60.0 / pace),
            smoother: RateLimiter::direct_with_clock(quota, RuntimeClock(Instant::now())),
            blocks: Mutex::default(),
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
            match self.smoother.check() {
                Ok(()) => {
                    blocks.current.permits -= 1;
                    return Ok(());
                }
                Err(not_until) => {
                    let wait = not_until.wait_time_from(self.smoother.clock().now());
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

    /// Asks for a block for as long as it takes: who waits for it is told to stop by others.
    async fn ask(&self, wanted: u32) -> Result<Block, StoreError> {
        let request = PermitRequest {
            wanted,
            ..self.request.clone()
        };
        let mut delays = Policy::store_retry().delays();
        let mut is_told = false;
        loop {
            let generation = self.generation.load(Ordering::Acquire);
            let asked_at = Instant::now();
            match self.store.take_permits(&request).await {
                Ok(_) if asked_at.elapsed() > STALE => {}
                Ok(grant) => {
                    let start = Instant::now() + grant.wait;
                    let last = start + self.interval * grant.permits.saturating_sub(1);
                    return Ok(Block {
                        permits: grant.permits,
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
