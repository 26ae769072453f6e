//! The hub's state and what can be done with it. Everything here is synchronous and short; sockets and
//! waiting are elsewhere.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use twincast_hub_limits::LARGEST_MESSAGE;
use uuid::Uuid;

use super::answers;
use super::delivery::FeedbackMessage;
use super::device::{DeviceAuthorities, RealDevices};
use super::feedback::{FeedbackBatch, FeedbackQueue, Record, Settlement};
use super::refusal::Refusal;
use super::store::{Ack, Arrival, MessageState, Store};
use super::summary::Tallies;
use super::throttle::{Admission, Operation, Throttles};
use crate::config::HubConfig;
use crate::dps::{Enrollments, Provisioning};
use crate::entra::Issuer;
use crate::faults::{FaultBox, SendFault};
use crate::fleet::{Conduct, Contact, DeviceRecord, Registry, Reported, twin_document};
use crate::lock;
use crate::policy::Policy;
use crate::sas::{Grant, Holder, TokenError, verify};
use crate::tier::Limits;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A message on its way to a device, as the AMQP side has read it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Submission<'a> {
    pub(crate) device_id: &'a str,
    pub(crate) message_id: &'a str,
    pub(crate) ack: Ack,
    pub(crate) expiry_ms: Option<i64>,
    /// What [`SystemFields::encode`](crate::amqp::SystemFields) has made.
    pub(crate) system: &'a [u8],
    pub(crate) properties: &'a [u8],
    pub(crate) body: &'a [u8],
    /// Everything together, in bytes.
    pub(crate) size: usize,
}

/// What a connection is told to do to itself.
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
    /// The day since 1970 and what was used of its quota.
    pub(super) quota: (u64, u64),
}

