//! Dispatches batches: selects the open batches to be announced to workers now, and repeats lost
//! dispatches.
//!
//! The queue carries notifications only. A batch is dispatched when its turn has come, and again
//! when the dispatch was lost. A completed batch is dispatched when a hub lacks a listener.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::batch::BatchStatus;
use twincast_core::budget::FullGroup;
use twincast_core::error::describe;
use twincast_core::evidence::{ListenerStatus, unanswered_devices};
use twincast_core::ids::{BatchId, HubName, RolloutName};
use twincast_core::message::Ack;
use twincast_core::ports::{Clock, Depth, Dispatch, Queue, QueueError, Store, StoreError, Tally};
use twincast_core::rollout::Rollout;
use twincast_core::spec::Rate;
use twincast_core::waiting::{Shortlist, Waiting};

use crate::Hubs;
use crate::accounting::Obstacles;
use crate::config::DriverConfig;
use crate::metrics::Repairs;
use crate::reachability::Reachability;
use crate::release::{Releasable, keep_budgets, keep_order};

/// The interval between two checks for a hub's listeners.
pub(crate) const LISTENER_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Dispatches batches.
pub(crate) struct Dispatcher<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) queue: &'a dyn Queue,
    pub(crate) hubs: &'a Hubs,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) config: &'a DriverConfig,
    pub(crate) repairs: &'a Repairs,
    pub(crate) broker: &'a Reachability,
}

/// The result of a round of dispatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// Batches were dispatched.
    Dispatched,
    /// Nothing was to be dispatched.
    Waited,
    /// This batch has too many failed leases.
    Quarantined(BatchId),
}

impl Round {
    fn of(dispatched: bool) -> Self {
        if dispatched {
            Self::Dispatched
        } else {
            Self::Waited
        }
    }
}

/// The findings of a round so far.
#[derive(Default)]
struct Found {
    batches: HashMap<BatchId, BatchMemory>,
    dispatched: bool,
    any_open: bool,
    any_held_back: bool,
    /// Whether a worker holds one of the batches.
    any_leased: bool,
    full_groups: Vec<FullGroup>,
    closed: Vec<Waiting>,
    /// Why the queue accepts no dispatches.
    queue_unreachable: Option<String>,
}

