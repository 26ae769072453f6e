//! Turns blocks of permits into an even stream of sends.
//!
//! The store grants permits for a hub in blocks, so that workers share the quota at a small cost. A
//! [`PermitStream`] spreads a block over most of the block's time, so that the hub sees a stream
//! and not bursts. A caller of [`Pacer::acquire`] takes a permit as a value, and waits for the
//! permit's time; a caller that gives up loses the permit. Waiting callers also drive the fetch of
//! the next block. The pacer therefore has no task, and holds no lock during a store call.
//!
//! The rate of a ramp follows from the store's counts. Counts older than [`MAX_COUNT_AGE`] are read
//! anew before a block is requested. The pacer keeps no other state of the ramp, so all workers
//! arrive at the same rate within [`MAX_COUNT_AGE`]. Counts only rise while devices are sent to, so
//! old counts give a rate that is too low, never too high.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep, sleep_until};
use twincast_core::error::describe;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubName, StageIndex};
use twincast_core::permits::{Grant, PermitRequest};
use twincast_core::ports::{Store, StoreError};
use twincast_core::spec::{Rate, RolloutSpec, StagePace};
use twincast_retry::Policy;

use crate::pace::{Block, Need, Permit, PermitStream};
use crate::status::HubStatus;
use crate::store_retry::{StoreRetryLimit, Tries, next_delay};

/// Permits from a store call longer than this are discarded: the time of the permits may have
/// passed by as much. A little less than the jitter covered by the quota's headroom.
const MAX_FETCH_TIME: Duration = Duration::from_millis(500);

/// The longest age of the counts that determine a ramp's rate, while the ramp rises.
const MAX_COUNT_AGE: Duration = Duration::from_millis(500);
/// The longest age of the counts after the ramp has reached the highest rate. The counts are still
/// read, because counts fall when devices are retried.
const MAX_COUNT_AGE_AT_TOP: Duration = Duration::from_secs(5);

/// A fetch without a waiting caller for longer than this is begun anew. Without callers a fetch
/// makes no progress, so the answer would look late.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);

type Fetching = Shared<BoxFuture<'static, ()>>;

/// The pace of one rollout's stage on one hub, for all of the worker's batches.
pub(crate) struct Pacer {
    fetcher: Arc<PermitFetcher>,
    results: Arc<Mutex<FetchResults>>,
    fetch: Mutex<Fetch>,
}

/// The fetch under way, and the demand for permits.
struct Fetch {
    under_way: Option<Fetching>,
    /// The number of waiting callers, and when the last caller left.
    waiting: usize,
    left_at: Instant,
    /// The number of permits requested by all callers, without permits already taken.
    requested: u32,
}

/// The results of fetches.
#[derive(Default)]
struct FetchResults {
    stream: PermitStream,
    /// Why the last fetch failed permanently, until reported to a caller.
    failed: Option<StoreError>,
}

