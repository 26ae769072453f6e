//! Ringing for batches: which of those that are open a worker is to hear of now, and again.
//!
//! The queue is a doorbell. A batch is rung for when its turn has come, and once more when its dispatch was lost; one that is done
//! is rung for when somebody must listen to a hub.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::batch::BatchStatus;
use twincast_core::budget::FullGroup;
use twincast_core::error::in_words;
use twincast_core::evidence::{ListenerStatus, unanswered};
use twincast_core::ids::{BatchId, HubName, RolloutName};
use twincast_core::message::Ack;
use twincast_core::ports::{Clock, Depth, Dispatch, Queue, QueueError, Store, StoreError, Tally};
use twincast_core::rollout::Rollout;
use twincast_core::spec::Rate;
use twincast_core::waiting::{Named, Waiting};

use crate::Hubs;
use crate::accounting::WaySeen;
use crate::config::DriverConfig;
use crate::metrics::Repairs;
use crate::reach::Reach;
use crate::release::{Releasable, keep_budgets, keep_order};

/// The interval between two looks at whether a hub is listened to.
const LISTENED: Duration = Duration::from_secs(5);

/// Rings for batches.
pub(crate) struct Ringer<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) queue: &'a dyn Queue,
    pub(crate) hubs: &'a Hubs,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) config: &'a DriverConfig,
    pub(crate) repairs: &'a Repairs,
    pub(crate) broker: &'a Reach,
}

/// What a round of ringing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// Batches were rung for.
    Rang,
    /// There was nothing to ring for.
    Waited,
    /// This batch has brought down too many workers.
    Quarantined(BatchId),
}

impl Round {
    fn of(rang: bool) -> Self {
        if rang { Self::Rang } else { Self::Waited }
    }
}

/// What a round has found so far.
#[derive(Default)]
struct Found {
    seen: HashMap<BatchId, Seen>,
    rang: bool,
    any_open: bool,
    any_held_back: bool,
    /// Somebody works on one.
    any_held: bool,
    full_groups: Vec<FullGroup>,
    closed: Vec<Waiting>,
    /// Why the queue takes nothing.
    queue_away: Option<String>,
}

