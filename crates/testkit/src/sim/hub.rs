//! A hub with a weather of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use twincast_core::answer::Answer;
use twincast_core::ids::{DeviceId, HubName};
use twincast_core::message::Outbound;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    DevicePage, DeviceQuery, DeviceRow, Feedback, Hub, HubError, HubTrouble, NotSent, OddRow,
    SendResult,
};
use twincast_core::query::{PropertyName, TagPath};

pub use super::condition::Tags;
use super::condition::matches;
use super::post::{Post, Receiver, Telling};
use super::process::{Odds, lock};
use super::{Bug, Process, Witnessed};

/// Devices in a page of an answer. Far fewer than a real hub's, so that there are several.
const PAGE: usize = 20;

/// What a hub does to those who want something of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Sky {
    /// It takes nothing from anyone.
    Shut {
        /// When it says that it may.
        retry_after: Option<Duration>,
    },
    /// There is no connection.
    Unreachable,
    /// It refuses this part of all sends for its quota.
    Throttling {
        /// Of all sends.
        share: f64,
        /// When it says that it may take more.
        retry_after: Option<Duration>,
    },
    /// It cannot take this part of all sends just now.
    Refusing {
        /// Of all sends.
        share: f64,
    },
    /// It takes messages and does not say so.
    LosingAnswers {
        /// Of all sends.
        share: f64,
    },
    /// Messages do not reach it, and nobody knows.
    LosingMessages {
        /// Of all sends.
        share: f64,
    },
    /// Its answers take longer.
    Slow {
        /// By this much at the most.
        by: Duration,
    },
}

/// A time with a sky.
#[derive(Debug, Clone, PartialEq)]
pub struct SkyWindow {
    /// From when on, in the world's age.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
    /// What is the matter then.
    pub sky: Sky,
}

/// A hub of a simulated world.
#[derive(Debug, Clone)]
pub struct SimHub {
    /// Its name.
    pub name: HubName,
    /// Its devices.
    pub devices: BTreeMap<DeviceId, Tags>,
    /// Those that are not in any target from the beginning to the end: from which age of the world on they are, and until which.
    pub comings: BTreeMap<DeviceId, (Duration, Duration)>,
    /// Those that it refuses for good, with the outcome and the code.
    pub refuses: BTreeMap<DeviceId, (Outcome, u32)>,
    /// What those of its devices make of a message that do not complete it; `None` for nothing, ever.
    pub reacts: BTreeMap<DeviceId, Option<Outcome>>,
    /// How it tells of that.
    pub telling: Telling,
    /// Where it does.
    pub post: Post,
    /// How long an answer takes at the most, when all is well.
    pub latency: Duration,
    /// When what goes wrong. Where two are at once, the first counts.
    pub skies: Vec<SkyWindow>,
}

impl SimHub {
    /// The way of a process to it.
    #[must_use]
    pub fn connect(self: &Arc<Self>, process: &Process) -> Arc<dyn Hub> {
        Arc::new(Connection {
            hub: Arc::clone(self),
            process: process.clone(),
            under_way: Arc::default(),
        })
    }

    fn sky(&self, age: Duration) -> Option<&Sky> {
        let window = self
            .skies
            .iter()
            .find(|window| (window.from..window.to).contains(&age))?;
        Some(&window.sky)
    }

    /// Whether a device is in targets that fit it, at an age of the world.
    #[must_use]
    pub fn has(&self, device: &DeviceId, age: Duration) -> bool {
        let coming = self.comings.get(device);
        coming.is_none_or(|(from, to)| (*from..*to).contains(&age))
    }

    /// A page of devices, after a device, and whether there is more. It names that one again, as hubs do with twins that
    /// change meanwhile, and ends in a row that nobody understands.
    fn page(
        &self,
        query: &DeviceQuery,
        after: Option<&DeviceId>,
        age: Duration,
    ) -> (DevicePage, bool) {
        let mut rows = self.rows(query);
        rows.retain(|row| after <= Some(&row.device) && self.has(&row.device, age));
        let again = usize::from(rows.first().is_some_and(|row| after == Some(&row.device)));
        let is_last = rows.len() < PAGE + again;
        rows.truncate(PAGE + again);
        let odd = vec![OddRow::new("{}", "it has no id")];
        (DevicePage { rows, odd }, is_last)
    }

