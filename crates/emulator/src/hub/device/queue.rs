//! The message queues of real devices: messages waiting, held by the device, settled or returned.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::core::{Hub, State};
use super::super::store::{Ack, MessageState};
use super::connection::DeviceConnection;
use super::session::Subscriptions;

/// A message given to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The message's number. The connection settles the message by this number.
    pub(crate) number: u32,
    /// The lock token. A device without a connection settles the message by this token; over AMQP
    /// the token is the delivery tag.
    pub(crate) lock: Option<Uuid>,
    pub(crate) message_id: String,
    pub(crate) ack: Ack,
    pub(crate) enqueued_ms: u64,
    pub(crate) expires_ms: u64,
    /// The number of earlier deliveries.
    pub(crate) deliveries: u32,
    /// The map of application properties, as encoded in AMQP; may be empty.
    pub(crate) properties: Bytes,
    /// The system properties, made by [`SystemFields::encode`](crate::amqp::SystemFields).
    pub(crate) system: Bytes,
    /// The body sections, as encoded in AMQP.
    pub(crate) body: Bytes,
}

/// The settlement of a message by the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageSettlement {
    Completed,
    Rejected,
    /// The message goes back to the queue.
    Abandoned,
}

/// The holder of a delivered message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MessageHolder {
    /// The serial number of the holding connection; `None` for a message locked over HTTPS without
    /// a connection.
    serial: Option<u64>,
    lock: Option<(Uuid, u64)>,
}

/// A device after the first connection.
#[derive(Debug, Default)]
pub(super) struct RealDevice {
    /// The messages to deliver, oldest first: messages are numbered in the order of arrival.
    waiting: BTreeSet<u32>,
    held: BTreeMap<u32, MessageHolder>,
    pub(super) connection: Option<Arc<DeviceConnection>>,
    /// The time of the last activity of a disconnected device.
    pub(super) activity_ms: u64,
    pub(super) changed_ms: u64,
    /// The subscriptions of a session that outlives the connection.
    pub(super) subscriptions: Option<Subscriptions>,
}

/// All real devices: devices with at least one connection so far.
#[derive(Debug, Default)]
pub(crate) struct RealDevices {
    pub(super) by_number: HashMap<u32, RealDevice>,
    /// The locked messages, by lock.
    locks: HashMap<Uuid, u32>,
    /// The lock expiries, each with the lock.
    lock_ends: BTreeSet<(u64, Uuid)>,
}

/// The terms under which a device takes messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) serial: Option<u64>,
    pub(super) lock: Option<Duration>,
    /// The largest number of messages held at the same time.
    pub(super) held_max: usize,
}

/// A connected device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionReport {
    /// The device's id.
    pub device_id: String,
    /// The time of connection, in milliseconds since 1970.
    pub connected_ms: u64,
    /// The time of the last activity, in milliseconds since 1970.
    pub active_ms: u64,
    /// The number of messages held by the device.
    pub held: u64,
    /// The number of messages waiting for the device.
    pub waiting: u64,
}

impl Hub {
    /// Returns the connected real devices, in no particular order.
    pub(crate) fn sessions(&self) -> Vec<SessionReport> {
        let registry = self.registry();
        let state = self.state();
        let report = |(device, real): (&u32, &RealDevice)| {
            let connection = real.connection.as_ref()?;
            Some(SessionReport {
                device_id: registry.id(*device)?,
                connected_ms: real.changed_ms,
                active_ms: connection.activity_ms(),
                held: real.held.len() as u64,
                waiting: real.waiting.len() as u64,
            })
        };
        state.devices.by_number.iter().filter_map(report).collect()
    }
}

impl RealDevices {
    /// Adds a new message to a real device's queue, and wakes the connection.
    pub(crate) fn arrived(&mut self, device: u32, number: u32) {
        let Some(real) = self.by_number.get_mut(&device) else {
            return;
        };
        real.waiting.insert(number);
        if let Some(connection) = &real.connection {
            connection.wake();
        }
    }

    /// Returns the number of real devices.
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn connection(&self, device: u32) -> Option<Arc<DeviceConnection>> {
        self.by_number.get(&device)?.connection.clone()
    }