impl Pacer {
    /// Creates the pacer of a rollout's stage on a hub; `None` when neither has a limit.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        status: Arc<HubStatus>,
        retry_limit: StoreRetryLimit,
        limits: HubLimits,
        hub: &HubName,
        (spec, stage): (&RolloutSpec, StageIndex),
    ) -> Option<Self> {
        let pace = spec.pace_of(stage);
        limits.pace(pace.rate_at(0))?;
        let request = PermitRequest {
            hub: hub.clone(),
            max_permits: 0,
            // An unreachable rate stands for a hub without a limit.
            per_minute: limits.pace(None).unwrap_or(1e9),
            rollout: spec.name.clone(),
            weight: spec.weight,
            limit: None,
        };
        Some(Self {
            fetcher: Arc::new(PermitFetcher {
                store,
                status,
                retry_limit,
                request,
                limits,
                pace,
                counted: Mutex::default(),
                generation: AtomicU64::new(0),
            }),
            results: Arc::default(),
            fetch: Mutex::new(Fetch {
                under_way: None,
                waiting: 0,
                left_at: Instant::now(),
                requested: 0,
            }),
        })
    }

    /// Waits for the right to send a message now. The caller has `more` messages to send after this
    /// message.
    ///
    /// Cancel safety: if dropped, a permit may be lost; no permit is used before its time.
    pub(crate) async fn acquire(self: Arc<Self>, more: usize) -> Result<(), StoreError> {
        let mut demand = Demand::new(&self.fetch, more.saturating_add(1));
        loop {
            let wait = self.next_wait(&mut demand, Instant::now())?;
            let has_fetched = async {
                match wait.fetching {
                    Some(fetching) => fetching.await,
                    None => pending().await,
                }
                // The fetched block is for later sends: wait for the permit at hand.
                if wait.permit.is_some() {
                    pending::<()>().await;
                }
            };
            let until = async {
                match wait.until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = has_fetched => {}
                () = until => {}
            }
            let generation = self.fetcher.generation();
            if wait
                .permit
                .is_some_and(|permit| permit.is_valid(Instant::now(), generation))
            {
                return Ok(());
            }
        }
    }

    /// Takes a permit, if available, and begins a fetch, if due.
    fn next_wait(&self, demand: &mut Demand<'_>, now: Instant) -> Result<Wait, StoreError> {
        let mut fetch = lock(&self.fetch);
        fetch.under_way.take_if(|it| it.peek().is_some());
        let mut results = lock(&self.results);
        if let Some(error) = results.failed.take() {
            return Err(error);
        }
        let permit = results.stream.take(now, self.fetcher.generation());
        demand.count(&mut fetch, permit.is_some());
        let need = results.stream.need(now, fetch.requested);
        if let Need::Permits(permits) = need
            && fetch.under_way.is_none()
        {
            fetch.under_way = Some(self.fetch(permits));
        }
        let until = match need {
            Need::NothingUntil(at) => Some(at),
            Need::Nothing | Need::Permits(_) => None,
        };
        Ok(Wait {
            until: permit.map(|permit| permit.not_before).or(until),
            permit,
            fetching: fetch.under_way.clone(),
        })
    }

    fn fetch(&self, permits: u32) -> Fetching {
        let (fetcher, results) = (Arc::clone(&self.fetcher), Arc::clone(&self.results));
        let fetch = async move {
            let block = fetcher.fetch(permits).await;
            let mut results = lock(&results);
            match block {
                Ok(block) => results.stream.put(block),
                Err(error) => results.failed = Some(error),
            }
        };
        fetch.boxed().shared()
    }

    /// Voids the permits at hand, after the hub refused a send for its quota.
    pub(crate) fn void(&self) {
        self.fetcher.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Slows down all workers, after the hub refused a send for its quota.
    pub(crate) async fn throttled(&self, retry_after: Option<Duration>) -> Result<(), StoreError> {
        let PermitFetcher { store, request, .. } = &*self.fetcher;
        store.throttled(&request.hub, retry_after).await
    }
}

/// What a call of [`Pacer::acquire`] waits for.
struct Wait {
    permit: Option<Permit>,
    /// The time of the permit or, without a permit, of the next check.
    until: Option<Instant>,
    fetching: Option<Fetching>,
}

/// The demand of a caller for permits, until dropped.
struct Demand<'a> {
    fetch: &'a Mutex<Fetch>,
    requested: u32,
    /// The part of `requested` counted in [`Fetch::requested`], without a permit already taken.
    counted: u32,
}

impl<'a> Demand<'a> {
    fn new(fetch: &'a Mutex<Fetch>, requested: usize) -> Self {
        let mut locked = lock(fetch);
        if locked.waiting == 0 && locked.left_at.elapsed() > ABANDONED_AFTER {
            locked.under_way = None;
        }
        locked.waiting += 1;
        Self {
            fetch,
            // Far more than a block holds, and the sum over all callers does not overflow.
            requested: requested.min(1 << 20) as u32,
            counted: 0,
        }
    }

