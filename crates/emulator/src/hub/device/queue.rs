//! Messages on their way to real devices: waiting, held by a device, settled or back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::core::{Hub, State};
use super::super::store::{Ack, MessageState};
use super::line::Line;
use super::session::Subscriptions;

/// A message that was given to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The message's number, with which its connection settles it.
    pub(crate) number: u32,
    /// With what it is settled that has no connection, and how the device names it over AMQP.
    pub(crate) lock: Option<Uuid>,
    pub(crate) message_id: String,
    pub(crate) ack: Ack,
    pub(crate) enqueued_ms: u64,
    pub(crate) expires_ms: u64,
    /// How often it was given out before.
    pub(crate) deliveries: u32,
    /// The map of application properties, as encoded in AMQP; may be empty.
    pub(crate) properties: Bytes,
    /// What [`SystemFields::encode`](crate::amqp::SystemFields) has made.
    pub(crate) system: Bytes,
    /// The body sections, as encoded in AMQP.
    pub(crate) body: Bytes,
}

/// What a device makes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settling {
    Completed,
    Rejected,
    /// It is to be given out again.
    Abandoned,
}

/// Who has a message that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    /// The connection; none if it is locked by itself, over HTTPS.
    serial: Option<u64>,
    lock: Option<(Uuid, u64)>,
}

/// A device that has connected.
#[derive(Debug, Default)]
pub(super) struct RealDevice {
    /// What is to be given out, oldest first: messages are numbered as they come.
    waiting: BTreeSet<u32>,
    held: BTreeMap<u32, Holder>,
    pub(super) line: Option<Arc<Line>>,
    /// When it last did something, if it is not connected.
    pub(super) activity_ms: u64,
    pub(super) changed_ms: u64,
    /// What it has subscribed to in a session that outlives its connection.
    pub(super) subscriptions: Option<Subscriptions>,
}

/// All devices that have connected.
#[derive(Debug, Default)]
pub(crate) struct RealDevices {
    pub(super) by_number: HashMap<u32, RealDevice>,
    /// Messages that are locked.
    locks: HashMap<Uuid, u32>,
    /// When locks end, with the message.
    lock_ends: BTreeSet<(u64, Uuid)>,
}

/// The hold on messages that a device takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) serial: Option<u64>,
    pub(super) lock: Option<Duration>,
    /// How many messages the holder may have at the same time.
    pub(super) held_max: usize,
}

/// A device that is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionReport {
    /// Its id.
    pub device_id: String,
    /// Since when it is connected, in milliseconds since 1970.
    pub connected_ms: u64,
    /// When it last did something, likewise.
    pub active_ms: u64,
    /// How many messages it holds.
    pub held: u64,
    /// How many wait for it.
    pub waiting: u64,
}

impl Hub {
    /// The devices that are connected, simulated ones not, in no order.
    pub(crate) fn sessions(&self) -> Vec<SessionReport> {
        let registry = self.registry();
        let state = self.state();
        let report = |(device, real): (&u32, &RealDevice)| {
            let line = real.line.as_ref()?;
            Some(SessionReport {
                device_id: registry.id(*device)?,
                connected_ms: real.changed_ms,
                active_ms: line.activity_ms(),
                held: real.held.len() as u64,
                waiting: real.waiting.len() as u64,
            })
        };
        state.devices.by_number.iter().filter_map(report).collect()
    }
}