impl Ringer<'_> {
    /// Makes sure that a worker listens to every hub that has unanswered devices. A worker listens once it knows of the rollout,
    /// so one that was started since may not: it is rung for a batch of that hub.
    pub(crate) async fn wake_listeners(
        &self,
        rollout: &Rollout,
        tallies: &[Tally],
        rung: &mut Rung,
    ) -> Result<(), StoreError> {
        if rollout.spec.message.ack == Ack::None {
            return Ok(());
        }
        let (name, now) = (&rollout.spec.name, Instant::now());
        let waited_for = tallies.iter().filter(|tally| unanswered(&tally.counts) > 0);
        let hubs: BTreeSet<&HubName> = waited_for.map(|tally| &tally.hub).collect();
        let mut unheard = BTreeSet::new();
        for hub in hubs {
            if rung.listened.get(hub).is_some_and(|until| now < *until) {
                continue;
            }
            let listeners = self.store.listeners(hub).await?;
            let is_heard = listeners.iter().any(ListenerStatus::is_present);
            let until = match is_heard {
                true => now + LISTENED,
                false => now + self.config.ring_again,
            };
            rung.listened.insert(hub.clone(), until);
            if !is_heard {
                unheard.insert(hub);
            }
        }
        let mut after = None;
        while !unheard.is_empty() {
            let page = self.store.batches(name, after, 64).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.header.id);
            for batch in &page {
                if unheard.remove(&batch.header.hub)
                    && let Rang::Away(_) = self.ring(name, batch).await
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Rings for those of the open batches that should be moving and are not.
    pub(crate) async fn ring_for(
        &self,
        rollout: &Rollout,
        hubs: BTreeSet<&HubName>,
        rate: Option<Rate>,
        rung: &mut Rung,
    ) -> Result<Round, StoreError> {
        let name = &rollout.spec.name;
        let mut found = Found::default();
        let missing = hubs.iter().find(|hub| !self.hubs.contains_key(**hub));
        rung.way.not_configured = missing.map(|hub| self.not_configured(name, hub, &rung.way));
        for hub in hubs.into_iter().filter(|hub| self.hubs.contains_key(*hub)) {
            match self.ring_on(rollout, hub, rate, rung, &mut found).await? {
                Round::Rang => found.rang = true,
                Round::Waited => {}
                Round::Quarantined(batch) => return Ok(Round::Quarantined(batch)),
            }
            if let Some(why) = found.queue_away {
                rung.way.queue_away = (!found.any_held).then_some(why);
                return Ok(Round::of(found.rang));
            }
        }
        // What was not seen is done.
        rung.seen = found.seen;
        let way = &mut rung.way;
        way.queue_away = None;
        way.any_open = found.any_open || found.any_held_back;
        way.held_back = found.any_held_back && !found.any_open;
        let full = &mut found.full_groups;
        full.sort_by(|one: &FullGroup, other| one.group.cmp(&other.group));
        full.dedup_by(|one, other| one.group == other.group);
        let closed = found.closed.into_iter().reduce(Waiting::sooner);
        let hold = Waiting::of_budgets(full).or(closed);
        way.hold = hold.filter(|_| !found.any_open);
        Ok(Round::of(found.rang))
    }

    /// The same for one hub.
    async fn ring_on(
        &self,
        rollout: &Rollout,
        hub: &HubName,
        rate: Option<Rate>,
        rung: &mut Rung,
        found: &mut Found,
    ) -> Result<Round, StoreError> {
        let (name, now) = (&rollout.spec.name, Instant::now());
        let depth = self.depth_of(hub, rung, now).await;
        if depth.waiting != usize::MAX {
            rung.way.has_workers(hub, depth.consumers > 0, now);
        }
        let released = self.config.per_consumer * depth.consumers + self.config.ahead;
        let open = self.open_batches(rollout, hub, rate, released).await?;
        found.full_groups.extend(open.full);
        found.closed.extend(open.closed);
        found.any_open |= !open.batches.is_empty();
        found.any_held |= open.batches.iter().any(|batch| batch.held.is_some());
        found.any_held_back |= open.held_back;
        let mut rang = false;
        for batch in open.batches {
            let id = batch.header.id;
            if batch.quarantined {
                return Ok(Round::Quarantined(id));
            }
            let before = rung.seen.get(&id).copied();
            let seen = match action(self.config, before, &batch, depth, now) {
                Action::Leave(seen) => seen,
                Action::Ring(seen) => {
                    match self.ring(name, &batch).await {
                        Rang::Yes => {}
                        Rang::Full => continue,
                        // Each further one would wait as long.
                        Rang::Away(why) => {
                            found.queue_away = Some(why);
                            break;
                        }
                    }
                    rang = true;
                    if before.is_some() {
                        self.repairs.add_one();
                        tracing::info!(rollout = %name, batch = %id, %hub, "nobody works on a batch, it is released again");
                    }
                    seen
                }
            };
            found.seen.insert(id, seen);
        }
        Ok(Round::of(rang))
    }

    /// A hub without which the rollout cannot go on. Nobody here knows its quota, or whether the name means the same hub still.
    fn not_configured(&self, name: &RolloutName, hub: &HubName, before: &WaySeen) -> Waiting {
        let configured = Named::of(self.hubs.keys().cloned());
        if before.not_configured.is_none() {
            tracing::error!(rollout = %name, %hub, %configured, "hub is not configured, its batches wait");
        }
        let hub = hub.clone();
        Waiting::HubNotConfigured { hub, configured }
    }

    /// The first open batches of the stages so far that may be sent to now, by the rollout's schedule, budgets and order.
    async fn open_batches(
        &self,
        rollout: &Rollout,
        hub: &HubName,
        rate: Option<Rate>,
        limit: usize,
    ) -> Result<Releasable, StoreError> {
        /// Batches of zones that are closed, and of groups whose budget is full, may come before others.
        const LOOKED_THROUGH: usize = 4_096;
        /// Budgets make small batches, of which so many more are released.
        const SMALL: usize = 4;
        let by_budget = !rollout.spec.budgets.is_empty();
        let asked = if rollout.spec.has_zones() || by_budget {
            LOOKED_THROUGH.max(limit)
        } else {
            limit
        };
        let name = &rollout.spec.name;
        let mut open = self
            .store
            .open_batches(name, hub, rollout.stage(), asked)
            .await?;
        let now = self.clock.now();
        let mut closed = Vec::new();
        open.retain(|batch| {
            let hold = Waiting::of_schedule(&rollout.spec.opening(&batch.header.group, now));
            let is_open = hold.is_none();
            closed.extend(hold);
            is_open
        });
        let mut open = keep_budgets(self.store, name, open).await?;
        open.closed = closed.into_iter().reduce(Waiting::sooner);
        let limit = if by_budget { limit * SMALL } else { limit };
        open.batches.truncate(limit);
        let pace = self.hubs.get(hub).and_then(|hub| hub.limits.pace(rate));
        keep_order(
            &mut open.batches,
            rollout.spec.order_of(rollout.stage()),
            pace,
        );
        Ok(open)
    }

    async fn ring(&self, name: &RolloutName, batch: &BatchStatus) -> Rang {
        let dispatch = Dispatch {
            rollout: name.clone(),
            batch: batch.header.id,
            hub: batch.header.hub.clone(),
        };
        match self.queue.publish(&dispatch).await {
            Ok(()) => Rang::Yes,
            Err(QueueError::Full { .. }) => Rang::Full,
            Err(error) => {
                self.broker.is_lost(&error);
                Rang::Away(in_words(&error))
            }
        }
    }

    /// How a hub's queue stands; asked for once a second. A queue that cannot be asked counts as
    /// busy.
    async fn depth_of(&self, hub: &HubName, rung: &mut Rung, now: Instant) -> Depth {
        let known = rung.depths.get(hub).copied();
        if let Some((at, depth)) = known
            && now < at + Duration::from_secs(1)
        {
            return depth;
        }
        let asked = self.queue.depth(hub).await;
        self.broker.note(&asked);
        let depth = asked.unwrap_or_else(|_| Depth {
            waiting: usize::MAX,
            ..known.map(|(_, depth)| depth).unwrap_or_default()
        });
        rung.depths.insert(hub.clone(), (now, depth));
        depth
    }
}

/// What a driver remembers of its rings. Only a memory aid: losing it costs a few extra rings.
#[derive(Debug, Default)]
pub(crate) struct Rung {
    /// The released batches.
    seen: HashMap<BatchId, Seen>,
    depths: HashMap<HubName, (Instant, Depth)>,
    /// What keeps its sends, as far as it was seen.
    pub(crate) way: WaySeen,
    /// Until when it need not be asked whether a hub is listened to.
    listened: HashMap<HubName, Instant>,
}

/// When a batch was last rung for or seen to be worked on, and how often it was rung for since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    at: Instant,
    rings: u32,
}