    /// Releases a held message and the lock, if `is_holder` accepts the holder. Returns whether the
    /// message was released.
    fn release(
        &mut self,
        device: u32,
        number: u32,
        is_holder: impl Fn(&MessageHolder) -> bool,
    ) -> bool {
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
    /// Gives a device the next messages, as many as `hold` allows.
    pub(super) fn take(&mut self, device: u32, hold: Hold, now_ms: u64) -> Vec<Delivery> {
        let mut taken = Vec::new();
        let Some(real) = self.devices.by_number.get(&device) else {
            return taken;
        };
        let current = real.connection.as_ref().map(|connection| connection.serial);
        if hold.serial.is_some() && hold.serial != current {
            // The caller is an earlier connection, not yet aware of the replacement.
            return taken;
        }
        let is_its = |holder: &&MessageHolder| holder.serial == hold.serial;
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
                    "message lost: the body was not stored before the device connected"
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
            real.held.insert(number, MessageHolder { serial, lock });
        }
    }

    /// Settles a message held by the connection `serial`. Returns `false` if the connection does
    /// not hold the message.
    pub(super) fn settle(
        &mut self,
        device: u32,
        number: u32,
        serial: u64,
        settlement: MessageSettlement,
        now_ms: u64,
        deliveries_max: u32,
    ) -> bool {
        let is_its = |holder: &MessageHolder| holder.serial == Some(serial);
        if !self.devices.release(device, number, is_its) {
            return false;
        }
        self.do_settle(device, number, settlement, now_ms, deliveries_max);
        true
    }

    /// Settles a locked message. Returns `false` if the device has no such lock.
    pub(super) fn settle_lock(
        &mut self,
        device: u32,
        lock: Uuid,
        settlement: MessageSettlement,
        now_ms: u64,
        deliveries_max: u32,
    ) -> bool {
        let Some(number) = self.devices.locks.get(&lock).copied() else {
            return false;
        };
        let is_its = |holder: &MessageHolder| holder.lock.is_some_and(|(held, _)| held == lock);
        if !self.devices.release(device, number, is_its) {
            return false;
        }
        self.do_settle(device, number, settlement, now_ms, deliveries_max);
        true
    }

    fn do_settle(
        &mut self,
        device: u32,
        number: u32,
        settlement: MessageSettlement,
        now_ms: u64,
        deliveries_max: u32,
    ) {
        match settlement {
            MessageSettlement::Completed => self.end(number, MessageState::Delivered, now_ms),
            MessageSettlement::Rejected => self.end(number, MessageState::Rejected, now_ms),
            MessageSettlement::Abandoned => {
                self.requeue(device, number, now_ms, Some(deliveries_max));
            }
        }
    }

    /// Puts a message back into the queue, unless the message has expired or reached the delivery
    /// limit.
    fn requeue(&mut self, device: u32, number: u32, now_ms: u64, deliveries_max: Option<u32>) {
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
            self.store.requeue(number);
            self.devices.arrived(device, number);
        }
    }

    /// Takes back all messages held by a connection.
    pub(super) fn requeue_all(
        &mut self,
        device: u32,
        serial: u64,
        now_ms: u64,
        deliveries_max: u32,
    ) {
        let Some(real) = self.devices.by_number.get(&device) else {
            return;
        };
        let is_its = |holder: &MessageHolder| holder.serial == Some(serial);
        let held: Vec<u32> = real
            .held
            .iter()
            .filter(|(_, holder)| is_its(holder))
            .map(|(number, _)| *number)
            .collect();
        for number in held {
            self.devices.release(device, number, is_its);
            self.requeue(device, number, now_ms, Some(deliveries_max));
        }
    }

    /// Takes back messages with an expired lock. The end of a lock does not count against the
    /// delivery limit.
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
            if self.devices.release(device, number, |_| true) {
                self.requeue(device, number, now_ms, None);
            }
        }
    }

    /// Forgets a deleted device. Returns the connection, which the caller ends.
    pub(crate) fn forget(&mut self, device: u32) -> Option<Arc<DeviceConnection>> {
        let real = self.devices.by_number.remove(&device)?;
        for (lock, until_ms) in real.held.into_values().filter_map(|holder| holder.lock) {
            self.devices.locks.remove(&lock);
            self.devices.lock_ends.remove(&(until_ms, lock));
        }
        real.connection
    }

    /// Makes a device real: pending messages wait for the device from now on.
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
    /// Gives a device the next message under a lock, without a connection.
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

    /// Settles a message by the lock. Returns `false` if the device does not hold such a lock any
    /// more.
    pub(crate) fn settle_lock(
        &self,
        device: u32,
        lock: Uuid,
        settlement: MessageSettlement,
    ) -> bool {
        let max = self.config.delivery_count_max;
        let now_ms = self.now_ms();
        self.state()
            .settle_lock(device, lock, settlement, now_ms, max)
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
