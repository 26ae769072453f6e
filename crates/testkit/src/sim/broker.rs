//! A simulated queue that loses, repeats, reorders and delays dispatches, with connections that
//! break.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::sleep;
use twincast_core::ids::HubName;
use twincast_core::ports::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};

use super::process::{FaultRates, Lost, lock};
use super::{Bug, Effect, Process, Sim};

/// The longest delay of a late dispatch.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// The longest time until the broker notices the end of a process.
const MAX_NOTICE_TIME: Duration = Duration::from_secs(3);

/// A broker with a queue for each hub. Clones share the broker.
#[derive(Clone)]
pub struct Broker {
    sim: Sim,
    limit: usize,
    queues: Arc<Mutex<BTreeMap<HubName, HubQueue>>>,
}

#[derive(Default)]
struct HubQueue {
    waiting: VecDeque<Waiting>,
    consumers: BTreeMap<u64, Consumer>,
    last_consumer: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    dispatch: Dispatch,
    redelivered: bool,
}

/// A consumer, as known to the broker.
#[derive(Default)]
struct Consumer {
    held: BTreeMap<u64, Dispatch>,
    last_tag: u64,
    /// Notified after a change of the queue. Each consumer has a separate `Notify`, so the order of
    /// notifications is fixed.
    changed: Arc<Notify>,
}

impl Broker {
    /// Creates a broker with up to `limit` waiting dispatches in each queue.
    #[must_use]
    pub fn new(sim: &Sim, limit: usize) -> Self {
        Self {
            sim: sim.clone(),
            limit,
            queues: Arc::default(),
        }
    }

    /// Connects a process to the broker.
    #[must_use]
    pub fn connect(&self, process: &Process) -> Arc<dyn Queue> {
        Arc::new(Connection {
            broker: self.clone(),
            process: process.clone(),
        })
    }

    /// Discards the waiting dispatches of a hub's queue.
    pub fn purge(&self, hub: &HubName) {
        let thrown = self.on(hub, |queue| std::mem::take(&mut queue.waiting).len());
        self.sim
            .note(format_args!("queue of {hub} PURGED of {thrown}"));
    }

    /// Returns the number of unanswered dispatches in all queues, waiting or handed out.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        let queues = lock(&self.queues);
        let of_queue = |queue: &HubQueue| {
            let held = queue.consumers.values().map(|consumer| consumer.held.len());
            queue.waiting.len() + held.sum::<usize>()
        };
        queues.values().map(of_queue).sum()
    }

    /// Changes a queue, and wakes the waiting consumers.
    fn on<T>(&self, hub: &HubName, change: impl FnOnce(&mut HubQueue) -> T) -> T {
        self.on_quietly(hub, |queue| {
            let result = change(queue);
            for consumer in queue.consumers.values() {
                consumer.changed.notify_one();
            }
            result
        })
    }

    fn on_quietly<T>(&self, hub: &HubName, change: impl FnOnce(&mut HubQueue) -> T) -> T {
        change(lock(&self.queues).entry(hub.clone()).or_default())
    }

    /// Puts a dispatch into the hub's queue.
    fn put(&self, by: &Process, dispatch: &Dispatch) -> Result<(), QueueError> {
        let name = &dispatch.hub;
        let mut dice = by.dice("line", &dispatch.batch.to_string());
        let place = dice.number();
        let shuffled = self.sim.has_faults_now() && self.sim.faults().dispatch_late > 0.0;
        let put = self.on(name, |queue| {
            if queue.waiting.len() >= self.limit {
                return Err(QueueError::Full {
                    hub: name.clone(),
                    limit: self.limit,
                });
            }
            let end = queue.waiting.len();
            let place = if shuffled {
                place as usize % (end + 1)
            } else {
                end
            };
            let new = Waiting {
                dispatch: dispatch.clone(),
                redelivered: false,
            };
            queue.waiting.insert(place, new);
            Ok(queue.waiting.len())
        });
        by.observe(&Effect::Waiting(name, put?));
        Ok(())
    }

    /// Takes back the dispatches held by a consumer. With `remove`, the consumer is removed as
    /// well.
    fn requeue_all(&self, hub: &HubName, consumer: u64, remove: bool) {
        self.on(hub, |queue| {
            let Some(known) = queue.consumers.get_mut(&consumer) else {
                return;
            };
            let held = std::mem::take(&mut known.held);
            if remove {
                queue.consumers.remove(&consumer);
            }
            queue.waiting.extend(held.into_values().map(requeued));
        });
    }
}

