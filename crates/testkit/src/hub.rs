//! A hub with scripted behaviour.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use twincast_core::answer::{Answer, DeviceError};
use twincast_core::ids::DeviceId;
use twincast_core::message::Outbound;
use twincast_core::ports::{
    DevicePage, DeviceQuery, DeviceRow, Feedback, FeedbackRecord, Hub, HubError, HubObstacle,
    HubTrouble, SendResult,
};
use twincast_core::query::PropertyName;

use crate::feedback::{FeedbackAnswered, FeedbackQueue};

/// The number of devices in a page, as on a real hub.
const PAGE: usize = 100;

/// A device's tags, by path.
type Tags = BTreeMap<String, String>;
/// The rule for the devices matching a condition.
type Matching = Arc<dyn Fn(&str, &DeviceId, &Tags) -> bool + Send + Sync>;

/// A send that arrived.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The target device.
    pub device: DeviceId,
    /// The message's id.
    pub id: String,
    /// The time of arrival, on tokio's clock.
    pub at: Instant,
}

/// A [`Hub`] with devices chosen by the test and scripted answers. Sends without a script are
/// enqueued. The hub can be down, be slow, or hold sends until the test releases them. Clones share
/// the hub.
#[derive(Clone)]
pub struct ScriptedHub {
    state: Arc<Mutex<State>>,
    /// The number of sends allowed to continue, of all arrived sends.
    released: Arc<watch::Sender<usize>>,
    arrived: Arc<watch::Sender<usize>>,
    feedback: Option<FeedbackQueue>,
}

struct State {
    devices: Vec<(DeviceId, Tags)>,
    matching: Matching,
    pages: Option<Vec<DevicePage>>,
    silent_since: Option<Instant>,
    next: VecDeque<SendResult>,
    by_device: HashMap<DeviceId, VecDeque<SendResult>>,
    always: HashMap<DeviceId, SendResult>,
    delay: Duration,
    down: bool,
    /// The devices' answers in their twins.
    answers: BTreeMap<DeviceId, Answer>,
    /// The number of queries for answers and for counts of answers.
    answer_queries: usize,
    /// The start of the time without a link for sends.
    not_ready_since: Option<Instant>,
    sent: Vec<Sent>,
    in_flight: usize,
    max_in_flight: usize,
}

impl fmt::Debug for ScriptedHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedHub").finish_non_exhaustive()
    }
}

impl ScriptedHub {
    /// Creates a hub with these devices, without tags.
    #[must_use]
    pub fn new(devices: impl IntoIterator<Item = DeviceId>) -> Self {
        Self::with_tags(devices.into_iter().map(|device| (device, Tags::new())))
    }

    /// Creates a hub with `count` devices `device-000000` and so on.
    #[must_use]
    pub fn of(count: u32) -> Self {
        Self::new((0..count).map(|n| crate::build::device(&format!("device-{n:06}"))))
    }

