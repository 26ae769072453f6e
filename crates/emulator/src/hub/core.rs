//! The hub's state and the operations on it. All operations are synchronous and short; sockets and
//! waiting are in other modules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use twincast_hub_limits::MAX_MESSAGE_BYTES;
use uuid::Uuid;

use super::answers;
use super::delivery::FeedbackMessage;
use super::device::{DeviceAuthorities, RealDevices};
use super::feedback::{FeedbackBatch, FeedbackQueue, FeedbackSettlement, Record};
use super::refusal::Refusal;
use super::store::{Ack, MessageState, NewMessage, Store};
use super::summary::Counters;
use super::throttle::{Admission, Operation, Throttles};
use crate::config::HubConfig;
use crate::dps::{Enrollments, Provisioning};
use crate::entra::Issuer;
use crate::faults::{ActiveFaults, SendFault};
use crate::fleet::{
    ConnectionInfo, DeviceRecord, MessageBehaviour, Registry, Reported, twin_document,
};
use crate::lock;
use crate::policy::Policy;
use crate::sas::{Grant, TokenError, TokenHolder, verify};
use crate::tier::Limits;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A message for a device, as read by the AMQP side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IncomingMessage<'a> {
    pub(crate) device_id: &'a str,
    pub(crate) message_id: &'a str,
    pub(crate) ack: Ack,
    pub(crate) expiry_ms: Option<i64>,
    /// The system properties, made by [`SystemFields::encode`](crate::amqp::SystemFields).
    pub(crate) system: &'a [u8],
    pub(crate) properties: &'a [u8],
    pub(crate) body: &'a [u8],
    /// The size of the whole message, in bytes.
    pub(crate) size: usize,
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Close with `amqp:connection:forced`.
    Close,
    /// Drop the TCP connection.
    Drop,
    /// Detach all links with `amqp:link:detach-forced`.
    Detach,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) feedback: FeedbackQueue,
    pub(crate) devices: RealDevices,
    /// The current day, counted from 1970, and the units of the daily quota used on that day.
    pub(super) quota: (u64, u64),
}

impl State {
    /// Ends a pending message, and adds a feedback record if the sender has asked for one.
    pub(crate) fn end(&mut self, number: u32, end: MessageState, now_ms: u64) {
        if let Some(message) = self.store.finish(number, end, now_ms)
            && message.ack.wants(end)
        {
            self.feedback.push(Record {
                at_ms: now_ms,
                message: number,
                state: end,
            });
        }
    }
}

/// A hub.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: HubConfig,
    pub(crate) names: Vec<String>,
    policies: RwLock<Arc<[Policy]>>,
    limits: Limits,
    started: Instant,
    started_ms: u64,
    registry: RwLock<Registry>,
    state: Mutex<State>,
    throttles: Throttles,
    pub(crate) faults: ActiveFaults,
    pub(crate) counters: Counters,
    /// A bit for each device of the fleet, set once the device has completed a message.
    completed: Vec<AtomicU64>,
    /// The time at which each reverting device goes back to the earlier reported properties, in
    /// milliseconds as [`Hub::now_ms`].
    reverting: Mutex<HashMap<u32, u64>>,
    /// The authorities of device certificates.
    pub(super) authorities: DeviceAuthorities,
    pub(crate) provisioning: Provisioning,
    pub(crate) issuer: Option<Issuer>,
    /// The number of device connections so far, and the serial number of the next connection.
    pub(super) connections_made: AtomicU64,
    /// Notified whenever a device becomes ready for methods.
    pub(super) methods_ready: Notify,
    /// Changes whenever feedback may be ready to take.
    feedback_ready: watch::Sender<u64>,
    /// Changes whenever all connections are to be cut.
    cuts: watch::Sender<(u64, Cut)>,
}