fn requeued(dispatch: Dispatch) -> Waiting {
    Waiting {
        dispatch,
        redelivered: true,
    }
}

struct Connection {
    broker: Broker,
    process: Process,
}

fn unavailable(doing: &'static str) -> QueueError {
    QueueError::Unavailable {
        doing,
        source: Box::new(Lost),
    }
}

fn fault_rates(sim: &Sim) -> FaultRates {
    FaultRates {
        fails: sim.faults().queue_fails,
        ..FaultRates::default()
    }
}

#[async_trait]
impl Queue for Connection {
    async fn publish(&self, dispatch: &Dispatch) -> Result<(), QueueError> {
        let (broker, by, sent) = (self.broker.clone(), self.process.clone(), dispatch.clone());
        let effect = async move {
            let sim = by.sim();
            let faults = sim.faults();
            let mut dice = by.dice("published", &sent.batch.to_string());
            let has_faults = sim.has_faults_now();
            if has_faults && dice.happens(faults.dispatch_lost)
                || sim.has(Bug::ForgetsDispatches) && dice.happens(0.5)
            {
                sim.note(format_args!("dispatch of {} LOST", sent.batch));
                return Ok(());
            }
            if has_faults && dice.happens(faults.dispatch_late) {
                let after = dice.time(Duration::ZERO..=MAX_DELAY);
                tokio::spawn(async move {
                    sleep(after).await;
                    // A queue that is full by then loses the dispatch.
                    let _ = broker.put(&by, &sent);
                });
                return Ok(());
            }
            if has_faults && dice.happens(faults.dispatch_doubled) {
                broker.put(&by, &sent)?;
            }
            broker.put(&by, &sent)
        };
        let about = format!("{}/{}", dispatch.rollout, dispatch.batch);
        let rates = fault_rates(self.process.sim());
        let published = self.process.call(rates, "publish", about, effect).await;
        published.unwrap_or_else(|Lost| Err(unavailable("publish a dispatch")))
    }

    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError> {
        let changed = Arc::new(Notify::new());
        let id = self.broker.on(hub, |queue| {
            queue.last_consumer += 1;
            let consumer = Consumer {
                changed: Arc::clone(&changed),
                ..Consumer::default()
            };
            queue.consumers.insert(queue.last_consumer, consumer);
            queue.last_consumer
        });
        Ok(Box::new(Consuming {
            link: Arc::new(Link {
                broker: self.broker.clone(),
                process: self.process.clone(),
                hub: hub.clone(),
                consumer: id,
            }),
            at_once,
            changed,
        }))
    }

    async fn depth(&self, hub: &HubName) -> Result<Depth, QueueError> {
        let (broker, on) = (self.broker.clone(), hub.clone());
        let effect = async move {
            broker.on(&on, |queue| Depth {
                waiting: queue.waiting.len(),
                consumers: queue.consumers.len(),
            })
        };
        let rates = fault_rates(self.process.sim());
        let call = self.process.call(rates, "depth", hub.to_string(), effect);
        call.await.map_err(|Lost| unavailable("ask for the depth"))
    }
}

/// The shared state of a consumer and the consumer's tickets.
struct Link {
    broker: Broker,
    process: Process,
    hub: HubName,
    consumer: u64,
}

impl Link {
    /// Breaks the connection and connects again: dispatches handed out go back into the queue.
    fn cut(&self) {
        self.process.sim().note(format_args!(
            "{} is CUT OFF from {}",
            self.process, self.hub
        ));
        self.broker.requeue_all(&self.hub, self.consumer, false);
    }

    fn is_cut(&self, op: &'static str, about: &str) -> bool {
        let sim = self.process.sim();
        let mut dice = self.process.dice(op, about);
        sim.has_faults_now() && dice.happens(sim.faults().consumer_cut)
    }

