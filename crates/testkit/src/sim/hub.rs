//! A simulated hub with scheduled faults.

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
    DevicePage, DeviceQuery, DeviceRow, Feedback, Hub, HubError, HubTrouble, MalformedRow, NotSent,
    SendResult,
};
use twincast_core::query::{PropertyName, TagPath};

pub use super::condition::Tags;
use super::condition::matches;
use super::feedback::{FeedbackFaults, Receiver, SimFeedbackQueue};
use super::process::{FaultRates, lock};
use super::{Bug, Effect, Process};

/// The number of devices in a page. Far fewer than on a real hub, so that an answer has several
/// pages.
const PAGE: usize = 20;

/// A fault of a hub.
#[derive(Debug, Clone, PartialEq)]
pub enum HubFault {
    /// The hub accepts nothing from any caller.
    Unavailable {
        /// The announced time until a retry.
        retry_after: Option<Duration>,
    },
    /// The hub cannot be reached.
    Unreachable,
    /// The hub refuses a part of all sends because of the quota.
    Throttling {
        /// The part of all sends.
        share: f64,
        /// The announced time until a retry.
        retry_after: Option<Duration>,
    },
    /// The hub refuses a part of all sends with a transient error.
    Refusing {
        /// The part of all sends.
        share: f64,
    },
    /// The hub accepts a part of all messages without confirming them.
    LosingAnswers {
        /// The part of all sends.
        share: f64,
    },
    /// A part of all messages does not reach the hub, and no caller knows.
    LosingMessages {
        /// The part of all sends.
        share: f64,
    },
    /// The hub's answers take longer.
    Slow {
        /// The largest additional time.
        by: Duration,
    },
}

/// A period with a fault.
#[derive(Debug, Clone, PartialEq)]
pub struct HubFaultWindow {
    /// The start, as an age of the world.
    pub from: Duration,
    /// The end, as an age of the world.
    pub to: Duration,
    /// The fault in this period.
    pub fault: HubFault,
}

/// A hub of a simulated world.
#[derive(Debug, Clone)]
pub struct SimHub {
    /// The hub's name.
    pub name: HubName,
    /// The hub's devices.
    pub devices: BTreeMap<DeviceId, Tags>,
    /// Devices that belong to targets only for a time, from an age of the world until a later age.
    pub temporary_devices: BTreeMap<DeviceId, (Duration, Duration)>,
    /// Devices permanently refused by the hub, with the outcome and the code.
    pub refused_devices: BTreeMap<DeviceId, (Outcome, u32)>,
    /// The reactions of devices that do not complete a message; `None` for no reaction, ever.
    pub reactions: BTreeMap<DeviceId, Option<Outcome>>,
    /// The faults of the feedback.
    pub feedback_faults: FeedbackFaults,
    /// The feedback queue.
    pub feedback_queue: SimFeedbackQueue,
    /// The longest time of an answer without faults.
    pub latency: Duration,
    /// The scheduled faults. Of two faults at the same time, the first counts.
    pub faults: Vec<HubFaultWindow>,
}

impl SimHub {
    /// Connects a process to the hub.
    #[must_use]
    pub fn connect(self: &Arc<Self>, process: &Process) -> Arc<dyn Hub> {
        Arc::new(Connection {
            hub: Arc::clone(self),
            process: process.clone(),
            in_flight: Arc::default(),
        })
    }

    fn fault_at(&self, age: Duration) -> Option<&HubFault> {
        let window = self
            .faults
            .iter()
            .find(|window| (window.from..window.to).contains(&age))?;
        Some(&window.fault)
    }

    /// Returns whether a device belongs to the matching targets, at an age of the world.
    #[must_use]
    pub fn has(&self, device: &DeviceId, age: Duration) -> bool {
        let coming = self.temporary_devices.get(device);
        coming.is_none_or(|(from, to)| (*from..*to).contains(&age))
    }

    /// Returns a page of devices after a device, and whether the page is the last. The page repeats
    /// the given device, as hubs do with twins that change meanwhile, and ends with an unreadable
    /// row.
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
        let malformed_rows = vec![MalformedRow::new("{}", "it has no id")];
        (
            DevicePage {
                rows,
                malformed_rows,
            },
            is_last,
        )
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
    in_flight: Arc<Mutex<usize>>,
}

impl Connection {
    pub(super) fn fault(&self) -> Option<&HubFault> {
        self.hub.fault_at(self.process.sim().age())
    }