impl Hub {
    pub(crate) fn new(config: HubConfig, authorities: DeviceAuthorities) -> Self {
        let limits = config.effective_limits();
        let policies = if config.policies.is_empty() {
            Policy::defaults(config.seed)
        } else {
            config.policies.clone()
        };
        let feedback = FeedbackQueue::new(
            config.feedback_batch,
            config.feedback_interval,
            config.feedback_ttl,
            config.feedback_records_max,
            config.delivery_count_max,
        );
        let throttled = (!config.unlimited).then_some(&limits);
        let started_ms = (SystemTime::now() + config.clock_ahead - config.clock_behind)
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let started_ms = u64::try_from(started_ms).unwrap_or(0);
        let added_behaviour = if config.added_devices_online {
            MessageBehaviour::Completes {
                online_after: Duration::ZERO,
            }
        } else {
            MessageBehaviour::Offline
        };
        let registry = Registry::new(Arc::new(config.fleet.clone()), started_ms, added_behaviour);
        Self {
            names: config.names(),
            policies: RwLock::new(policies.into()),
            limits,
            started: Instant::now(),
            started_ms,
            completed: (0..=config.fleet.len() / 64)
                .map(|_| AtomicU64::new(0))
                .collect(),
            reverting: Mutex::default(),
            authorities,
            provisioning: Provisioning::new(
                config
                    .enrollments
                    .clone()
                    .unwrap_or_else(|| Enrollments::of_one_group(config.seed)),
            ),
            issuer: config.directory.clone().map(Issuer::new),
            connections_made: AtomicU64::new(0),
            methods_ready: Notify::new(),
            registry: RwLock::new(registry),
            state: Mutex::new(State {
                store: Store::new(),
                feedback,
                devices: RealDevices::default(),
                quota: (0, 0),
            }),
            throttles: Throttles::new(
                throttled,
                config.throttle_tolerance,
                config.throttle_wait_max,
            ),
            faults: ActiveFaults::new(config.faults.clone()),
            counters: Counters::default(),
            feedback_ready: watch::Sender::new(0),
            cuts: watch::Sender::new((0, Cut::Close)),
            config,
        }
    }