    /// Creates a hub with these devices and tags.
    #[must_use]
    pub fn with_tags(devices: impl IntoIterator<Item = (DeviceId, Tags)>) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                devices: devices.into_iter().collect(),
                matching: Arc::new(|_, _, _| true),
                pages: None,
                silent_since: None,
                next: VecDeque::new(),
                by_device: HashMap::new(),
                always: HashMap::new(),
                delay: Duration::ZERO,
                down: false,
                answers: BTreeMap::new(),
                answer_queries: 0,
                not_ready_since: None,
                sent: Vec::new(),
                in_flight: 0,
                max_in_flight: 0,
            })),
            released: Arc::new(watch::Sender::new(usize::MAX)),
            arrived: Arc::new(watch::Sender::new(0)),
            feedback: Some(FeedbackQueue::default()),
        }
    }

    /// Turns the feedback of the hub off.
    #[must_use]
    pub fn without_feedback(self) -> Self {
        Self {
            feedback: None,
            ..self
        }
    }

    /// Sets the rule for the devices matching a condition. Without a rule, every condition matches
    /// all devices.
    #[must_use]
    pub fn matching(
        self,
        rule: impl Fn(&str, &DeviceId, &Tags) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.state().matching = Arc::new(rule);
        self
    }

    /// Scripts the answers to the next sends, to any device.
    pub fn answer_next(&self, results: impl IntoIterator<Item = SendResult>) {
        self.state().next.extend(results);
    }

    /// Scripts the answers to the next sends to a device. These answers precede the answers of
    /// [`Self::answer_next`].
    pub fn answer_device(&self, device: &DeviceId, results: impl IntoIterator<Item = SendResult>) {
        let mut state = self.state();
        state
            .by_device
            .entry(device.clone())
            .or_default()
            .extend(results);
    }

    /// Scripts the answer to every further send to a device.
    pub fn answer_device_always(&self, device: &DeviceId, result: SendResult) {
        self.state().always.insert(device.clone(), result);
    }

    /// Sets the duration of each send, on tokio's clock.
    pub fn set_delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Replaces the hub's devices with devices without tags.
    pub fn set_devices(&self, devices: impl IntoIterator<Item = DeviceId>) {
        let devices = devices.into_iter().map(|device| (device, Tags::new()));
        self.state().devices = devices.collect();
    }

    /// From now on, answers every query for devices with these pages.
    pub fn set_pages(&self, pages: impl IntoIterator<Item = DevicePage>) {
        self.state().pages = Some(pages.into_iter().collect());
    }

    /// Stops or resumes the answers to queries for devices, after the first page.
    pub fn set_silent_after_first_page(&self, silent: bool) {
        self.state().silent_since = silent.then(Instant::now);
    }

    /// Takes the hub down, or brings the hub back. While the hub is down, queries fail, and sends
    /// fail with [`SendResult::HubUnavailable`] without counting as sent.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Sets a device's answer in the twin, replacing the answer before. The form of `error` is
    /// `code: text`.
    pub fn report(&self, device: &DeviceId, message_id: &str, state: &str, error: &str) {
        let (code, text) = error.split_once(": ").unwrap_or(("", error));
        let answer = Answer {
            message_id: message_id.to_owned(),
            device: device.to_string(),
            state: state.to_owned(),
            error: DeviceError::new(code, text),
        };
        self.state().answers.insert(device.clone(), answer);
    }

    /// Returns the number of queries for answers and for counts of answers.
    #[must_use]
    pub fn answer_queries(&self) -> usize {
        self.state().answer_queries
    }

    /// Returns the answers matching a condition of [`PropertyName::answers_in`].
    fn answers_like(&self, condition: &str) -> Result<Vec<Answer>, HubError> {
        let mut state = self.state();
        if state.down {
            return Err(unreachable("ask for answers"));
        }
        state.answer_queries += 1;
        let mut texts = condition.split('\'').skip(1).step_by(2);
        let prefix = texts.next().expect("a prefix of message ids");
        let states: Vec<_> = texts.collect();
        let answers = state.answers.values();
        let alike = answers.filter(|answer| {
            let is_in = states.is_empty() || states.contains(&answer.state.as_str());
            is_in && answer.message_id.starts_with(prefix)
        });
        Ok(alike.cloned().collect())
    }

    /// Sets whether the hub reports to be ready for sends. Sends made nevertheless arrive.
    pub fn set_ready(&self, ready: bool) {
        self.state().not_ready_since = (!ready).then(Instant::now);
    }

    /// Holds all further sends until released. Sends already arrived continue.
    pub fn hold(&self) {
        let arrived = *self.arrived.borrow();
        self.released.send_replace(arrived);
    }

    /// Releases `count` more sends, in the order of arrival.
    pub fn release(&self, count: usize) {
        self.released
            .send_modify(|limit| *limit = limit.saturating_add(count));
    }

    /// Releases all sends, including future sends.
    pub fn release_all(&self) {
        self.released.send_replace(usize::MAX);
    }

    /// Waits until `count` sends have arrived since the start, held or not.
    pub async fn arrived(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let reached = arrived.wait_for(|so_far| *so_far >= count).await;
        reached.expect("this hub keeps the sender");
    }

    /// Returns all arrived sends, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.state().sent.clone()
    }

    /// Returns the number of arrived sends.
    #[must_use]
    pub fn sends(&self) -> usize {
        self.state().sent.len()
    }

    /// Returns the number of arrived sends for each device.
    #[must_use]
    pub fn sends_by_device(&self) -> BTreeMap<DeviceId, usize> {
        self.count_by(|sent| sent.device.clone())
    }

    /// Returns the number of arrived sends for each message id.
    #[must_use]
    pub fn sends_by_id(&self) -> BTreeMap<String, usize> {
        self.count_by(|sent| sent.id.clone())
    }

    /// Returns the largest number of sends in progress at the same time.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.state().max_in_flight
    }

    /// Puts a message into the feedback queue. A released message waits again at once.
    ///
    /// # Panics
    /// If the hub gives no feedback.
    pub fn push_feedback(&self, records: impl IntoIterator<Item = FeedbackRecord>) {
        self.feedback_queue().push(records.into_iter().collect(), 0);
    }

    /// Puts a message into the feedback queue, with `unreadable` further records that cannot be
    /// read.
    ///
    /// # Panics
    /// If the hub gives no feedback.
    pub fn push_feedback_with_unreadable(
        &self,
        records: impl IntoIterator<Item = FeedbackRecord>,
        unreadable: u64,
    ) {
        let records = records.into_iter().collect();
        self.feedback_queue().push(records, unreadable);
    }

    /// Refuses the next `times` calls for feedback, with a permanent error.
    ///
    /// # Panics
    /// If the hub gives no feedback.
    pub fn refuse_feedback(&self, times: usize) {
        self.feedback_queue().refuse_next(times);
    }

    /// Returns the number of feedback receivers created so far.
    #[must_use]
    pub fn feedback_listeners(&self) -> usize {
        self.feedback.as_ref().map_or(0, FeedbackQueue::listeners)
    }

    /// Returns the number of waiting feedback messages, without the messages handed out.
    #[must_use]
    pub fn feedback_waiting(&self) -> usize {
        self.feedback.as_ref().map_or(0, FeedbackQueue::waiting)
    }

    /// Returns all answers to feedback messages, in order.
    #[must_use]
    pub fn feedback_answered(&self) -> Vec<FeedbackAnswered> {
        let answered = self.feedback.as_ref().map(FeedbackQueue::answered);
        answered.unwrap_or_default()
    }

    /// Waits for `count` answers to feedback messages, counted from the start.
    ///
    /// # Panics
    /// If the hub gives no feedback.
    pub async fn until_feedback_answered(&self, count: usize) {
        self.feedback_queue().until_answered(count).await;
    }

    fn feedback_queue(&self) -> &FeedbackQueue {
        self.feedback.as_ref().expect("a hub that gives feedback")
    }

    fn count_by<K: Ord>(&self, key: impl Fn(&Sent) -> K) -> BTreeMap<K, usize> {
        let mut counts = BTreeMap::new();
        for sent in &self.state().sent {
            *counts.entry(key(sent)).or_default() += 1;
        }
        counts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows(&self, query: &DeviceQuery) -> Result<Vec<DeviceRow>, HubError> {
        let state = self.state();
        if state.down {
            return Err(unreachable("list devices"));
        }
        let rows = state
            .devices
            .iter()
            .filter(|(device, tags)| (state.matching)(&query.condition, device, tags))
            .map(|(device, tags)| DeviceRow {
                device: device.clone(),
                tags: query
                    .tags
                    .iter()
                    .map(|path| Some(Value::from(tags.get(path.as_str())?.as_str())))
                    .collect(),
            });
        Ok(rows.collect())
    }
}