    /// Updates the counted demand, with or without a permit at hand.
    fn count(&mut self, fetch: &mut Fetch, has_permit: bool) {
        let now = self.requested - u32::from(has_permit);
        fetch.requested = fetch.requested - self.counted + now;
        self.counted = now;
    }
}

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        let mut fetch = lock(self.fetch);
        fetch.requested -= self.counted;
        fetch.waiting -= 1;
        fetch.left_at = Instant::now();
    }
}

/// Requests permits from the store.
struct PermitFetcher {
    store: Arc<dyn Store>,
    status: Arc<HubStatus>,
    retry_limit: StoreRetryLimit,
    /// The request, except for `max_permits` and `limit`.
    request: PermitRequest,
    limits: HubLimits,
    pace: StagePace,
    counted: Mutex<Option<Counted>>,
    /// Raised by a throttle: permits of an earlier generation are void.
    generation: AtomicU64,
}

/// The last counts read for a ramp.
#[derive(Debug, Clone, Copy)]
struct Counted {
    devices: u64,
    at: Instant,
}

impl PermitFetcher {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the current rate. The rate of a ramp follows from the store's counts.
    async fn rate(&self) -> Result<Option<Rate>, StoreError> {
        if self.pace.ramp().is_none() {
            return Ok(self.pace.rate_at(0));
        }
        let last = *lock(&self.counted);
        let is_current = |last: &Counted| {
            let rises = self.pace.next_step(last.devices).is_some();
            let age = if rises {
                MAX_COUNT_AGE
            } else {
                MAX_COUNT_AGE_AT_TOP
            };
            last.at.elapsed() < age
        };
        if let Some(last) = last.filter(is_current) {
            return Ok(self.pace.rate_at(last.devices));
        }
        let at = Instant::now();
        let tallies = self.store.tallies(&self.request.rollout).await?;
        let devices = self.pace.counted(&tallies);
        *lock(&self.counted) = Some(Counted { devices, at });
        Ok(self.pace.rate_at(devices))
    }

    /// Requests a block of permits at the current rate.
    async fn fetch_once(&self, permits: u32) -> Result<(Grant, f64), StoreError> {
        let rate = self.rate().await?;
        let request = PermitRequest {
            max_permits: permits,
            limit: HubLimits::unlimited().pace(rate),
            ..self.request.clone()
        };
        let mut grant = self.store.take_permits(&request).await?;
        if grant.permits == 0 && self.pace.ramp().is_some() {
            // The ramp's rate may have changed by then.
            grant.wait = grant.wait.min(MAX_COUNT_AGE);
        }
        let per_minute = self.limits.pace(rate).unwrap_or(self.request.per_minute);
        Ok((grant, per_minute))
    }

