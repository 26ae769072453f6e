//! From blocks of permits to an even stream of sends.
//!
//! The store hands out permits for a hub in blocks, so that workers agree on the quota at a small cost. A [`Line`] spreads
//! them over most of the time that they stand for, so that the hub sees a stream and not bursts. Whoever waits for a permit
//! takes one as a value and waits for its time; if they give up meanwhile, it is lost. Whoever waits also moves a fetch
//! on, so there is no task, and no lock is held while the store is asked.
//!
//! A ramp's rate follows from the store's counts, which are read anew for a block when they are older than
//! [`LOOK_AGAIN`]. Nothing else is remembered, so all workers come to the same rate, at most that much later. Counts
//! only rise while devices are sent to, so an old one means a rate that is too low, never one too high.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep, sleep_until};
use twincast_core::error::in_words;
use twincast_core::hub::HubLimits;
use twincast_core::ids::{HubName, StageIndex};
use twincast_core::permits::{Grant, PermitRequest};
use twincast_core::ports::{Store, StoreError};
use twincast_core::spec::{Rate, RolloutSpec, StagePace};
use twincast_retry::Policy;

use crate::pace::{Block, Line, Need, Permit};
use crate::patience::{Patience, Tries, next_delay};
use crate::status::HubStatus;

/// Permits that took longer to get here are not used: what they stand for may be over by as much. A little less than the
/// jitter that the quota's headroom is for.
const STALE: Duration = Duration::from_millis(500);

/// How old the counts may be by which a ramp's rate is found, while it rises.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// And when it has reached the highest: counts fall when devices are tried again.
const LOOK_AGAIN_AT_TOP: Duration = Duration::from_secs(5);

/// A fetch that nobody has waited for so long is begun anew: its answer would look late.
const LEFT: Duration = Duration::from_millis(100);

type Fetching = Shared<BoxFuture<'static, ()>>;

/// The pace of one rollout's stage on one hub, for all of the worker's batches.
pub(crate) struct Pacer {
    asker: Arc<Asker>,
    found: Arc<Mutex<Found>>,
    fetch: Mutex<Fetch>,
}

/// What is being fetched, and for how many.
struct Fetch {
    under_way: Option<Fetching>,
    /// How many wait, and when the last of them has gone.
    waiting: usize,
    left_at: Instant,
    /// How many permits they want, besides those that they have.
    wanted: u32,
}

/// What was fetched.
#[derive(Default)]
struct Found {
    line: Line,
    /// Why the last fetch has failed for good, until somebody was told.
    failed: Option<StoreError>,
}