    /// Removes a dispatch from the dispatches held by the consumer.
    fn settle(&self, tag: u64) -> Option<Dispatch> {
        self.broker.on(&self.hub, |queue| {
            let consumer = queue.consumers.get_mut(&self.consumer)?;
            consumer.held.remove(&tag)
        })
    }
}

impl Drop for Link {
    /// Takes back the dispatches after the drop of the consumer and all tickets. After a crash, the
    /// broker needs some time to notice.
    fn drop(&mut self) {
        let (broker, hub, consumer) = (self.broker.clone(), self.hub.clone(), self.consumer);
        if !self.process.is_crashed() {
            return broker.requeue_all(&hub, consumer, true);
        }
        let noticed = self.process.dice("noticed", self.hub.as_str());
        let noticed = noticed.clone().time(Duration::ZERO..=MAX_NOTICE_TIME);
        // Without a runtime, the world is being torn down.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                sleep(noticed).await;
                broker.requeue_all(&hub, consumer, true);
            });
        }
    }
}

struct Consuming {
    link: Arc<Link>,
    at_once: usize,
    changed: Arc<Notify>,
}

impl Drop for Consuming {
    /// Takes back the dispatches handed out, although the tickets may live longer.
    fn drop(&mut self) {
        if !self.link.process.is_crashed() {
            let link = &self.link;
            link.broker.requeue_all(&link.hub, link.consumer, true);
        }
    }
}

#[async_trait]
impl Deliveries for Consuming {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        loop {
            let link = &self.link;
            link.process.until_responsive().await;
            let at_once = self.at_once;
            let taken = link.broker.on_quietly(&link.hub, |queue| {
                let consumer = queue.consumers.get_mut(&link.consumer)?;
                if consumer.held.len() >= at_once {
                    return None;
                }
                let next = queue.waiting.pop_front()?;
                consumer.last_tag += 1;
                consumer
                    .held
                    .insert(consumer.last_tag, next.dispatch.clone());
                Some((consumer.last_tag, next))
            });
            if let Some((tag, next)) = taken {
                let about = format!("{}/{}", next.dispatch.rollout, next.dispatch.batch);
                if link.is_cut("take", &about) {
                    link.cut();
                    continue;
                }
                link.process
                    .sim()
                    .note(format_args!("{} takes {about}", link.process));
                return Ok(Delivery {
                    dispatch: next.dispatch,
                    redelivered: next.redelivered,
                    ticket: Box::new(Answer {
                        link: Arc::clone(link),
                        tag: Some(tag),
                        about,
                    }),
                });
            }
            self.changed.notified().await;
        }
    }
}

struct Answer {
    link: Arc<Link>,
    /// None after the answer.
    tag: Option<u64>,
    about: String,
}

impl Answer {
    async fn give(mut self: Box<Self>, op: &'static str, requeue: bool) -> Result<(), QueueError> {
        let tag = self.tag.take().expect("a ticket is answered once");
        if self.link.is_cut(op, &self.about) {
            self.link.cut();
            return Err(unavailable("settle a dispatch"));
        }
        let link = Arc::clone(&self.link);
        let effect = async move {
            let settled = link.settle(tag).ok_or(Lost)?;
            if requeue {
                let back = |queue: &mut HubQueue| queue.waiting.push_back(requeued(settled));
                link.broker.on(&link.hub, back);
            }
            Ok(())
        };
        let rates = fault_rates(self.link.process.sim());
        let about = self.about.clone();
        let given = self.link.process.call(rates, op, about, effect).await;
        if given.is_err() {
            // A lost answer breaks the connection.
            self.link.cut();
        }
        given
            .and_then(|given| given)
            .map_err(|Lost| unavailable("settle a dispatch"))
    }
}

#[async_trait]
impl Ticket for Answer {
    async fn ack(self: Box<Self>) -> Result<(), QueueError> {
        self.give("ack", false).await
    }

    async fn requeue(self: Box<Self>) -> Result<(), QueueError> {
        self.give("requeue", true).await
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(tag) = self.tag
            && !self.link.process.is_crashed()
            && let Some(dispatch) = self.link.settle(tag)
        {
            let back = |queue: &mut HubQueue| queue.waiting.push_back(requeued(dispatch));
            self.link.broker.on(&self.link.hub, back);
        }
    }
}