    fn rows(&self, query: &DeviceQuery) -> Vec<DeviceRow> {
        let matching = self
            .devices
            .iter()
            .filter(|(device, tags)| matches(&query.condition, device.as_str(), tags));
        let values = |tags: &Tags| {
            let paths = query.tags.iter();
            let value = |path: &TagPath| Some(Value::from(tags.get(path.as_str())?.as_str()));
            paths.map(value).collect()
        };
        matching
            .map(|(device, tags)| DeviceRow {
                device: device.clone(),
                tags: values(tags),
            })
            .collect()
    }
}

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) hub: Arc<SimHub>,
    pub(super) process: Process,
    under_way: Arc<Mutex<usize>>,
}

impl Connection {
    pub(super) fn sky(&self) -> Option<&Sky> {
        self.hub.sky(self.process.sim().age())
    }

    /// What the hub does with a message that reached it now.
    fn answer(&self, message: &Outbound) -> SendResult {
        let mut dice = self.process.dice("sky", &message.id);
        let detail = || "the sky".to_owned();
        let refuses = match self.hub.devices.contains_key(&message.device) {
            true => self.hub.refuses.get(&message.device).copied(),
            false => Some((Outcome::NotFound, 0)),
        };
        let result = refuses.map_or(SendResult::Enqueued, |(outcome, code)| SendResult::Final {
            outcome,
            code,
            detail: detail(),
        });
        match self.sky() {
            Some(Sky::Shut { retry_after }) => SendResult::HubShut {
                retry_after: *retry_after,
                reason: detail(),
                trouble: HubTrouble::Shut,
            },
            Some(Sky::Unreachable) => SendResult::NotSent {
                cause: NotSent::NoConnection,
                retry_after: None,
                detail: detail(),
            },
            Some(Sky::Throttling { share, retry_after }) if dice.happens(*share) => {
                SendResult::NotSent {
                    cause: NotSent::Throttled,
                    retry_after: *retry_after,
                    detail: detail(),
                }
            }
            Some(Sky::Refusing { share }) if dice.happens(*share) => SendResult::NotSent {
                cause: NotSent::Refused(dice.pick(&[0, 500_001, 503_003])),
                retry_after: None,
                detail: detail(),
            },
            Some(Sky::LosingAnswers { share }) if dice.happens(*share) => {
                if result == SendResult::Enqueued {
                    self.takes(message);
                }
                SendResult::Unknown { detail: detail() }
            }
            Some(Sky::LosingMessages { share }) if dice.happens(*share) => {
                SendResult::Unknown { detail: detail() }
            }
            _ => {
                if result == SendResult::Enqueued {
                    self.takes(message);
                }
                result
            }
        }
    }

    fn takes(&self, message: &Outbound) {
        let mut dice = self.process.dice("forget", message.device.as_str());
        let sim = self.process.sim();
        if !(sim.has(Bug::ForgetsMessages) && dice.happens(0.1)) {
            let accepted = Witnessed::Accepted(&self.hub.name, message);
            self.process.witness(&accepted);
            let reaction = self.hub.reacts.get(&message.device).copied();
            let reaction = reaction.unwrap_or(Some(Outcome::Delivered));
            // What nobody takes expires in its time.
            let reaction = match (reaction, message.content.ttl) {
                (Some(outcome), _) => Some((outcome, Duration::ZERO)),
                (None, Some(ttl)) => Some((Outcome::Expired, ttl)),
                (None, None) => None,
            };
            if let Some(reaction) = reaction {
                let (hub, telling) = (&self.hub.name, &self.hub.telling);
                let post = &self.hub.post;
                post.add(&self.process, telling, message, reaction, hub);
            }
        }
    }