fn unreachable(doing: &str) -> HubError {
    HubError {
        doing: format!("{doing} on the scripted hub"),
        trouble: HubTrouble::Unreachable,
        source: "it is down".into(),
    }
}

/// Counts a send as in progress until dropped: a caller may drop a send.
struct InFlight<'a>(&'a ScriptedHub);

impl<'a> InFlight<'a> {
    fn begin(hub: &'a ScriptedHub) -> Self {
        let mut state = hub.state();
        state.in_flight += 1;
        state.max_in_flight = state.max_in_flight.max(state.in_flight);
        Self(hub)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

#[async_trait]
impl Hub for ScriptedHub {
    async fn count(&self, condition: &str) -> Result<u64, HubError> {
        let query = DeviceQuery {
            condition: condition.to_owned(),
            tags: vec![],
        };
        Ok(self.rows(&query)?.len() as u64)
    }

    fn devices(&self, query: DeviceQuery) -> BoxStream<'_, Result<DevicePage, HubError>> {
        let page = |rows: &[DeviceRow]| DevicePage {
            rows: rows.to_vec(),
            malformed_rows: Vec::new(),
        };
        let scripted = self.state().pages.clone();
        let pages = match (self.rows(&query), scripted) {
            (Err(error), _) => vec![Err(error)],
            (Ok(_), Some(pages)) => pages.into_iter().map(Ok).collect(),
            (Ok(rows), None) => rows.chunks(PAGE).map(|rows| Ok(page(rows))).collect(),
        };
        let mut pages = stream::iter(pages);
        let first = pages.next().now_or_never().flatten();
        let rest = pages.then(async |page| {
            while self.state().silent_since.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            page
        });
        stream::iter(first).chain(rest).boxed()
    }

    async fn count_states(
        &self,
        condition: &str,
        _: &PropertyName,
    ) -> Result<Vec<(String, u64)>, HubError> {
        let mut counts = BTreeMap::<String, u64>::new();
        for answer in self.answers_like(condition)? {
            *counts.entry(answer.state).or_default() += 1;
        }
        Ok(counts.into_iter().collect())
    }

    fn answers(
        &self,
        condition: &str,
        _: &PropertyName,
    ) -> BoxStream<'_, Result<Vec<Answer>, HubError>> {
        let pages = match self.answers_like(condition) {
            Ok(answers) => answers.chunks(PAGE).map(|page| Ok(page.to_vec())).collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(pages).boxed()
    }

    fn query_obstacle(&self) -> Option<HubObstacle> {
        let since = self.state().silent_since?;
        Some(HubObstacle {
            trouble: HubTrouble::Unreachable,
            lasting: since.elapsed(),
            reason: "it is silent".into(),
        })
    }

    fn is_ready(&self) -> bool {
        self.state().not_ready_since.is_none()
    }

    fn has_link(&self) -> Option<bool> {
        Some(self.is_ready())
    }

    fn obstacle(&self) -> Option<HubObstacle> {
        let since = self.state().not_ready_since?;
        Some(HubObstacle {
            trouble: HubTrouble::Unreachable,
            lasting: since.elapsed(),
            reason: "no route".into(),
        })
    }

    fn feedback(&self) -> Option<Box<dyn Feedback>> {
        self.feedback.as_ref().map(FeedbackQueue::listener)
    }

    async fn send(&self, message: Outbound) -> SendResult {
        let (delay, place) = {
            let mut state = self.state();
            if state.down {
                return SendResult::HubUnavailable {
                    retry_after: None,
                    reason: "it is down".into(),
                    trouble: HubTrouble::Unreachable,
                };
            }
            state.sent.push(Sent {
                device: message.device.clone(),
                id: message.id,
                at: Instant::now(),
            });
            (state.delay, state.sent.len())
        };
        let _in_flight = InFlight::begin(self);
        self.arrived
            .send_modify(|arrived| *arrived = place.max(*arrived));
        let mut released = self.released.subscribe();
        let reached = released.wait_for(|limit| *limit >= place).await;
        drop(reached);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.state().result(&message.device)
    }
}

impl State {
    fn result(&mut self, device: &DeviceId) -> SendResult {
        let scripted = self.by_device.get_mut(device);
        scripted
            .and_then(VecDeque::pop_front)
            .or_else(|| self.always.get(device).cloned())
            .or_else(|| self.next.pop_front())
            .unwrap_or(SendResult::Enqueued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::device;
    use crate::conformance::run;

    fn message(to: &str) -> Outbound {
        Outbound {
            device: device(to),
            id: format!("r.0.{to}.1"),
            content: Arc::new(twincast_core::message::Content {
                body: Default::default(),
                content_type: None,
                content_encoding: None,
                properties: vec![],
                ttl: None,
                ack: Default::default(),
            }),
        }
    }

    #[test]
    fn the_hub_answers_by_the_script_and_counts_sends() {
        run(async {
            let hub = ScriptedHub::of(250);
            let unknown = SendResult::Unknown { detail: "x".into() };
            hub.answer_device(&device("d"), [unknown.clone()]);
            assert_eq!(hub.send(message("d")).await, unknown);
            assert_eq!(hub.send(message("d")).await, SendResult::Enqueued);
            hub.answer_next([unknown.clone()]);
            assert_eq!(hub.send(message("e")).await, unknown);
            assert_eq!(hub.sends_by_device()[&device("d")], 2);
            assert_eq!(hub.sends_by_id()["r.0.e.1"], 1);
            assert_eq!(hub.count("x").await.unwrap(), 250);
            hub.set_down(true);
            assert!(hub.count("x").await.is_err());
            assert!(matches!(
                hub.send(message("d")).await,
                SendResult::HubUnavailable { .. }
            ));
            assert_eq!(hub.sends(), 3);
        });
    }

    #[test]
    fn sends_are_held_until_released() {
        run(async {
            let hub = ScriptedHub::of(1);
            hub.hold();
            let mut first = Box::pin(hub.send(message("a")));
            let mut second = Box::pin(hub.send(message("b")));
            assert!((&mut first).now_or_never().is_none());
            assert!((&mut second).now_or_never().is_none());
            hub.arrived(2).await;
            hub.release(1);
            assert_eq!(first.await, SendResult::Enqueued);
            assert!((&mut second).now_or_never().is_none());
            hub.release_all();
            assert_eq!(second.await, SendResult::Enqueued);
            assert_eq!(hub.max_in_flight(), 2);
        });
    }
}
