//! From blocks of permits to an even stream of sends.
//!
//! The store hands out permits for a hub in blocks, so that workers agree on the quota at a
//! small cost. A block is spread by `governor` over most of the time it stands for, so that
//! the hub sees a stream and not bursts.

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
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubName, RolloutName};
use twincast_core::ports::{PermitRequest, Store, StoreError};
use twincast_core::spec::Rate;
use twincast_retry::Policy;

/// How much faster than its average a block is sent, so that it is used up before the next one
/// begins: smoothing must not be what limits the rate.
const SPREAD: f64 = 1.25;
/// What may go at once: timers are exact to a millisecond, and a block must not lose time to that.
const CATCH_UP: Duration = Duration::from_millis(20);

/// The pace of one hub, or of one rollout on it that has a lower limit of its own.
pub(crate) struct Pacer {
    store: Arc<dyn Store>,
    request: PermitRequest,
    smoother: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Duration>>,
    /// One sender at a time waits here, the others queue up behind it in order.
    permits: Mutex<u32>,
    /// Raised by a throttle: permits of an earlier generation are void.
    generation: AtomicU64,
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
    /// The pacer of a rollout on a hub; `None` when neither has a limit.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        hub: &HubName,
        limits: HubLimits,
        rollout: Option<(RolloutName, Rate)>,
    ) -> Option<Self> {
        let hub_pace = limits.pace(None);
        let pace = limits.pace(rollout.as_ref().map(|(_, rate)| *rate))?;
        let rollout = rollout.map(|(name, rate)| (name, rate.as_per_minute()));
        // A limit of the hub's that cannot be reached stands for none.
        let per_minute = hub_pace.unwrap_or(1e9);
        let request = PermitRequest {
            hub: hub.clone(),
            wanted: 10_000,
            per_minute,
            rollout,
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
            smoother: RateLimiter::direct_with_clock(quota, RuntimeClock(Instant::now())),
            permits: Mutex::new(0),
            generation: AtomicU64::new(0),
        })
    }

    /// Waits for the right to send one message. In order of asking.
    ///
    /// Cancel safety: if dropped while it waits for a block, that block is lost to everyone,
    /// which costs at most a tenth of a second of the quota.
    pub(crate) async fn acquire(&self) -> Result<(), StoreError> {
        let mut permits = self.permits.lock().await;
        let mut generation = self.generation.load(Ordering::Acquire);
        loop {
            while *permits == 0 {
                *permits = self.next_block().await?;
            }
            while let Err(not_until) = self.smoother.check() {
                tokio::time::sleep(not_until.wait_time_from(self.smoother.clock().now())).await;
            }
            let now = self.generation.load(Ordering::Acquire);
            if now == generation {
                *permits -= 1;
                return Ok(());
            }
            generation = now;
            *permits = 0;
        }
    }

    async fn next_block(&self) -> Result<u32, StoreError> {
        let mut delays = Policy::send_retry().delays();
        loop {
            match self.store.take_permits(&self.request).await {
                Ok(grant) => {
                    tokio::time::sleep(grant.wait).await;
                    return Ok(grant.permits);
                }
                Err(error @ StoreError::Unavailable { .. }) => {
                    let Some(delay) = delays.next_delay() else {
                        return Err(error);
                    };
                    tracing::warn!(hub = %self.request.hub, ?error, "no permits, the store does not answer");
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