impl Dispatcher<'_> {
    /// Makes sure that a worker listens to every hub with unanswered devices. A worker listens once
    /// it knows the rollout, so a worker started later may not listen. In this case, a batch of the
    /// hub is dispatched.
    pub(crate) async fn wake_listeners(
        &self,
        rollout: &Rollout,
        tallies: &[Tally],
        log: &mut DispatchLog,
    ) -> Result<(), StoreError> {
        if rollout.spec.message.ack == Ack::None {
            return Ok(());
        }
        let (name, now) = (&rollout.spec.name, Instant::now());
        let waited_for = tallies
            .iter()
            .filter(|tally| unanswered_devices(&tally.counts) > 0);
        let hubs: BTreeSet<&HubName> = waited_for.map(|tally| &tally.hub).collect();
        let mut without_listener = BTreeSet::new();
        for hub in hubs {
            if log
                .listeners_checked_until
                .get(hub)
                .is_some_and(|until| now < *until)
            {
                continue;
            }
            let listeners = self.store.listeners(hub).await?;
            let has_listener = listeners.iter().any(ListenerStatus::is_present);
            let until = match has_listener {
                true => now + LISTENER_CHECK_INTERVAL,
                false => now + self.config.redispatch_after,
            };
            log.listeners_checked_until.insert(hub.clone(), until);
            if !has_listener {
                without_listener.insert(hub);
            }
        }
        let mut after = None;
        while !without_listener.is_empty() {
            let page = self.store.batches(name, after, 64).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.header.id);
            for batch in &page {
                if without_listener.remove(&batch.header.hub)
                    && let DispatchResult::Unreachable(_) = self.dispatch(name, batch).await
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Dispatches the open batches that should be in progress but are not.
    pub(crate) async fn dispatch_open(
        &self,
        rollout: &Rollout,
        hubs: BTreeSet<&HubName>,
        rate: Option<Rate>,
        log: &mut DispatchLog,
    ) -> Result<Round, StoreError> {
        let name = &rollout.spec.name;
        let mut found = Found::default();
        let missing = hubs.iter().find(|hub| !self.hubs.contains_key(**hub));
        log.obstacles.not_configured =
            missing.map(|hub| self.not_configured(name, hub, &log.obstacles));
        for hub in hubs.into_iter().filter(|hub| self.hubs.contains_key(*hub)) {
            match self
                .dispatch_on(rollout, hub, rate, log, &mut found)
                .await?
            {
                Round::Dispatched => found.dispatched = true,
                Round::Waited => {}
                Round::Quarantined(batch) => return Ok(Round::Quarantined(batch)),
            }
            if let Some(why) = found.queue_unreachable {
                log.obstacles.queue_unreachable = (!found.any_leased).then_some(why);
                return Ok(Round::of(found.dispatched));
            }
        }
        // Batches not seen in this round are done.
        log.batches = found.batches;
        let obstacles = &mut log.obstacles;
        obstacles.queue_unreachable = None;
        obstacles.any_open = found.any_open || found.any_held_back;
        obstacles.held_back = found.any_held_back && !found.any_open;
        let full = &mut found.full_groups;
        full.sort_by(|one: &FullGroup, other| one.group.cmp(&other.group));
        full.dedup_by(|one, other| one.group == other.group);
        let closed = found.closed.into_iter().reduce(Waiting::sooner);
        let obstacle = Waiting::of_budgets(full).or(closed);
        obstacles.release_obstacle = obstacle.filter(|_| !found.any_open);
        Ok(Round::of(found.dispatched))
    }

    /// Dispatches the open batches of one hub.
    async fn dispatch_on(
        &self,
        rollout: &Rollout,
        hub: &HubName,
        rate: Option<Rate>,
        log: &mut DispatchLog,
        found: &mut Found,
    ) -> Result<Round, StoreError> {
        let (name, now) = (&rollout.spec.name, Instant::now());
        let depth = self.depth_of(hub, log, now).await;
        if depth.waiting != usize::MAX {
            log.obstacles.note_workers(hub, depth.consumers > 0, now);
        }
        let released = self.config.per_consumer * depth.consumers + self.config.ahead;
        let open = self.open_batches(rollout, hub, rate, released).await?;
        found.full_groups.extend(open.full);
        found.closed.extend(open.closed);
        found.any_open |= !open.batches.is_empty();
        found.any_leased |= open.batches.iter().any(|batch| batch.held.is_some());
        found.any_held_back |= open.held_back;
        let mut dispatched = false;
        for batch in open.batches {
            let id = batch.header.id;
            if batch.quarantined {
                return Ok(Round::Quarantined(id));
            }
            let before = log.batches.get(&id).copied();
            let memory = match action(self.config, before, &batch, depth, now) {
                Action::Leave(memory) => memory,
                Action::Dispatch(memory) => {
                    match self.dispatch(name, &batch).await {
                        DispatchResult::Published => {}
                        DispatchResult::QueueFull => continue,
                        // Every further dispatch would wait as long.
                        DispatchResult::Unreachable(why) => {
                            found.queue_unreachable = Some(why);
                            break;
                        }
                    }
                    dispatched = true;
                    if before.is_some() {
                        self.repairs.add_one();
                        tracing::info!(rollout = %name, batch = %id, %hub, "batch without a worker, dispatching again");
                    }
                    memory
                }
            };
            found.batches.insert(id, memory);
        }
        Ok(Round::of(dispatched))
    }

    /// Returns the wait for an unconfigured hub needed by the rollout. Without configuration, the
    /// hub's quota is unknown, as is the identity of the hub behind the name.
    fn not_configured(&self, name: &RolloutName, hub: &HubName, before: &Obstacles) -> Waiting {
        let configured = Shortlist::of(self.hubs.keys().cloned());
        if before.not_configured.is_none() {
            tracing::error!(rollout = %name, %hub, %configured, "hub is not configured, its batches wait");
        }
        let hub = hub.clone();
        Waiting::HubNotConfigured { hub, configured }
    }

    /// Returns the first open batches of the stages so far that may be sent now, by the rollout's
    /// schedule, budgets and order.
    async fn open_batches(
        &self,
        rollout: &Rollout,
        hub: &HubName,
        rate: Option<Rate>,
        limit: usize,
    ) -> Result<Releasable, StoreError> {
        /// Batches of closed time zones and of full budget groups may precede other batches.
        const SEARCH_LIMIT: usize = 4_096;
        /// Budgets make batches small, so more batches are released, by this factor.
        const SMALL_BATCH_FACTOR: usize = 4;
        let by_budget = !rollout.spec.budgets.is_empty();
        let search_limit = if rollout.spec.has_zones() || by_budget {
            SEARCH_LIMIT.max(limit)
        } else {
            limit
        };
        let name = &rollout.spec.name;
        let mut open = self
            .store
            .open_batches(name, hub, rollout.stage(), search_limit)
            .await?;
        let now = self.clock.now();
        let mut closed = Vec::new();
        open.retain(|batch| {
            let obstacle =
                Waiting::of_schedule(&rollout.spec.schedule_state(&batch.header.group, now));
            let is_open = obstacle.is_none();
            closed.extend(obstacle);
            is_open
        });
        let mut open = keep_budgets(self.store, name, open).await?;
        open.closed = closed.into_iter().reduce(Waiting::sooner);
        let limit = if by_budget {
            limit * SMALL_BATCH_FACTOR
        } else {
            limit
        };
        open.batches.truncate(limit);
        let pace = self.hubs.get(hub).and_then(|hub| hub.limits.pace(rate));
        keep_order(
            &mut open.batches,
            rollout.spec.order_of(rollout.stage()),
            pace,
        );
        Ok(open)
    }

    async fn dispatch(&self, name: &RolloutName, batch: &BatchStatus) -> DispatchResult {
        let dispatch = Dispatch {
            rollout: name.clone(),
            batch: batch.header.id,
            hub: batch.header.hub.clone(),
        };
        match self.queue.publish(&dispatch).await {
            Ok(()) => DispatchResult::Published,
            Err(QueueError::Full { .. }) => DispatchResult::QueueFull,
            Err(error) => {
                self.broker.note_failure(&error);
                DispatchResult::Unreachable(describe(&error))
            }
        }
    }

    /// Returns the depth of a hub's queue, queried once per second. A queue that cannot be queried
    /// counts as busy.
    async fn depth_of(&self, hub: &HubName, log: &mut DispatchLog, now: Instant) -> Depth {
        let known = log.depths.get(hub).copied();
        if let Some((at, depth)) = known
            && now < at + Duration::from_secs(1)
        {
            return depth;
        }
        let queried = self.queue.depth(hub).await;
        self.broker.note(&queried);
        let depth = queried.unwrap_or_else(|_| Depth {
            waiting: usize::MAX,
            ..known.map(|(_, depth)| depth).unwrap_or_default()
        });
        log.depths.insert(hub.clone(), (now, depth));
        depth
    }
}

/// A driver's memory of its dispatches. Losing the memory costs a few extra dispatches.
#[derive(Debug, Default)]
pub(crate) struct DispatchLog {
    /// The released batches.
    batches: HashMap<BatchId, BatchMemory>,
    depths: HashMap<HubName, (Instant, Depth)>,
    /// The obstacles to sends, as last seen.
    pub(crate) obstacles: Obstacles,
    /// The time until which a hub's listeners need no check.
    listeners_checked_until: HashMap<HubName, Instant>,
}

/// The time of a batch's last dispatch or last observed lease, and the number of repeated
/// dispatches since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchMemory {
    at: Instant,
    redispatches: u32,
}