    /// Requests a block for as long as necessary. Takes no stop signal: callers stop waiting on
    /// signals of their own.
    async fn fetch(&self, permits: u32) -> Result<Block, StoreError> {
        let mut tries = Tries::new(self.retry_limit, &Policy::store_retry());
        loop {
            let generation = self.generation();
            let started_at = Instant::now();
            let error = match self.fetch_once(permits).await {
                Ok((grant, _)) if grant.permits > 0 && started_at.elapsed() > MAX_FETCH_TIME => {
                    self.status
                        .permits_late(grant.permits, started_at.elapsed());
                    match self.until_prompt().await {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Ok((grant, per_minute)) => {
                    if started_at.elapsed() <= MAX_FETCH_TIME {
                        self.status.permits_in_time();
                    }
                    let now = Instant::now();
                    return Ok(Block::new(grant, per_minute, generation, now));
                }
                Err(error) => error,
            };
            let is_news = !tries.is_failing();
            let description = is_news.then(|| describe(&error));
            let delay = tries.failed(error, Instant::now())?;
            if let Some(error) = description {
                tracing::warn!(hub = %self.request.hub, error, "no permits, the store does not answer");
            }
            sleep(delay).await;
        }
    }

    /// Waits until the store answers in time, probing with a call that takes no permits.
    async fn until_prompt(&self) -> Result<(), StoreError> {
        let policy = Policy::store_retry();
        let mut delays = policy.delays();
        loop {
            sleep(next_delay(&mut delays, policy.max())).await;
            let started_at = Instant::now();
            self.store.limiter(&self.request.hub).await?;
            if started_at.elapsed() <= MAX_FETCH_TIME {
                return Ok(());
            }
        }
    }
}

/// No code panics while holding a lock of the pacer, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use twincast_core::ports::Limiter as _;
    use twincast_testkit::{Condition, FaultyStore, MemoryStore, build};

    use super::*;
    use crate::metrics::Families;

    /// Returns a pacer of a hub with this quota, and the store.
    fn pacer(per_minute: f64) -> (Arc<Pacer>, Arc<MemoryStore>) {
        let clock = Arc::new(twincast_testkit::RuntimeClock::default());
        let store = Arc::new(MemoryStore::new(clock));
        let faulty_store = FaultyStore::new(&store);
        faulty_store.set_of("take_permits", Condition::Slow(Duration::from_millis(10)));
        let (spec, hub) = (build::accepted("r").spec, build::hub("a"));
        let limits = HubLimits {
            sends_per_minute: Some(per_minute),
            ..HubLimits::unlimited()
        };
        let metrics = Families::new().hub(&hub);
        let status = Arc::new(HubStatus::new(hub.clone(), metrics));
        let stage = (&spec, StageIndex(0));
        let pacer = Pacer::new(
            Arc::new(faulty_store),
            status,
            StoreRetryLimit(None),
            limits,
            &hub,
            stage,
        );
        (Arc::new(pacer.expect("a hub with limits")), store)
    }

    /// Returns a pacer of a hub at 60,000 messages a minute, and the time until which another
    /// rollout has reserved all permits.
    async fn behind_others() -> (Arc<Pacer>, Instant) {
        let (pacer, store) = pacer(60_000.0);
        let others = PermitRequest {
            max_permits: u32::MAX,
            rollout: build::name("others"),
            ..pacer.fetcher.request.clone()
        };
        let mut wait = Duration::ZERO;
        while wait < Duration::from_millis(800) {
            wait = store.take_permits(&others).await.unwrap().wait;
        }
        let free_at = Instant::now() + wait + Duration::from_millis(100);
        (pacer, free_at)
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_permits_are_fetched_than_requested() {
        let (pacer, store) = pacer(6_000.0);
        let began = Instant::now();
        for more in [2, 1, 0] {
            Arc::clone(&pacer).acquire(more).await.unwrap();
        }
        let reserved = began.elapsed() + store.limiter(&build::hub("a")).await.unwrap().ahead;
        let three = Duration::from_millis(10 + 3 * 10);
        assert!(reserved <= three + Duration::from_millis(1), "{reserved:?}");
    }

    /// The answer to an abandoned fetch does not count as late.
    #[tokio::test(start_paused = true)]
    async fn an_abandoned_fetch_is_restarted() {
        let (pacer, _) = behind_others().await;
        let short = Duration::from_millis(1);
        let waited = tokio::time::timeout(short, Arc::clone(&pacer).acquire(1_000)).await;
        assert!(waited.is_err());
        tokio::time::sleep(Duration::from_secs(5)).await;
        Arc::clone(&pacer).acquire(1_000).await.unwrap();
        let late = &pacer.fetcher.status.metrics().permits_late;
        assert_eq!(late.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_wait_leaves_no_permit_for_early_use() {
        let (pacer, free_at) = behind_others().await;
        let short = Duration::from_millis(50);
        for _ in 0..3 {
            let waited = tokio::time::timeout(short, Arc::clone(&pacer).acquire(1_000)).await;
            assert!(waited.is_err(), "a permit before its time");
        }
        Arc::clone(&pacer).acquire(1_000).await.unwrap();
        assert!(Instant::now() >= free_at, "a permit before its time");
    }
}