    /// Returns milliseconds since 1970, from a clock that never goes back.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started_ms + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX >> 1)
    }

    pub(crate) fn now_s(&self) -> u64 {
        self.now_ms() / 1000
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn policies(&self) -> Arc<[Policy]> {
        let policies = self.policies.read();
        Arc::clone(&policies.unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Replaces the keys of a policy. Returns `false` if the policy does not exist. Tokens of the
    /// old keys are refused from then on; connections opened with such tokens go on until the
    /// tokens end.
    pub(crate) fn set_keys(&self, policy: &str, primary: Vec<u8>, secondary: Vec<u8>) -> bool {
        let held = self.policies.write();
        let mut held = held.unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut policies = held.to_vec();
        let Some(found) = policies.iter_mut().find(|known| known.name == policy) else {
            return false;
        };
        (found.primary_key, found.secondary_key) = (primary, secondary);
        *held = policies.into();
        true
    }

    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn registry_mut(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Checks a service's token: a token of a shared access policy, or `Bearer` and a token of
    /// Microsoft Entra ID.
    pub(crate) fn authenticate(&self, token: &str) -> Result<Grant, TokenError> {
        if let Some(token) = token.trim().strip_prefix("Bearer ") {
            let issuer = self.issuer.as_ref().ok_or(TokenError::NoIssuer)?;
            let verified = issuer.verify_token(token.trim(), self.now_s());
            let (principal, expires_s) =
                verified.map_err(|error| TokenError::Bearer(error.to_string()))?;
            return Ok(Grant {
                scope: self.config.host_name.to_ascii_lowercase(),
                holder: TokenHolder::Principal(principal),
                expires_s,
            });
        }
        if !self.config.local_auth {
            return Err(TokenError::LocalAuthDisabled);
        }
        verify(token, &self.policies(), &self.names, self.now_s())
    }

    /// Asks the throttle of `operation` for `count` permits.
    pub(crate) fn admit(&self, operation: Operation, count: u64) -> Admission {
        let now_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX >> 1);
        // The throttle's clock starts at one minute, so that the first operations find no debt.
        self.throttles
            .admit(operation, count, now_ns + 60_000_000_000)
    }

    /// Enqueues a message.
    ///
    /// # Errors
    ///
    /// The hub's refusal.
    pub(crate) fn submit(&self, message: &IncomingMessage<'_>) -> Result<(), Refusal> {
        let result = self.try_submit(message);
        if let Err(refusal) = &result {
            self.counters.refusal(refusal);
        }
        result
    }

    fn try_submit(&self, message: &IncomingMessage<'_>) -> Result<(), Refusal> {
        if !self.config.tier.has_commands() {
            return Err(Refusal::not_in_tier());
        }
        if message.size > MAX_MESSAGE_BYTES {
            return Err(Refusal::too_large(message.size, MAX_MESSAGE_BYTES));
        }
        let id = message.device_id;
        let now_ms = self.now_ms();
        let registry = self.registry();
        let device = registry
            .number(id)
            .ok_or_else(|| Refusal::device_not_found(id))?;
        let ttl_ms = self.ttl_ms(message.expiry_ms, now_ms)?;
        let behaviour = registry.message_behaviour(device);
        if behaviour == MessageBehaviour::Disabled {
            return Err(Refusal::device_disabled(id));
        }
        let mut state = lock(&self.state);
        if state.store.pending(device) >= self.config.queue_depth {
            return Err(Refusal::queue_full(id, self.config.queue_depth));
        }
        if state.store.len() >= self.config.messages_max as usize {
            return Err(Refusal::store_full(self.config.messages_max));
        }
        self.charge(&mut state, message.size, now_ms)?;
        let nth = state.store.len() as u64;
        let (planned, due_ms) = self.planned_end(&registry, device, behaviour, now_ms, ttl_ms, nth);
        let number = state.store.enqueue(NewMessage {
            now_ms,
            device,
            id: message.message_id,
            ack: message.ack,
            properties: message.properties,
            system: message.system,
            body: message.body,
            ttl_ms,
            invisible: behaviour == MessageBehaviour::NeverAnswers,
            planned,
            due_ms,
        });
        if behaviour == MessageBehaviour::Real {
            state.devices.arrived(device, number);
        }
        Ok(())
    }

    fn ttl_ms(&self, expiry_ms: Option<i64>, now_ms: u64) -> Result<u64, Refusal> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let Some(expiry_ms) = expiry_ms else {
            return Ok(millis(self.config.default_ttl));
        };
        let ttl_ms = u64::try_from(expiry_ms).unwrap_or(0).saturating_sub(now_ms);
        if ttl_ms > millis(self.config.ttl_max) {
            let hours = self.config.ttl_max.as_secs() / 3600;
            return Err(Refusal::bad_expiry(format!(
                "the message expires {} hours from now; at most {hours} are allowed",
                ttl_ms / 3_600_000
            )));
        }
        // A message already expired on arrival is accepted, and expires in the queue.
        Ok(ttl_ms)
    }

    pub(super) fn charge(
        &self,
        state: &mut State,
        size: usize,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let day = now_ms / DAY_MS;
        if state.quota.0 != day {
            state.quota = (day, 0);
        }
        let limit = self.limits.daily_messages;
        let units = size.div_ceil(self.config.tier.meter_bytes()).max(1) as u64;
        let full = !self.config.unlimited && state.quota.1 + units > limit;
        if full || self.faults.quota_exhausted() {
            return Err(Refusal::quota_exceeded(
                state.quota.1.max(if full { 0 } else { limit }),
                limit,
            ));
        }
        state.quota.1 += units;
        Ok(())
    }

    /// Returns the planned end of a message, and the time of that end. A purge, a deletion or a
    /// connecting device can still change both.
    fn planned_end(
        &self,
        registry: &Registry,
        device: u32,
        behaviour: MessageBehaviour,
        now_ms: u64,
        ttl_ms: u64,
        nth: u64,
    ) -> (MessageState, u64) {
        let expires_ms = now_ms.saturating_add(ttl_ms);
        let latency = registry
            .fleet()
            .locate(device)
            .map_or(Duration::from_millis(50), |(group, position)| {
                group.latency(position, nth)
            });
        let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX >> 1);
        let (end, at_ms) = match behaviour {
            // The message waits for the device, at most until expiry.
            MessageBehaviour::Real => return (MessageState::Enqueued, expires_ms),
            MessageBehaviour::Completes { online_after } => {
                let online_ms = self.started_ms
                    + u64::try_from(online_after.as_millis()).unwrap_or(u64::MAX >> 1);
                (MessageState::Delivered, now_ms.max(online_ms) + latency_ms)
            }
            MessageBehaviour::Rejects => (MessageState::Rejected, now_ms + latency_ms),
            MessageBehaviour::Abandons => {
                let times = u64::from(self.config.delivery_count_max);
                (
                    MessageState::DeliveryCountExceeded,
                    now_ms + latency_ms * times,
                )
            }
            MessageBehaviour::NeverAnswers
            | MessageBehaviour::Offline
            | MessageBehaviour::Disabled => (MessageState::Expired, expires_ms),
        };
        if at_ms < expires_ms {
            (end, at_ms)
        } else {
            (MessageState::Expired, expires_ms)
        }
    }

    /// Draws the fault for the next send, if any.
    pub(crate) fn send_fault(&self) -> Option<SendFault> {
        self.faults.on_send()
    }

    /// Ends all pending messages of a device with the state `end`. Returns the number of ended
    /// messages.
    pub(crate) fn empty_queue(&self, device: u32, end: MessageState) -> u64 {
        let now_ms = self.now_ms();
        let mut state = lock(&self.state);
        let numbers: Vec<u32> = state.store.messages_of(device).collect();
        let before = state.store.counts.pending;
        for number in numbers {
            state.end(number, end, now_ms);
        }
        before - state.store.counts.pending
    }

    /// Returns the state of a device's connection.
    pub(crate) fn connection_info(&self, registry: &Registry, device: u32) -> ConnectionInfo {
        match registry.message_behaviour(device) {
            MessageBehaviour::Real => self.real_connection_info(device),
            behaviour => ConnectionInfo {
                connected: self.is_simulated_connected(behaviour),
                ..ConnectionInfo::default()
            },
        }
    }

    /// Whether a simulated device is connected.
    fn is_simulated_connected(&self, behaviour: MessageBehaviour) -> bool {
        match behaviour {
            MessageBehaviour::Completes { online_after } => self.uptime() >= online_after,
            MessageBehaviour::Rejects
            | MessageBehaviour::Abandons
            | MessageBehaviour::NeverAnswers => true,
            MessageBehaviour::Offline | MessageBehaviour::Disabled | MessageBehaviour::Real => {
                false
            }
        }
    }

    /// Whether queries now show the reported properties of a device after a completed message.
    pub(crate) fn has_changed(&self, device: u32) -> bool {
        let word = self.completed.get(device as usize / 64);
        let completed =
            word.is_some_and(|word| word.load(Ordering::Relaxed) >> (device % 64) & 1 == 1);
        completed && {
            let at_ms = self.queried_ms();
            let back_at = lock(&self.reverting).get(&device).copied();
            let is_shown = self.config.query_lag.is_zero()
                || lock(&self.state)
                    .store
                    .first_delivery(device, 0)
                    .is_some_and(|delivered_ms| delivered_ms <= at_ms);
            is_shown && back_at.is_none_or(|back_at| at_ms < back_at)
        }
    }

    pub(crate) fn mark_completed(&self, device: u32, now_ms: u64) {
        let Some(word) = self.completed.get(device as usize / 64) else {
            return;
        };
        let located = self.config.fleet.locate(device);
        if located.is_some_and(|(group, at)| group.fails(at)) {
            return;
        }
        if let Some(after) = located.and_then(|(group, at)| group.reverts_after(at)) {
            let back_at = now_ms + u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            lock(&self.reverting).insert(device, back_at);
        }
        word.fetch_or(1 << (device % 64), Ordering::Relaxed);
    }

    /// Returns the current twin document of a device.
    pub(crate) fn twin_of(&self, registry: &Registry, device: u32, record: &DeviceRecord) -> Value {
        self.twin_at(registry, device, record, self.now_ms())
    }

    /// Returns the twin document of a device as queries show it, with the reported properties of
    /// [`Hub::queried_ms`].
    pub(crate) fn queried_twin(
        &self,
        registry: &Registry,
        device: u32,
        record: &DeviceRecord,
    ) -> Value {
        self.twin_at(registry, device, record, self.queried_ms())
    }

    fn twin_at(
        &self,
        registry: &Registry,
        device: u32,
        record: &DeviceRecord,
        at_ms: u64,
    ) -> Value {
        let pending = lock(&self.state).store.pending(device);
        let reported = self.reported_of(registry, device, record, at_ms);
        twin_document(
            record,
            reported,
            pending,
            self.connection_info(registry, device),
        )
    }

    /// Returns the reported properties of a device at the time `shown_ms`.
    pub(super) fn reported_of(
        &self,
        registry: &Registry,
        device: u32,
        record: &DeviceRecord,
        shown_ms: u64,
    ) -> Reported {
        let mut reported = Reported::recorded(record);
        if let Some(real) = &record.real {
            return real.reported_at(shown_ms).cloned().unwrap_or(reported);
        }
        let delivered_ms = lock(&self.state)
            .store
            .first_delivery(device, record.created_ms)
            .filter(|delivered_ms| *delivered_ms <= shown_ms);
        if let (Some(at_ms), Some((group, position))) =
            (delivered_ms, registry.fleet().locate(device))
        {
            let after = match group.fails(position) {
                true => Map::new(),
                false => group.reported_after.object(position),
            };
            if let Some(answer) = self.simulated_answer(group, position, shown_ms) {
                let answer = [(answers::PROPERTY.to_owned(), answer.into())];
                reported.update(&answer.into_iter().collect(), at_ms);
            }
            if !after.is_empty() {
                reported.update(&after, at_ms);
                let back_ms = lock(&self.reverting).get(&device).copied();
                if let Some(back_ms) = back_ms.filter(|back_ms| *back_ms <= shown_ms) {
                    reported.update(&revert_patch(&after, &record.reported), back_ms);
                }
            }
        }
        reported
    }

    /// Settles a feedback batch held by a service over AMQP.
    pub(crate) fn settle_taken_feedback(
        &self,
        batch: FeedbackBatch,
        settlement: FeedbackSettlement,
    ) {
        if lock(&self.state).feedback.settle(batch, settlement) {
            self.feedback_may_be_ready();
        }
    }

    /// Takes a feedback batch and locks it. [`Hub::settle_feedback`] settles the batch by the
    /// returned token.
    pub(crate) fn lock_feedback(&self) -> Option<(Uuid, FeedbackMessage)> {
        let (batch, message) = self.take_feedback()?;
        let lock_ms = u64::try_from(self.config.feedback_lock.as_millis()).unwrap_or(u64::MAX);
        let until_ms = self.now_ms().saturating_add(lock_ms);
        Some((lock(&self.state).feedback.lock(batch, until_ms), message))
    }

    /// Settles a locked feedback batch. Returns whether the token named a locked batch.
    pub(crate) fn settle_feedback(&self, token: Uuid, settlement: FeedbackSettlement) -> bool {
        let unlocked = lock(&self.state).feedback.unlock(token, settlement);
        if unlocked == Some(true) {
            self.feedback_may_be_ready();
        }
        unlocked.is_some()
    }

    pub(crate) fn feedback_may_be_ready(&self) {
        self.feedback_ready.send_modify(|version| *version += 1);
    }

    pub(crate) fn watch_feedback(&self) -> watch::Receiver<u64> {
        self.feedback_ready.subscribe()
    }

    /// Cuts all connections now.
    pub(crate) fn cut(&self, cut: Cut) {
        self.cuts
            .send_modify(|current| *current = (current.0 + 1, cut));
    }

    pub(crate) fn watch_cuts(&self) -> watch::Receiver<(u64, Cut)> {
        self.cuts.subscribe()
    }
}

/// Returns the patch that reverts `patch`: each changed property gets its value in `before`, or is
/// removed.
fn revert_patch(patch: &Map<String, Value>, before: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .map(|(key, value)| {
            let back = match (value, before.get(key)) {
                (Value::Object(patch), Some(Value::Object(before))) => {
                    Value::Object(revert_patch(patch, before))
                }
                (_, before) => before.cloned().unwrap_or(Value::Null),
            };
            (key.clone(), back)
        })
        .collect()
}