impl Rung {
    /// The schedule does not let anything be sent. Workers put batches down, so whatever was rung for is to be rung for again.
    pub(crate) fn is_closed(&mut self, hold: Waiting) {
        self.seen.clear();
        (self.way.any_open, self.way.held_back) = (false, false);
        self.way.hold = Some(hold);
    }
}

/// What is to be done about a released batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Nothing; remember this.
    Leave(Seen),
    /// Ring for it, and remember this.
    Ring(Seen),
}

/// Decides on a batch, by what is remembered of it.
///
/// One whose lease has lapsed is not rung for at first sight: after an outage of the store its
/// worker is about to go on, and nobody else is to take it before.
fn action(
    config: &DriverConfig,
    before: Option<Seen>,
    batch: &BatchStatus,
    depth: Depth,
    now: Instant,
) -> Action {
    if batch.held.is_some() {
        return Action::Leave(Seen { at: now, rings: 0 });
    }
    match before {
        None if batch.lapsed => Action::Leave(Seen { at: now, rings: 0 }),
        None => Action::Ring(Seen { at: now, rings: 0 }),
        Some(before) => {
            // Longer each time: a queue may be empty because workers hold what they cannot work on.
            let patience = config.lost_after * 2u32.saturating_pow(before.rings.min(10));
            let missed = depth.waiting == 0 && now >= before.at + patience;
            if missed || now >= before.at + config.ring_again {
                Action::Ring(Seen {
                    at: now,
                    rings: before.rings + 1,
                })
            } else {
                Action::Leave(before)
            }
        }
    }
}

/// What became of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rang {
    Yes,
    Full,
    /// The queue cannot be reached, and why.
    Away(String),
}
