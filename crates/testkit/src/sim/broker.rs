//! A queue that loses, repeats, reorders and delays dispatches, and connections that break.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::sleep;
use twincast_core::ids::HubName;
use twincast_core::ports::{Deliveries, Delivery, Depth, Dispatch, Queue, QueueError, Ticket};

use super::process::{Lost, Odds, lock};
use super::{Bug, Process, Sim, Witnessed};

/// A dispatch that comes late comes so much later at the most.
const LATEST: Duration = Duration::from_secs(30);
/// How long a broker takes at the most to see that a process is gone.
const NOTICED: Duration = Duration::from_secs(3);

/// A broker with a line for each hub. Clones are the same.
#[derive(Clone)]
pub struct Broker {
    sim: Sim,
    limit: usize,
    lines: Arc<Mutex<BTreeMap<HubName, Line>>>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    consumers: BTreeMap<u64, Consumer>,
    last_consumer: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    dispatch: Dispatch,
    redelivered: bool,
}

/// A consumer's side that the broker knows.
#[derive(Default)]
struct Consumer {
    held: BTreeMap<u64, Dispatch>,
    last_tag: u64,
    /// Told when the line has changed: each consumer by itself, for that has an order.
    changed: Arc<Notify>,
}

impl Broker {
    /// A broker on whose lines up to `limit` dispatches may wait.
    #[must_use]
    pub fn new(sim: &Sim, limit: usize) -> Self {
        Self {
            sim: sim.clone(),
            limit,
            lines: Arc::default(),
        }
    }

    /// The way of a process to it.
    #[must_use]
    pub fn connect(&self, process: &Process) -> Arc<dyn Queue> {
        Arc::new(Connection {
            broker: self.clone(),
            process: process.clone(),
        })
    }

    /// Throws away what waits on a hub's line.
    pub fn purge(&self, hub: &HubName) {
        let thrown = self.on(hub, |line| std::mem::take(&mut line.waiting).len());
        self.sim
            .note(format_args!("queue of {hub} PURGED of {thrown}"));
    }

    /// Dispatches that nobody has answered for, waiting or handed out, on all lines.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        let lines = lock(&self.lines);
        let of_line = |line: &Line| {
            let held = line.consumers.values().map(|consumer| consumer.held.len());
            line.waiting.len() + held.sum::<usize>()
        };
        lines.values().map(of_line).sum()
    }

    /// Changes a line, and wakes those who wait for that.
    fn on<T>(&self, hub: &HubName, change: impl FnOnce(&mut Line) -> T) -> T {
        self.on_quietly(hub, |line| {
            let result = change(line);
            for consumer in line.consumers.values() {
                consumer.changed.notify_one();
            }
            result
        })
    }

    fn on_quietly<T>(&self, hub: &HubName, change: impl FnOnce(&mut Line) -> T) -> T {
        change(lock(&self.lines).entry(hub.clone()).or_default())
    }

    /// Puts a dispatch on its line.
    fn put(&self, by: &Process, dispatch: &Dispatch) -> Result<(), QueueError> {
        let name = &dispatch.hub;
        let mut dice = by.dice("line", &dispatch.batch.to_string());
        let place = dice.number();
        let shuffled = self.sim.is_chaotic() && self.sim.faults().dispatch_late > 0.0;
        let put = self.on(name, |line| {
            if line.waiting.len() >= self.limit {
                return Err(QueueError::Full {
                    hub: name.clone(),
                    limit: self.limit,
                });
            }
            let end = line.waiting.len();
            let place = if shuffled {
                place as usize % (end + 1)
            } else {
                end
            };
            let new = Waiting {
                dispatch: dispatch.clone(),
                redelivered: false,
            };
            line.waiting.insert(place, new);
            Ok(line.waiting.len())
        });
        by.witness(&Witnessed::Waiting(name, put?));
        Ok(())
    }

    /// Takes back what a consumer holds; with its end, the consumer is gone as well.
    fn take_back(&self, hub: &HubName, consumer: u64, gone: bool) {
        self.on(hub, |line| {
            let Some(known) = line.consumers.get_mut(&consumer) else {
                return;
            };
            let held = std::mem::take(&mut known.held);
            if gone {
                line.consumers.remove(&consumer);
            }
            line.waiting.extend(held.into_values().map(again));
        });
    }
}

