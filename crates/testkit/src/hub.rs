//! A hub that does as it is told.

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
    DevicePage, DeviceQuery, DeviceRow, Feedback, FeedbackRecord, Hindrance, Hub, HubError,
    HubTrouble, SendResult,
};
use twincast_core::query::PropertyName;

use crate::feedback::{FeedbackAnswered, FeedbackQueue};

/// Devices in a page of an answer, as a real hub has them.
const PAGE: usize = 100;

/// A device's tags, by their paths.
type Tags = BTreeMap<String, String>;
/// Which devices a condition means.
type Matching = Arc<dyn Fn(&str, &DeviceId, &Tags) -> bool + Send + Sync>;

/// One send that arrived.
#[derive(Debug, Clone)]
pub struct Sent {
    /// To whom.
    pub device: DeviceId,
    /// The message's id.
    pub id: String,
    /// When, on tokio's clock.
    pub at: Instant,
}

/// A [`Hub`] with devices of your choice, that answers by a script, and enqueues what there is no
/// script for. It can be down, slow, or hold sends until they are let go. Clones are the same hub.
#[derive(Clone)]
pub struct ScriptedHub {
    state: Arc<Mutex<State>>,
    /// How many sends may go on, of all that have arrived.
    let_go: Arc<watch::Sender<usize>>,
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
    /// What devices have answered in their twins.
    answers: BTreeMap<DeviceId, Answer>,
    /// How often somebody has asked for answers, or counted them.
    asked_for_answers: usize,
    /// Since when no send can leave.
    not_ready_since: Option<Instant>,
    sent: Vec<Sent>,
    under_way: usize,
    most_under_way: usize,
}

impl fmt::Debug for ScriptedHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedHub").finish_non_exhaustive()
    }
}

impl ScriptedHub {
    /// A hub with these devices, without tags.
    #[must_use]
    pub fn new(devices: impl IntoIterator<Item = DeviceId>) -> Self {
        Self::with_tags(devices.into_iter().map(|device| (device, Tags::new())))
    }

    /// A hub with `count` devices `device-000000` and so on.
    #[must_use]
    pub fn of(count: u32) -> Self {
        Self::new((0..count).map(|n| crate::build::device(&format!("device-{n:06}"))))
    }