    /// Returns the hub's answer to a message arriving now. Accepts the message unless refused or
    /// lost.
    fn answer(&self, message: &Outbound) -> SendResult {
        let mut dice = self.process.dice("sky", &message.id);
        let detail = || "decided by the simulation".to_owned();
        let refusal = match self.hub.devices.contains_key(&message.device) {
            true => self.hub.refused_devices.get(&message.device).copied(),
            false => Some((Outcome::NotFound, 0)),
        };
        let result = refusal.map_or(SendResult::Enqueued, |(outcome, code)| SendResult::Final {
            outcome,
            code,
            detail: detail(),
        });
        match self.fault() {
            Some(HubFault::Unavailable { retry_after }) => SendResult::HubUnavailable {
                retry_after: *retry_after,
                reason: detail(),
                trouble: HubTrouble::Unavailable,
            },
            Some(HubFault::Unreachable) => SendResult::NotSent {
                cause: NotSent::NoConnection,
                retry_after: None,
                detail: detail(),
            },
            Some(HubFault::Throttling { share, retry_after }) if dice.happens(*share) => {
                SendResult::NotSent {
                    cause: NotSent::Throttled,
                    retry_after: *retry_after,
                    detail: detail(),
                }
            }
            Some(HubFault::Refusing { share }) if dice.happens(*share) => SendResult::NotSent {
                cause: NotSent::Refused(dice.pick(&[0, 500_001, 503_003])),
                retry_after: None,
                detail: detail(),
            },
            Some(HubFault::LosingAnswers { share }) if dice.happens(*share) => {
                if result == SendResult::Enqueued {
                    self.accept(message);
                }
                SendResult::Unknown { detail: detail() }
            }
            Some(HubFault::LosingMessages { share }) if dice.happens(*share) => {
                SendResult::Unknown { detail: detail() }
            }
            _ => {
                if result == SendResult::Enqueued {
                    self.accept(message);
                }
                result
            }
        }
    }

    fn accept(&self, message: &Outbound) {
        let mut dice = self.process.dice("forget", message.device.as_str());
        let sim = self.process.sim();
        if !(sim.has(Bug::ForgetsMessages) && dice.happens(0.1)) {
            let accepted = Effect::Accepted(&self.hub.name, message);
            self.process.observe(&accepted);
            let reaction = self.hub.reactions.get(&message.device).copied();
            let reaction = reaction.unwrap_or(Some(Outcome::Delivered));
            // A message without a reaction expires after its time to live.
            let reaction = match (reaction, message.content.ttl) {
                (Some(outcome), _) => Some((outcome, Duration::ZERO)),
                (None, Some(ttl)) => Some((Outcome::Expired, ttl)),
                (None, None) => None,
            };
            if let Some(reaction) = reaction {
                let (hub, feedback_faults) = (&self.hub.name, &self.hub.feedback_faults);
                let feedback_queue = &self.hub.feedback_queue;
                feedback_queue.add(&self.process, feedback_faults, message, reaction, hub);
            }
        }
    }

    fn latency_of(&self, message: &Outbound) -> Duration {
        let mut dice = self.process.dice("latency", &message.id);
        let slower = match self.fault() {
            Some(HubFault::Slow { by }) => dice.time(Duration::ZERO..=*by),
            _ => Duration::ZERO,
        };
        dice.time(Duration::ZERO..=self.hub.latency) + slower
    }

    /// Makes a call to the registry.
    async fn ask<T: Send + 'static>(
        &self,
        op: &'static str,
        answer: impl FnOnce(&SimHub) -> T + Send + 'static,
    ) -> Result<T, HubError> {
        let about = self.hub.name.to_string();
        let error = |trouble| HubError {
            doing: format!("ask hub {} for its devices", self.hub.name),
            trouble,
            source: "decided by the simulation".into(),
        };
        match self.fault() {
            Some(HubFault::Unavailable { .. }) => return Err(error(HubTrouble::Unavailable)),
            Some(HubFault::Unreachable) => return Err(error(HubTrouble::Unreachable)),
            _ => {}
        }
        let hub = Arc::clone(&self.hub);
        let answer = async move { answer(&hub) };
        let reply = self
            .process
            .call(FaultRates::default(), op, about, answer)
            .await;
        reply.map_err(|_| error(HubTrouble::Other))
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
        // Each page is a separate call, so that a process can crash between two pages.
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

    /// Devices of a simulated hub do not answer in their twins.
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
        self.fault() != Some(&HubFault::Unreachable)
    }

    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        Some(Box::new(Receiver(self.clone())))
    }

    async fn send(&self, message: Outbound) -> SendResult {
        let about = format!("{} to {}", message.id, self.hub.name);
        let plan = self
            .process
            .begin_call(FaultRates::default(), "send", &about)
            .await;
        let _in_flight = InFlight::begin(self);
        let sending = Effect::Sending(&self.hub.name, &message);
        self.process.observe(&sending);
        let result = self.answer(&message);
        let takes = self.latency_of(&message);
        self.process.end_call(plan, takes).await;
        let answered = Effect::Answered(&self.hub.name, &message, &result);
        self.process.observe(&answered);
        result
    }
}

/// Counts a send as in progress while a caller waits for the answer.
struct InFlight<'a>(&'a Connection);

impl<'a> InFlight<'a> {
    fn begin(connection: &'a Connection) -> Self {
        let now = {
            let mut in_flight = lock(&connection.in_flight);
            *in_flight += 1;
            *in_flight
        };
        let many = Effect::InFlight(&connection.hub.name, now);
        connection.process.observe(&many);
        Self(connection)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        *lock(&self.0.in_flight) -= 1;
    }
}