impl RealDevices {
    /// Notes that a message has arrived for a real device.
    pub(crate) fn arrived(&mut self, device: u32, number: u32) {
        let Some(real) = self.by_number.get_mut(&device) else {
            return;
        };
        real.waiting.insert(number);
        if let Some(line) = &real.line {
            line.wake();
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn line(&self, device: u32) -> Option<Arc<Line>> {
        self.by_number.get(&device)?.line.clone()
    }

    /// Lets go of what a message was held by, if it was by `is_holder`'s.
    fn let_go(&mut self, device: u32, number: u32, is_holder: impl Fn(&Holder) -> bool) -> bool {
        let Some(real) = self.by_number.get_mut(&device) else {
            return false;
        };
        if !real.held.get(&number).is_some_and(is_holder) {
            return false;
        }
        if let Some((lock, until_ms)) = real.held.remove(&number).and_then(|holder| holder.lock) {
            self.locks.remove(&lock);
            self.lock_ends.remove(&(until_ms, lock));
        }
        true
    }
}

impl State {
    /// Gives a device its next messages, as many as its hold allows.
    pub(super) fn take(&mut self, device: u32, hold: Hold, now_ms: u64) -> Vec<Delivery> {
        let mut taken = Vec::new();
        let Some(real) = self.devices.by_number.get(&device) else {
            return taken;
        };
        let current = real.line.as_ref().map(|line| line.serial);
        if hold.serial.is_some() && hold.serial != current {
            // An earlier connection, which does not know yet that it has ended.
            return taken;
        }
        let is_its = |holder: &&Holder| holder.serial == hold.serial;
        let held = real.held.values().filter(is_its).count();
        while held + taken.len() < hold.held_max {
            let Some(real) = self.devices.by_number.get_mut(&device) else {
                break;
            };
            let Some(number) = real.waiting.pop_first() else {
                break;
            };
            let found = self.store.message(number);
            let Some(message) = found.filter(|it| it.state == MessageState::Enqueued) else {
                // Expired or purged in the meantime.
                continue;
            };
            if message.expires_ms() <= now_ms {
                self.end(number, MessageState::Expired, now_ms);
                continue;
            }
            let lock = hold.lock.map(|_| Uuid::new_v4());
            let Some(delivery) = self.delivery(number, lock) else {
                tracing::warn!(
                    device,
                    "a message is lost: its body was not kept before the device connected"
                );
                self.end(number, MessageState::Lost, now_ms);
                continue;
            };
            self.store.give(number);
            self.hold(device, number, hold, lock, now_ms);
            taken.push(delivery);
        }
        taken
    }

    fn delivery(&self, number: u32, lock: Option<Uuid>) -> Option<Delivery> {
        let message = self.store.message(number)?;
        Some(Delivery {
            number,
            lock,
            message_id: self.store.id(message).to_owned(),
            ack: message.ack,
            enqueued_ms: message.enqueued_ms,
            expires_ms: message.expires_ms(),
            deliveries: u32::from(message.deliveries),
            properties: self.store.properties.get(message.properties)?.clone(),
            system: self.store.properties.get(message.system)?.clone(),
            body: self.store.bodies.get(message.body)?.clone(),
        })
    }

    fn hold(&mut self, device: u32, number: u32, hold: Hold, lock: Option<Uuid>, now_ms: u64) {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let lock = lock
            .zip(hold.lock)
            .map(|(lock, span)| (lock, now_ms.saturating_add(millis(span))));
        let devices = &mut self.devices;
        if let Some((lock, until_ms)) = lock {
            devices.locks.insert(lock, number);
            devices.lock_ends.insert((until_ms, lock));
        }
        if let Some(real) = devices.by_number.get_mut(&device) {
            let serial = hold.serial;
            real.held.insert(number, Holder { serial, lock });
        }
    }

    /// Does with a message what the connection that holds it wants; false if it does not hold it.
    pub(super) fn settle(
        &mut self,
        device: u32,
        number: u32,
        serial: u64,
        settling: Settling,
        now_ms: u64,
        deliveries_max: u32,
    ) -> bool {
        let is_its = |holder: &Holder| holder.serial == Some(serial);
        if !self.devices.let_go(device, number, is_its) {
            return false;
        }
        self.do_settle(device, number, settling, now_ms, deliveries_max);
        true
    }

    /// Does with a locked message what the holder of the lock wants; false if there is no such lock of the device.
    pub(super) fn settle_lock(
        &mut self,
        device: u32,
        lock: Uuid,
        settling: Settling,
        now_ms: u64,
        deliveries_max: u32,
    ) -> bool {
        let Some(number) = self.devices.locks.get(&lock).copied() else {
            return false;
        };
        let is_its = |holder: &Holder| holder.lock.is_some_and(|(held, _)| held == lock);
        if !self.devices.let_go(device, number, is_its) {
            return false;
        }
        self.do_settle(device, number, settling, now_ms, deliveries_max);
        true
    }

    fn do_settle(
        &mut self,
        device: u32,
        number: u32,
        settling: Settling,
        now_ms: u64,
        deliveries_max: u32,
    ) {
        match settling {
            Settling::Completed => self.end(number, MessageState::Delivered, now_ms),
            Settling::Rejected => self.end(number, MessageState::Rejected, now_ms),
            Settling::Abandoned => self.put_back(device, number, now_ms, Some(deliveries_max)),
        }
    }

    /// Puts a message back into its queue, unless it has expired or was given out too often.
    fn put_back(&mut self, device: u32, number: u32, now_ms: u64, deliveries_max: Option<u32>) {
        let Some(message) = self.store.message(number).copied() else {
            return;
        };
        if !message.state.is_pending() {
            return;
        }
        if deliveries_max.is_some_and(|max| u32::from(message.deliveries) >= max) {
            self.end(number, MessageState::DeliveryCountExceeded, now_ms);
        } else if message.expires_ms() <= now_ms {
            self.end(number, MessageState::Expired, now_ms);
        } else {
            self.store.take_back(number);
            self.devices.arrived(device, number);
        }
    }

    /// Takes everything back that a connection holds.
    pub(super) fn take_back_all(
        &mut self,
        device: u32,
        serial: u64,
        now_ms: u64,
        deliveries_max: u32,
    ) {
        let Some(real) = self.devices.by_number.get(&device) else {
            return;
        };
        let is_its = |holder: &Holder| holder.serial == Some(serial);
        let held: Vec<u32> = real
            .held
            .iter()
            .filter(|(_, holder)| is_its(holder))
            .map(|(number, _)| *number)
            .collect();
        for number in held {
            self.devices.let_go(device, number, is_its);
            self.put_back(device, number, now_ms, Some(deliveries_max));
        }
    }

    /// Takes messages back whose locks have ended. That does not count against a message.
    pub(crate) fn end_locks(&mut self, now_ms: u64) {
        while let Some((until_ms, lock)) = self.devices.lock_ends.first().copied() {
            if until_ms > now_ms {
                return;
            }
            self.devices.lock_ends.pop_first();
            let Some(number) = self.devices.locks.remove(&lock) else {
                continue;
            };
            let Some(device) = self.store.message(number).map(|message| message.device) else {
                continue;
            };
            if self.devices.let_go(device, number, |_| true) {
                self.put_back(device, number, now_ms, None);
            }
        }
    }

    /// Forgets what is known of a device that is deleted, and ends its connection.
    pub(crate) fn forget(&mut self, device: u32) -> Option<Arc<Line>> {
        let real = self.devices.by_number.remove(&device)?;
        for (lock, until_ms) in real.held.into_values().filter_map(|holder| holder.lock) {
            self.devices.locks.remove(&lock);
            self.devices.lock_ends.remove(&(until_ms, lock));
        }
        real.line
    }

    /// Makes a device a real one: its messages wait for it from now on.
    pub(super) fn make_real(&mut self, device: u32) {
        if self.devices.by_number.contains_key(&device) {
            return;
        }
        let pending: Vec<u32> = self
            .store
            .messages_of(device)
            .filter(|number| {
                let message = self.store.message(*number);
                message.is_some_and(|message| message.state.is_pending())
            })
            .collect();
        for number in &pending {
            self.store.leave_to_device(*number);
        }
        let real = RealDevice {
            waiting: pending.into_iter().collect(),
            ..RealDevice::default()
        };
        self.devices.by_number.insert(device, real);
    }
}

impl Hub {
    /// Gives a device its next message under a lock, without a connection.
    pub(crate) fn receive(&self, device: u32) -> Option<Delivery> {
        let hold = Hold {
            serial: None,
            lock: Some(self.config.device_lock),
            held_max: usize::MAX,
        };
        let now_ms = self.now_ms();
        let mut state = self.state();
        let one = Hold {
            held_max: state.held_without_connection(device) + 1,
            ..hold
        };
        state.take(device, one, now_ms).pop()
    }

    /// Settles a message by its lock; false if the device has no such lock, or no longer.
    pub(crate) fn settle_lock(&self, device: u32, lock: Uuid, settling: Settling) -> bool {
        let max = self.config.delivery_count_max;
        let now_ms = self.now_ms();
        self.state()
            .settle_lock(device, lock, settling, now_ms, max)
    }
}

impl State {
    fn held_without_connection(&self, device: u32) -> usize {
        self.devices.by_number.get(&device).map_or(0, |real| {
            let mut holders = real.held.values();
            holders.by_ref().filter(|it| it.serial.is_none()).count()
        })
    }
}