impl State {
    /// Ends a message that is pending, and tells whoever wants to know.
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
    pub(crate) faults: FaultBox,
    pub(crate) tallies: Tallies,
    /// A bit for each device of the fleet that has completed a message.
    completed: Vec<AtomicU64>,
    /// When those devices will have gone back that do, in milliseconds like [`Hub::now_ms`].
    reverting: Mutex<HashMap<u32, u64>>,
    /// Whose certificates devices may present.
    pub(super) authorities: DeviceAuthorities,
    pub(crate) provisioning: Provisioning,
    pub(crate) issuer: Option<Issuer>,
    /// How often devices have connected; the serial number of the next connection.
    pub(super) connections_made: AtomicU64,
    /// Notified whenever a device becomes ready for methods.
    pub(super) methods_ready: Notify,
    /// Changes whenever there may be feedback to take.
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
        let added_conduct = if config.added_devices_online {
            Conduct::Completes {
                online_after: Duration::ZERO,
            }
        } else {
            Conduct::Offline
        };
        let registry = Registry::new(Arc::new(config.fleet.clone()), started_ms, added_conduct);
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
            faults: FaultBox::new(config.faults.clone()),
            tallies: Tallies::default(),
            feedback_ready: watch::Sender::new(0),
            cuts: watch::Sender::new((0, Cut::Close)),
            config,
        }
    }

    /// Milliseconds since 1970, by a clock that does not go back.
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

    /// Replaces the keys of a policy; `false` if there is no such policy. Tokens of the old keys are refused from now
    /// on, and connections that were opened with them go on until these end.
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

    /// Checks a service's token: of a shared access policy, or `Bearer` and one of Microsoft Entra ID.
    pub(crate) fn authenticate(&self, token: &str) -> Result<Grant, TokenError> {
        if let Some(token) = token.trim().strip_prefix("Bearer ") {
            let issuer = self.issuer.as_ref().ok_or(TokenError::NoIssuer)?;
            let bearer = issuer.bearer(token.trim(), self.now_s());
            let (principal, expires_s) =
                bearer.map_err(|error| TokenError::Bearer(error.to_string()))?;
            return Ok(Grant {
                scope: self.config.host_name.to_ascii_lowercase(),
                holder: Holder::Principal(principal),
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
        // The clock starts a minute in, so that the first operations find no debt of the past.
        self.throttles
            .admit(operation, count, now_ns + 60_000_000_000)
    }

    /// Enqueues a message, or says why not.
    pub(crate) fn submit(&self, submission: &Submission<'_>) -> Result<(), Refusal> {
        let result = self.try_submit(submission);
        if let Err(refusal) = &result {
            self.tallies.refusal(refusal);
        }
        result
    }

    fn try_submit(&self, submission: &Submission<'_>) -> Result<(), Refusal> {
        if !self.config.tier.has_commands() {
            return Err(Refusal::not_in_tier());
        }
        if submission.size > LARGEST_MESSAGE {
            return Err(Refusal::too_large(submission.size, LARGEST_MESSAGE));
        }
        let id = submission.device_id;
        let now_ms = self.now_ms();
        let registry = self.registry();
        let device = registry
            .number(id)
            .ok_or_else(|| Refusal::device_not_found(id))?;
        let ttl_ms = self.ttl_ms(submission.expiry_ms, now_ms)?;
        let conduct = registry.conduct(device);
        if conduct == Conduct::Disabled {
            return Err(Refusal::device_disabled(id));
        }
        let mut state = lock(&self.state);
        if state.store.pending(device) >= self.config.queue_depth {
            return Err(Refusal::queue_full(id, self.config.queue_depth));
        }
        if state.store.len() >= self.config.messages_max as usize {
            return Err(Refusal::store_full(self.config.messages_max));
        }
        self.charge(&mut state, submission.size, now_ms)?;
        let nth = state.store.len() as u64;
        let (planned, due_ms) = self.fate(&registry, device, conduct, now_ms, ttl_ms, nth);
        let number = state.store.enqueue(Arrival {
            now_ms,
            device,
            id: submission.message_id,
            ack: submission.ack,
            properties: submission.properties,
            system: submission.system,
            body: submission.body,
            ttl_ms,
            invisible: conduct == Conduct::NeverAnswers,
            planned,
            due_ms,
        });
        if conduct == Conduct::Real {
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
        // What has expired already is taken, and expires.
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

    /// How a message will end, and when, unless something comes between.
    fn fate(
        &self,
        registry: &Registry,
        device: u32,
        conduct: Conduct,
        now_ms: u64,
        ttl_ms: u64,
        nth: u64,
    ) -> (MessageState, u64) {
        let expires_ms = now_ms.saturating_add(ttl_ms);
        let latency = registry
            .fleet()
            .place(device)
            .map_or(Duration::from_millis(50), |(group, position)| {
                group.latency(position, nth)
            });
        let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX >> 1);
        let (end, at_ms) = match conduct {
            // It waits for the device, at the longest until it expires.
            Conduct::Real => return (MessageState::Enqueued, expires_ms),
            Conduct::Completes { online_after } => {
                let online_ms = self.started_ms
                    + u64::try_from(online_after.as_millis()).unwrap_or(u64::MAX >> 1);
                (MessageState::Delivered, now_ms.max(online_ms) + latency_ms)
            }
            Conduct::Rejects => (MessageState::Rejected, now_ms + latency_ms),
            Conduct::Abandons => {
                let times = u64::from(self.config.delivery_count_max);
                (
                    MessageState::DeliveryCountExceeded,
                    now_ms + latency_ms * times,
                )
            }
            Conduct::NeverAnswers | Conduct::Offline | Conduct::Disabled => {
                (MessageState::Expired, expires_ms)
            }
        };
        if at_ms < expires_ms {
            (end, at_ms)
        } else {
            (MessageState::Expired, expires_ms)
        }
    }

    /// What a fault makes of the next send, if one strikes.
    pub(crate) fn send_fault(&self) -> Option<SendFault> {
        self.faults.on_send()
    }

    /// Removes a device's pending messages, and says how many there were.
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

    /// What is known of a device's connection.
    pub(crate) fn contact(&self, registry: &Registry, device: u32) -> Contact {
        match registry.conduct(device) {
            Conduct::Real => self.real_contact(device),
            conduct => Contact {
                connected: self.plays_connected(conduct),
                ..Contact::default()
            },
        }
    }

    /// Whether a simulated device is connected.
    fn plays_connected(&self, conduct: Conduct) -> bool {
        match conduct {
            Conduct::Completes { online_after } => self.uptime() >= online_after,
            Conduct::Rejects | Conduct::Abandons | Conduct::NeverAnswers => true,
            Conduct::Offline | Conduct::Disabled | Conduct::Real => false,
        }
    }

    /// Whether a device had completed a message, and reports what came of it, as queries show it now.
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
        let place = self.config.fleet.place(device);
        if place.is_some_and(|(group, at)| group.fails(at)) {
            return;
        }
        if let Some(after) = place.and_then(|(group, at)| group.reverts_after(at)) {
            let back_at = now_ms + u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            lock(&self.reverting).insert(device, back_at);
        }
        word.fetch_or(1 << (device % 64), Ordering::Relaxed);
    }

    /// The twin document of a device as it is now.
    pub(crate) fn twin_of(&self, registry: &Registry, device: u32, record: &DeviceRecord) -> Value {
        self.twin_at(registry, device, record, self.now_ms())
    }

    /// The same as queries show it: with what the device had reported some time ago.
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
        twin_document(record, reported, pending, self.contact(registry, device))
    }

    /// What a device had reported at a time.
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
            (delivered_ms, registry.fleet().place(device))
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
                    reported.update(&undoing(&after, &record.reported), back_ms);
                }
            }
        }
        reported
    }

    /// Settles a feedback batch that a service has held over AMQP.
    pub(crate) fn settle_taken_feedback(&self, batch: FeedbackBatch, settlement: Settlement) {
        if lock(&self.state).feedback.settle(batch, settlement) {
            self.feedback_may_be_ready();
        }
    }

    /// Takes a feedback batch and locks it, for the next [`Hub::settle_feedback`] with the token.
    pub(crate) fn lock_feedback(&self) -> Option<(Uuid, FeedbackMessage)> {
        let (batch, message) = self.take_feedback()?;
        let lock_ms = u64::try_from(self.config.feedback_lock.as_millis()).unwrap_or(u64::MAX);
        let until_ms = self.now_ms().saturating_add(lock_ms);
        Some((lock(&self.state).feedback.lock(batch, until_ms), message))
    }

    /// Settles a locked feedback batch. Returns whether there was one.
    pub(crate) fn settle_feedback(&self, token: Uuid, settlement: Settlement) -> bool {
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

/// The patch that takes `patch` back: what it changed gets its value in `before` again, or goes.
fn undoing(patch: &Map<String, Value>, before: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .map(|(key, value)| {
            let back = match (value, before.get(key)) {
                (Value::Object(patch), Some(Value::Object(before))) => {
                    Value::Object(undoing(patch, before))
                }
                (_, before) => before.cloned().unwrap_or(Value::Null),
            };
            (key.clone(), back)
        })
        .collect()
}