impl Pacer {
    /// The pacer of a rollout's stage on a hub; `None` when neither has a limit.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        status: Arc<HubStatus>,
        patience: Patience,
        limits: HubLimits,
        hub: &HubName,
        (spec, stage): (&RolloutSpec, StageIndex),
    ) -> Option<Self> {
        let pace = spec.pace_of(stage);
        limits.pace(pace.rate_at(0))?;
        let request = PermitRequest {
            hub: hub.clone(),
            wanted: 0,
            // A limit of the hub's that cannot be reached stands for none.
            per_minute: limits.pace(None).unwrap_or(1e9),
            rollout: spec.name.clone(),
            weight: spec.weight,
            limit: None,
        };
        Some(Self {
            asker: Arc::new(Asker {
                store,
                status,
                patience,
                request,
                limits,
                pace,
                counted: Mutex::default(),
                generation: AtomicU64::new(0),
            }),
            found: Arc::default(),
            fetch: Mutex::new(Fetch {
                under_way: None,
                waiting: 0,
                left_at: Instant::now(),
                wanted: 0,
            }),
        })
    }

    /// Waits for the right to send one message now. The caller has `more` messages to send after this one.
    ///
    /// Cancel safety: if dropped, a permit may be lost, and none is used before its time.
    pub(crate) async fn acquire(self: Arc<Self>, more: usize) -> Result<(), StoreError> {
        let mut wants = Wants::so_many(&self.fetch, more.saturating_add(1));
        loop {
            let turn = self.turn(&mut wants, Instant::now())?;
            let has_fetched = async {
                match turn.fetching {
                    Some(fetching) => fetching.await,
                    None => pending().await,
                }
                // The block after this one.
                if turn.permit.is_some() {
                    pending::<()>().await;
                }
            };
            let until = async {
                match turn.until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = has_fetched => {}
                () = until => {}
            }
            let generation = self.asker.generation();
            if turn
                .permit
                .is_some_and(|permit| permit.is_good(Instant::now(), generation))
            {
                return Ok(());
            }
        }
    }

    /// Takes a permit, if there is one, and begins a fetch, if that is to be done.
    fn turn(&self, wants: &mut Wants<'_>, now: Instant) -> Result<Turn, StoreError> {
        let mut fetch = lock(&self.fetch);
        fetch.under_way.take_if(|it| it.peek().is_some());
        let mut found = lock(&self.found);
        if let Some(error) = found.failed.take() {
            return Err(error);
        }
        let permit = found.line.take(now, self.asker.generation());
        wants.count(&mut fetch, permit.is_some());
        let need = found.line.need(now, fetch.wanted);
        if let Need::Permits(wanted) = need
            && fetch.under_way.is_none()
        {
            fetch.under_way = Some(self.fetch(wanted));
        }
        let until = match need {
            Need::NothingUntil(at) => Some(at),
            Need::Nothing | Need::Permits(_) => None,
        };
        Ok(Turn {
            until: permit.map(|permit| permit.not_before).or(until),
            permit,
            fetching: fetch.under_way.clone(),
        })
    }

    fn fetch(&self, wanted: u32) -> Fetching {
        let (asker, found) = (Arc::clone(&self.asker), Arc::clone(&self.found));
        let fetch = async move {
            let block = asker.ask(wanted).await;
            let mut found = lock(&found);
            match block {
                Ok(block) => found.line.put(block),
                Err(error) => found.failed = Some(error),
            }
        };
        fetch.boxed().shared()
    }

    /// The hub has refused a send for its quota: voids what is at hand.
    pub(crate) fn void(&self) {
        self.asker.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Slows everyone down, after a refusal for the quota.
    pub(crate) async fn throttled(&self, retry_after: Option<Duration>) -> Result<(), StoreError> {
        let Asker { store, request, .. } = &*self.asker;
        store.throttled(&request.hub, retry_after).await
    }
}

/// What somebody who waits for a permit waits for.
struct Turn {
    permit: Option<Permit>,
    /// The permit's time, or that of the next look.
    until: Option<Instant>,
    fetching: Option<Fetching>,
}

/// So many permits are wanted, until it is dropped.
struct Wants<'a> {
    fetch: &'a Mutex<Fetch>,
    these: u32,
    /// So many of them are counted: not the one that is had.
    counted: u32,
}

impl<'a> Wants<'a> {
    fn so_many(fetch: &'a Mutex<Fetch>, these: usize) -> Self {
        let mut locked = lock(fetch);
        if locked.waiting == 0 && locked.left_at.elapsed() > LEFT {
            locked.under_way = None;
        }
        locked.waiting += 1;
        Self {
            fetch,
            // Much more than a block has, and no sum of them overflows.
            these: these.min(1 << 20) as u32,
            counted: 0,
        }
    }

    /// Counts what is wanted now, when there is a permit or none.
    fn count(&mut self, fetch: &mut Fetch, has_permit: bool) {
        let now = self.these - u32::from(has_permit);
        fetch.wanted = fetch.wanted - self.counted + now;
        self.counted = now;
    }
}

impl Drop for Wants<'_> {
    fn drop(&mut self) {
        let mut fetch = lock(self.fetch);
        fetch.wanted -= self.counted;
        fetch.waiting -= 1;
        fetch.left_at = Instant::now();
    }
}

/// Asks the store for permits.
struct Asker {
    store: Arc<dyn Store>,
    status: Arc<HubStatus>,
    patience: Patience,
    /// All but how much is wanted, and the limit.
    request: PermitRequest,
    limits: HubLimits,
    pace: StagePace,
    counted: Mutex<Option<Counted>>,
    /// Raised by a throttle: permits of an earlier generation are void.
    generation: AtomicU64,
}

/// What a ramp counted last.
#[derive(Debug, Clone, Copy)]
struct Counted {
    devices: u64,
    at: Instant,
}