impl DispatchLog {
    /// Notes that the schedule permits no sends. Workers give up their batches, so all batches must
    /// be dispatched again.
    pub(crate) fn note_closed(&mut self, obstacle: Waiting) {
        self.batches.clear();
        (self.obstacles.any_open, self.obstacles.held_back) = (false, false);
        self.obstacles.release_obstacle = Some(obstacle);
    }
}

/// The decision about a released batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Do nothing, and remember this state.
    Leave(BatchMemory),
    /// Dispatch the batch, and remember this state.
    Dispatch(BatchMemory),
}

/// Decides about a batch, by the remembered state.
///
/// A batch with a lapsed lease is not dispatched at first sight: after an outage of the store, the
/// batch's worker is about to continue, and no other worker may take the batch before.
fn action(
    config: &DriverConfig,
    before: Option<BatchMemory>,
    batch: &BatchStatus,
    depth: Depth,
    now: Instant,
) -> Action {
    if batch.held.is_some() {
        return Action::Leave(BatchMemory {
            at: now,
            redispatches: 0,
        });
    }
    match before {
        None if batch.lapsed => Action::Leave(BatchMemory {
            at: now,
            redispatches: 0,
        }),
        None => Action::Dispatch(BatchMemory {
            at: now,
            redispatches: 0,
        }),
        Some(before) => {
            // Double the wait each time: a queue may be empty because workers hold dispatches
            // without being able to work on the batches.
            let wait = config.redispatch_if_queue_empty_after
                * 2u32.saturating_pow(before.redispatches.min(10));
            let is_lost = depth.waiting == 0 && now >= before.at + wait;
            if is_lost || now >= before.at + config.redispatch_after {
                Action::Dispatch(BatchMemory {
                    at: now,
                    redispatches: before.redispatches + 1,
                })
            } else {
                Action::Leave(before)
            }
        }
    }
}

/// The result of a dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DispatchResult {
    Published,
    QueueFull,
    /// The queue cannot be reached, for this reason.
    Unreachable(String),
}