    /// A hub with these devices and tags.
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
                asked_for_answers: 0,
                not_ready_since: None,
                sent: Vec::new(),
                under_way: 0,
                most_under_way: 0,
            })),
            let_go: Arc::new(watch::Sender::new(usize::MAX)),
            arrived: Arc::new(watch::Sender::new(0)),
            feedback: Some(FeedbackQueue::default()),
        }
    }

    /// The same hub, but it gives no feedback.
    #[must_use]
    pub fn without_feedback(self) -> Self {
        Self {
            feedback: None,
            ..self
        }
    }

    /// Says which devices a condition means. Without it, every condition means all.
    #[must_use]
    pub fn matching(
        self,
        rule: impl Fn(&str, &DeviceId, &Tags) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.state().matching = Arc::new(rule);
        self
    }

    /// The answers to the next sends, to whomever.
    pub fn answer_next(&self, results: impl IntoIterator<Item = SendResult>) {
        self.state().next.extend(results);
    }

    /// The answers to the next sends to one device; they go before [`Self::answer_next`].
    pub fn answer_device(&self, device: &DeviceId, results: impl IntoIterator<Item = SendResult>) {
        let mut state = self.state();
        state
            .by_device
            .entry(device.clone())
            .or_default()
            .extend(results);
    }

    /// The answer to every further send to one device.
    pub fn answer_device_always(&self, device: &DeviceId, result: SendResult) {
        self.state().always.insert(device.clone(), result);
    }

    /// How long each send takes, on tokio's clock.
    pub fn set_delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Replaces its devices, by some without tags.
    pub fn set_devices(&self, devices: impl IntoIterator<Item = DeviceId>) {
        let devices = devices.into_iter().map(|device| (device, Tags::new()));
        self.state().devices = devices.collect();
    }

    /// Lists of devices are these pages from now on, whatever is asked for.
    pub fn set_pages(&self, pages: impl IntoIterator<Item = DevicePage>) {
        self.state().pages = Some(pages.into_iter().collect());
    }

    /// From now on, or no longer, it gives no answer to the question for devices that comes after its first page.
    pub fn set_silent(&self, silent: bool) {
        self.state().silent_since = silent.then(Instant::now);
    }

    /// Cuts the hub off, or brings it back. While it is down, queries fail and sends find the
    /// hub shut; they are not counted as sent.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// A device reports an answer in its twin; it replaces the one before. The error's words are `code: text`.
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

    /// How often answers were counted or asked for.
    #[must_use]
    pub fn asked_for_answers(&self) -> usize {
        self.state().asked_for_answers
    }

    /// The answers that a condition of [`PropertyName::answers_in`] means.
    fn answers_like(&self, condition: &str) -> Result<Vec<Answer>, HubError> {
        let mut state = self.state();
        if state.down {
            return Err(unreachable("ask for answers"));
        }
        state.asked_for_answers += 1;
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

    /// Whether the hub says that a send would leave now. Sends that are made nevertheless arrive.
    pub fn set_ready(&self, ready: bool) {
        self.state().not_ready_since = (!ready).then(Instant::now);
    }

    /// From now on sends wait until they are let go. What has arrived goes on.
    pub fn hold(&self) {
        let arrived = *self.arrived.borrow();
        self.let_go.send_replace(arrived);
    }

    /// Lets `count` more of the sends go on, in the order in which they arrived.
    pub fn let_go(&self, count: usize) {
        self.let_go
            .send_modify(|limit| *limit = limit.saturating_add(count));
    }

    /// Lets all sends go on, those to come too.
    pub fn let_all_go(&self) {
        self.let_go.send_replace(usize::MAX);
    }

    /// Waits until `count` sends have arrived since the beginning, held or not.
    pub async fn arrived(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let reached = arrived.wait_for(|so_far| *so_far >= count).await;
        reached.expect("this hub keeps the sender");
    }

    /// All sends that arrived, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.state().sent.clone()
    }

    /// How many sends arrived.
    #[must_use]
    pub fn sends(&self) -> usize {
        self.state().sent.len()
    }

    /// How many sends arrived for each device.
    #[must_use]
    pub fn sends_by_device(&self) -> BTreeMap<DeviceId, usize> {
        self.count_by(|sent| sent.device.clone())
    }

    /// How many sends arrived for each message id.
    #[must_use]
    pub fn sends_by_id(&self) -> BTreeMap<String, usize> {
        self.count_by(|sent| sent.id.clone())
    }

    /// The most sends that were under way at one time.
    #[must_use]
    pub fn most_under_way(&self) -> usize {
        self.state().most_under_way
    }

    /// Puts a message into the feedback queue. One that is given back waits again at once.
    ///
    /// # Panics
    /// When the hub gives no feedback.
    pub fn push_feedback(&self, records: impl IntoIterator<Item = FeedbackRecord>) {
        self.feedback_queue().push(records.into_iter().collect(), 0);
    }

    /// The same, of which so many more records could not be read.
    ///
    /// # Panics
    /// When the hub gives no feedback.
    pub fn push_odd_feedback(
        &self,
        records: impl IntoIterator<Item = FeedbackRecord>,
        unreadable: u64,
    ) {
        let records = records.into_iter().collect();
        self.feedback_queue().push(records, unreadable);
    }

    /// The next `times` that somebody waits for feedback, the hub refuses them for good.
    ///
    /// # Panics
    /// When the hub gives no feedback.
    pub fn refuse_feedback(&self, times: usize) {
        self.feedback_queue().refuse_next(times);
    }

    /// How many receivers of feedback there have been.
    #[must_use]
    pub fn feedback_listeners(&self) -> usize {
        self.feedback.as_ref().map_or(0, FeedbackQueue::listeners)
    }

    /// How many feedback messages wait; those in somebody's hands do not.
    #[must_use]
    pub fn feedback_waiting(&self) -> usize {
        self.feedback.as_ref().map_or(0, FeedbackQueue::waiting)
    }

    /// All answers to feedback messages, in order.
    #[must_use]
    pub fn feedback_answered(&self) -> Vec<FeedbackAnswered> {
        let answered = self.feedback.as_ref().map(FeedbackQueue::answered);
        answered.unwrap_or_default()
    }

    /// Waits until there have been `count` answers to feedback messages.
    ///
    /// # Panics
    /// When the hub gives no feedback.
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

/// Counts a send as under way for as long as it lives: sends may be dropped.
struct UnderWay<'a>(&'a ScriptedHub);

impl<'a> UnderWay<'a> {
    fn begin(hub: &'a ScriptedHub) -> Self {
        let mut state = hub.state();
        state.under_way += 1;
        state.most_under_way = state.most_under_way.max(state.under_way);
        Self(hub)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
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
            odd: Vec::new(),
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

    fn asking_hindrance(&self) -> Option<Hindrance> {
        let since = self.state().silent_since?;
        Some(Hindrance {
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

    fn hindrance(&self) -> Option<Hindrance> {
        let since = self.state().not_ready_since?;
        Some(Hindrance {
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
                return SendResult::HubShut {
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
        let _under_way = UnderWay::begin(self);
        self.arrived.send_replace(place);
        let mut let_go = self.let_go.subscribe();
        let gone_on = let_go.wait_for(|limit| *limit >= place).await;
        drop(gone_on);
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
    fn it_answers_by_the_script_and_counts() {
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
                SendResult::HubShut { .. }
            ));
            assert_eq!(hub.sends(), 3);
        });
    }

    #[test]
    fn it_holds_sends_until_they_are_let_go() {
        run(async {
            let hub = ScriptedHub::of(1);
            hub.hold();
            let mut first = Box::pin(hub.send(message("a")));
            let mut second = Box::pin(hub.send(message("b")));
            assert!((&mut first).now_or_never().is_none());
            assert!((&mut second).now_or_never().is_none());
            hub.arrived(2).await;
            hub.let_go(1);
            assert_eq!(first.await, SendResult::Enqueued);
            assert!((&mut second).now_or_never().is_none());
            hub.let_all_go();
            assert_eq!(second.await, SendResult::Enqueued);
            assert_eq!(hub.most_under_way(), 2);
        });
    }
}