impl Asker {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The rate now, which follows from what is counted if there is a ramp.
    async fn rate(&self) -> Result<Option<Rate>, StoreError> {
        if self.pace.ramp().is_none() {
            return Ok(self.pace.rate_at(0));
        }
        let last = *lock(&self.counted);
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
        *lock(&self.counted) = Some(Counted { devices, at });
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
        let mut tries = Tries::new(self.patience, &Policy::store_retry());
        loop {
            let generation = self.generation();
            let asked_at = Instant::now();
            let error = match self.ask_once(wanted).await {
                Ok((grant, _)) if grant.permits > 0 && asked_at.elapsed() > STALE => {
                    self.status.permits_late(grant.permits, asked_at.elapsed());
                    match self.until_prompt().await {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Ok((grant, per_minute)) => {
                    if asked_at.elapsed() <= STALE {
                        self.status.permits_in_time();
                    }
                    let now = Instant::now();
                    return Ok(Block::new(grant, per_minute, generation, now));
                }
                Err(error) => error,
            };
            let is_news = !tries.is_failing();
            let words = is_news.then(|| in_words(&error));
            let delay = tries.failed(error, Instant::now())?;
            if let Some(error) = words {
                tracing::warn!(hub = %self.request.hub, error, "no permits, the store does not answer");
            }
            sleep(delay).await;
        }
    }

    /// Waits until the store answers in time, with a question that takes no permits.
    async fn until_prompt(&self) -> Result<(), StoreError> {
        let policy = Policy::store_retry();
        let mut delays = policy.delays();
        loop {
            sleep(next_delay(&mut delays, policy.max())).await;
            let asked_at = Instant::now();
            self.store.limiter(&self.request.hub).await?;
            if asked_at.elapsed() <= STALE {
                return Ok(());
            }
        }
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use twincast_core::ports::Limiter as _;
    use twincast_testkit::{AwayStore, MemoryStore, Way, build};

    use super::*;
    use crate::metrics::Families;

    /// A pacer of a hub with this quota, and its store.
    fn pacer(per_minute: f64) -> (Arc<Pacer>, Arc<MemoryStore>) {
        let clock = Arc::new(twincast_testkit::RuntimeClock::default());
        let store = Arc::new(MemoryStore::new(clock));
        let way = AwayStore::new(&store);
        way.set_of("take_permits", Way::Slow(Duration::from_millis(10)));
        let (spec, hub) = (build::accepted("r").spec, build::hub("a"));
        let limits = HubLimits {
            sends_per_minute: Some(per_minute),
            ..HubLimits::unlimited()
        };
        let metrics = Families::new().hub(&hub);
        let status = Arc::new(HubStatus::new(hub.clone(), metrics));
        let stage = (&spec, StageIndex(0));
        let pacer = Pacer::new(Arc::new(way), status, Patience(None), limits, &hub, stage);
        (Arc::new(pacer.expect("a hub with limits")), store)
    }

    /// A pacer at 60,000 a minute, of a hub whose permits are reserved by others until a time.
    async fn behind_others() -> (Arc<Pacer>, Instant) {
        let (pacer, store) = pacer(60_000.0);
        let others = PermitRequest {
            wanted: u32::MAX,
            rollout: build::name("others"),
            ..pacer.asker.request.clone()
        };
        let mut wait = Duration::ZERO;
        while wait < Duration::from_millis(800) {
            wait = store.take_permits(&others).await.unwrap().wait;
        }
        let free_at = Instant::now() + wait + Duration::from_millis(100);
        (pacer, free_at)
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_fetched_than_is_wanted() {
        let (pacer, store) = pacer(6_000.0);
        let began = Instant::now();
        for more in [2, 1, 0] {
            Arc::clone(&pacer).acquire(more).await.unwrap();
        }
        let reserved = began.elapsed() + store.limiter(&build::hub("a")).await.unwrap().ahead;
        let three = Duration::from_millis(10 + 3 * 10);
        assert!(reserved <= three + Duration::from_millis(1), "{reserved:?}");
    }

    /// The answer to a question that was left alone is no late one.
    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_nobody_waits_for_is_begun_anew() {
        let (pacer, _) = behind_others().await;
        let short = Duration::from_millis(1);
        let waited = tokio::time::timeout(short, Arc::clone(&pacer).acquire(1_000)).await;
        assert!(waited.is_err());
        tokio::time::sleep(Duration::from_secs(5)).await;
        Arc::clone(&pacer).acquire(1_000).await.unwrap();
        let late = &pacer.asker.status.metrics().permits_late;
        assert_eq!(late.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_wait_leaves_no_permit_that_may_be_used_early() {
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