fn again(dispatch: Dispatch) -> Waiting {
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

fn odds(sim: &Sim) -> Odds {
    Odds {
        fails: sim.faults().queue_fails,
        ..Odds::default()
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
            let chaotic = sim.is_chaotic();
            if chaotic && dice.happens(faults.dispatch_lost)
                || sim.has(Bug::ForgetsDispatches) && dice.happens(0.5)
            {
                sim.note(format_args!("dispatch of {} LOST", sent.batch));
                return Ok(());
            }
            if chaotic && dice.happens(faults.dispatch_late) {
                let after = dice.time(Duration::ZERO..=LATEST);
                tokio::spawn(async move {
                    sleep(after).await;
                    // A line that is full by then loses it.
                    let _ = broker.put(&by, &sent);
                });
                return Ok(());
            }
            if chaotic && dice.happens(faults.dispatch_doubled) {
                broker.put(&by, &sent)?;
            }
            broker.put(&by, &sent)
        };
        let about = format!("{}/{}", dispatch.rollout, dispatch.batch);
        let odds = odds(self.process.sim());
        let published = self.process.call(odds, "publish", about, effect).await;
        published.unwrap_or_else(|Lost| Err(unavailable("publish a dispatch")))
    }

    async fn consume(
        &self,
        hub: &HubName,
        at_once: usize,
    ) -> Result<Box<dyn Deliveries>, QueueError> {
        let changed = Arc::new(Notify::new());
        let id = self.broker.on(hub, |line| {
            line.last_consumer += 1;
            let consumer = Consumer {
                changed: Arc::clone(&changed),
                ..Consumer::default()
            };
            line.consumers.insert(line.last_consumer, consumer);
            line.last_consumer
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
            broker.on(&on, |line| Depth {
                waiting: line.waiting.len(),
                consumers: line.consumers.len(),
            })
        };
        let odds = odds(self.process.sim());
        let asked = self.process.call(odds, "depth", hub.to_string(), effect);
        asked.await.map_err(|Lost| unavailable("ask for the depth"))
    }
}

/// What a consumer and its tickets share.
struct Link {
    broker: Broker,
    process: Process,
    hub: HubName,
    consumer: u64,
}

impl Link {
    /// The connection breaks, and is made anew: what was handed out goes back.
    fn cut(&self) {
        self.process.sim().note(format_args!(
            "{} is CUT OFF from {}",
            self.process, self.hub
        ));
        self.broker.take_back(&self.hub, self.consumer, false);
    }

    fn is_cut(&self, op: &'static str, about: &str) -> bool {
        let sim = self.process.sim();
        let mut dice = self.process.dice(op, about);
        sim.is_chaotic() && dice.happens(sim.faults().consumer_cut)
    }

    /// Takes a dispatch out of the consumer's hands.
    fn settle(&self, tag: u64) -> Option<Dispatch> {
        self.broker.on(&self.hub, |line| {
            let consumer = line.consumers.get_mut(&self.consumer)?;
            consumer.held.remove(&tag)
        })
    }
}

impl Drop for Link {
    /// The last of the consumer and its tickets is gone.
    fn drop(&mut self) {
        let (broker, hub, consumer) = (self.broker.clone(), self.hub.clone(), self.consumer);
        if !self.process.is_crashed() {
            return broker.take_back(&hub, consumer, true);
        }
        let noticed = self.process.dice("noticed", self.hub.as_str());
        let noticed = noticed.clone().time(Duration::ZERO..=NOTICED);
        // Without a runtime the world is being taken down.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                sleep(noticed).await;
                broker.take_back(&hub, consumer, true);
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
    /// What is handed out goes back, though the tickets may be around for longer.
    fn drop(&mut self) {
        if !self.link.process.is_crashed() {
            let link = &self.link;
            link.broker.take_back(&link.hub, link.consumer, true);
        }
    }
}

#[async_trait]
impl Deliveries for Consuming {
    async fn next(&mut self) -> Result<Delivery, QueueError> {
        loop {
            let link = &self.link;
            link.process.until_awake().await;
            let at_once = self.at_once;
            let taken = link.broker.on_quietly(&link.hub, |line| {
                let consumer = line.consumers.get_mut(&link.consumer)?;
                if consumer.held.len() >= at_once {
                    return None;
                }
                let next = line.waiting.pop_front()?;
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
    /// None once it is answered.
    tag: Option<u64>,
    about: String,
}

impl Answer {
    async fn give(mut self: Box<Self>, op: &'static str, requeue: bool) -> Result<(), QueueError> {
        let tag = self.tag.take().expect("a ticket is answered once");
        if self.link.is_cut(op, &self.about) {
            self.link.cut();
            return Err(unavailable("answer for a dispatch"));
        }
        let link = Arc::clone(&self.link);
        let effect = async move {
            let settled = link.settle(tag).ok_or(Lost)?;
            if requeue {
                let back = |line: &mut Line| line.waiting.push_back(again(settled));
                link.broker.on(&link.hub, back);
            }
            Ok(())
        };
        let odds = odds(self.link.process.sim());
        let about = self.about.clone();
        let given = self.link.process.call(odds, op, about, effect).await;
        if given.is_err() {
            // An answer is lost with its connection.
            self.link.cut();
        }
        given
            .and_then(|given| given)
            .map_err(|Lost| unavailable("answer for a dispatch"))
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
            let back = |line: &mut Line| line.waiting.push_back(again(dispatch));
            self.link.broker.on(&self.link.hub, back);
        }
    }
}