    fn takes_time(&self, message: &Outbound) -> Duration {
        let mut dice = self.process.dice("latency", &message.id);
        let slower = match self.sky() {
            Some(Sky::Slow { by }) => dice.time(Duration::ZERO..=*by),
            _ => Duration::ZERO,
        };
        dice.time(Duration::ZERO..=self.hub.latency) + slower
    }

    /// Asks the registry.
    async fn ask<T: Send + 'static>(
        &self,
        op: &'static str,
        answer: impl FnOnce(&SimHub) -> T + Send + 'static,
    ) -> Result<T, HubError> {
        let about = self.hub.name.to_string();
        let error = |trouble| HubError {
            doing: format!("ask hub {} for its devices", self.hub.name),
            trouble,
            source: "the sky".into(),
        };
        match self.sky() {
            Some(Sky::Shut { .. }) => return Err(error(HubTrouble::Shut)),
            Some(Sky::Unreachable) => return Err(error(HubTrouble::Unreachable)),
            _ => {}
        }
        let hub = Arc::clone(&self.hub);
        let answer = async move { answer(&hub) };
        let asked = self.process.call(Odds::default(), op, about, answer).await;
        asked.map_err(|_| error(HubTrouble::Other))
    }
}

#[async_trait]
impl Hub for Connection {
    async fn count(&self, condition: &str) -> Result<u64, HubError> {
        let query = DeviceQuery {
            condition: condition.to_owned(),
            tags: Vec::new(),
        };
        self.ask("count", move |hub| hub.rows(&query).len() as u64)
            .await
    }

    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>> {
        // A page at a time, so that a process can crash between two of them.
        let pages = stream::unfold(Some(None), move |after: Option<Option<DeviceId>>| {
            let query = query.clone();
            async move {
                let after = after?;
                let sim = self.process.sim().clone();
                let page = move |hub: &SimHub| hub.page(&query, after.as_ref(), sim.age());
                let (page, is_last) = match self.ask("devices", page).await {
                    Ok(page) => page,
                    Err(error) => return Some((Err(error), None)),
                };
                let last = page.rows.last().map(|row| row.device.clone());
                let next = last.filter(|_| !is_last);
                Some((Ok(page), next.map(Some)))
            }
        });
        pages.boxed()
    }

    /// No device of a simulated hub answers in its twin.
    async fn count_states(
        &self,
        _: &str,
        _: &PropertyName,
    ) -> Result<Vec<(String, u64)>, HubError> {
        self.ask("count_states", |_| Vec::new()).await
    }

    fn answers(&self, _: &str, _: &PropertyName) -> BoxStream<'_, Result<Vec<Answer>, HubError>> {
        stream::empty().boxed()
    }

    fn is_ready(&self) -> bool {
        self.sky() != Some(&Sky::Unreachable)
    }

    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        Some(Box::new(Receiver(self.clone())))
    }

    async fn send(&self, message: Outbound) -> SendResult {
        let about = format!("{} to {}", message.id, self.hub.name);
        let course = self.process.enter(Odds::default(), "send", &about).await;
        let _under_way = UnderWay::begin(self);
        let sending = Witnessed::Sending(&self.hub.name, &message);
        self.process.witness(&sending);
        let result = self.answer(&message);
        let takes = self.takes_time(&message);
        self.process.leave(course, takes).await;
        let answered = Witnessed::Answered(&self.hub.name, &message, &result);
        self.process.witness(&answered);
        result
    }
}

/// Counts a send for as long as somebody waits for its answer.
struct UnderWay<'a>(&'a Connection);

impl<'a> UnderWay<'a> {
    fn begin(connection: &'a Connection) -> Self {
        let now = {
            let mut under_way = lock(&connection.under_way);
            *under_way += 1;
            *under_way
        };
        let many = Witnessed::UnderWay(&connection.hub.name, now);
        connection.process.witness(&many);
        Self(connection)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *lock(&self.0.under_way) -= 1;
    }
}
