//! A connected device, as seen by the transport.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;

use super::super::core::{Hub, State};
use super::super::refusal::Refusal;
use super::connection::{DeviceConnection, DeviceEvent, EndReason, Interest};
use super::identity::{AuthenticatedDevice, AuthenticationError};
use super::method::MethodAnswer;
use super::queue::{Delivery, Hold, MessageSettlement};
use crate::fleet::{ConnectionInfo, RealTwin, Registry, Reported};
use crate::hub::MessageState;

/// The subscriptions of a device, each with the granted quality of service, in a session that
/// outlives the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Subscriptions {
    pub(crate) messages: Option<u8>,
    pub(crate) methods: Option<u8>,
    pub(crate) desired: Option<u8>,
    pub(crate) twin: Option<u8>,
}

/// A device's connection. Dropping the session disconnects the device and returns held messages to
/// the queue.
#[derive(Debug)]
pub(crate) struct DeviceSession {
    hub: Arc<Hub>,
    connection: Arc<DeviceConnection>,
    pub(crate) device: AuthenticatedDevice,
}

/// The largest message from a device, in bytes with properties
/// (`iot-hub-devguide-quotas-throttling`).
const MAX_TELEMETRY_BYTES: usize = 256 * 1024;

impl Hub {
    /// Connects a device and ends an earlier connection of the same device. `wake` is notified
    /// whenever messages or events may be waiting; several sessions may share one `wake`.
    pub(crate) fn attach(
        self: &Arc<Self>,
        device: AuthenticatedDevice,
        wake: Arc<Notify>,
    ) -> Result<DeviceSession, AuthenticationError> {
        let serial = self.connections_made.fetch_add(1, Ordering::Relaxed);
        let now_ms = self.now_ms();
        let connection = Arc::new(DeviceConnection::new(serial, wake, now_ms));
        self.with_real_device(&device, |state, registry_device| {
            let Some(real) = state.devices.by_number.get_mut(&registry_device) else {
                return;
            };
            real.changed_ms = now_ms;
            let old = real.connection.replace(Arc::clone(&connection));
            if let Some(old) = old {
                self.counters.device_replacements.one();
                state.requeue_all(
                    registry_device,
                    old.serial,
                    now_ms,
                    self.config.delivery_count_max,
                );
                old.end(EndReason::Replaced);
            } else {
                self.counters.connected_devices.up();
            }
        })?;
        self.counters.device_connections.one();
        Ok(DeviceSession {
            hub: Arc::clone(self),
            connection,
            device,
        })
    }

    /// Makes an authenticated device real, if not deleted since, and records activity.
    pub(crate) fn record_activity(
        &self,
        device: &AuthenticatedDevice,
    ) -> Result<(), AuthenticationError> {
        let now_ms = self.now_ms();
        self.with_real_device(device, |state, device| {
            if let Some(real) = state.devices.by_number.get_mut(&device) {
                real.activity_ms = now_ms;
            }
        })
    }

    fn with_real_device(
        &self,
        device: &AuthenticatedDevice,
        then: impl FnOnce(&mut State, u32),
    ) -> Result<(), AuthenticationError> {
        {
            // The registry lock is held to the end: a later deletion of the device finds the
            // connection, and ends it.
            let registry = self.registry();
            if check_device(&registry, device)? {
                then(&mut self.state(), device.number);
                return Ok(());
            }
        }
        let mut registry = self.registry_mut();
        check_device(&registry, device)?;
        // Stop the simulation first, then keep the simulated state.
        self.state().make_real(device.number);
        self.make_real(&mut registry, device.number);
        then(&mut self.state(), device.number);
        Ok(())
    }

    fn make_real(&self, registry: &mut Registry, device: u32) {
        let Some(record) = registry.record(device).filter(|it| it.real.is_none()) else {
            return;
        };
        let reported = self.reported_of(registry, device, &record, self.now_ms());
        if let Some(record) = registry.record_mut(device) {
            let Reported {
                values,
                metadata,
                version,
            } = reported;
            record.reported = values;
            record.real = Some(Box::new(RealTwin::new(metadata, version)));
        }
    }

    /// Returns the state of a real device's connection.
    pub(crate) fn real_connection_info(&self, device: u32) -> ConnectionInfo {
        let state = self.state();
        let Some(real) = state.devices.by_number.get(&device) else {
            return ConnectionInfo::default();
        };
        let at = |ms: u64| (ms > 0).then_some(ms);
        let active = real
            .connection
            .as_ref()
            .map_or(0, |connection| connection.activity_ms());
        ConnectionInfo {
            connected: real.connection.is_some(),
            activity_ms: at(active.max(real.activity_ms)),
            changed_ms: at(real.changed_ms),
        }
    }

    /// Ends a device's connection, if connected.
    pub(crate) fn disconnect(&self, device: u32, reason: EndReason) {
        if let Some(connection) = self.state().devices.connection(device) {
            connection.end(reason);
        }
    }

    /// Ends the connections of all devices.
    pub(crate) fn disconnect_all(&self) {
        let state = self.state();
        let connections = state
            .devices
            .by_number
            .values()
            .filter_map(|it| it.connection.as_ref());
        connections.for_each(|connection| connection.end(EndReason::Cut));
    }

    /// Forgets a deleted device: messages are lost and the connection ends.
    pub(crate) fn forget_device(&self, device: u32) {
        self.empty_queue(device, MessageState::Lost);
        let connection = self.state().forget(device);
        if let Some(connection) = connection {
            self.counters.connected_devices.down();
            connection.end(EndReason::Deleted);
        }
    }

    /// Counts a message from a device against the daily quota. The content is not kept.
    pub(crate) fn take_telemetry(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes > MAX_TELEMETRY_BYTES {
            return Err(Refusal::too_large(bytes, MAX_TELEMETRY_BYTES));
        }
        let now_ms = self.now_ms();
        self.charge(&mut self.state(), bytes, now_ms)?;
        self.counters.telemetry_messages.one();
        self.counters.telemetry_bytes.add(bytes as u64);
        Ok(())
    }
}

/// Whether the device is already real. Returns an error if `device` is an earlier device of the
/// same number, or if the device is disabled.
fn check_device(
    registry: &Registry,
    device: &AuthenticatedDevice,
) -> Result<bool, AuthenticationError> {
    use crate::fleet::MessageBehaviour;
    let found = registry.id_and_generation(device.number);
    if found.is_none_or(|(_, generation)| generation != device.generation) {
        return Err(AuthenticationError::Unknown(device.id.clone()));
    }
    match registry.message_behaviour(device.number) {
        MessageBehaviour::Disabled => Err(AuthenticationError::Disabled(device.id.clone())),
        behaviour => Ok(behaviour == MessageBehaviour::Real),
    }
}

impl DeviceSession {
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Records activity of the device.
    pub(crate) fn touch(&self) {
        self.connection.touch(self.hub.now_ms());
    }

    /// Returns the next event, if any. [`DeviceEvent::Ended`] is the last event.
    pub(crate) fn next_event(&self) -> Option<DeviceEvent> {
        self.connection.next_event()
    }

    /// Sets whether the device accepts method calls or changes of desired properties. A new session
    /// accepts neither.
    pub(crate) fn set_interest(&self, interest: Interest, on: bool) {
        self.connection.set_interest(interest, on);
        if on && interest == Interest::Methods {
            self.hub.methods_ready.notify_waiters();
        }
    }

    /// Takes the next messages, in order, as many as the connection may hold. With `lock`, a
    /// message not settled within that time goes back to the queue; without, the connection holds
    /// each message as long as the connection lasts.
    pub(crate) fn take(&self, lock: Option<Duration>) -> Vec<Delivery> {
        let hold = Hold {
            serial: Some(self.connection.serial),
            lock,
            held_max: self.hub.config.device_inflight_max,
        };
        let now_ms = self.hub.now_ms();
        let taken = self.hub.state().take(self.device.number, hold, now_ms);
        self.hub.counters.deliveries.add(taken.len() as u64);
        taken
    }

    /// Settles a message. Returns `false` if the connection does not hold the message any more.
    pub(crate) fn settle(&self, number: u32, settlement: MessageSettlement) -> bool {
        self.touch();
        let max = self.hub.config.delivery_count_max;
        let (now_ms, serial) = (self.hub.now_ms(), self.connection.serial);
        let device = self.device.number;
        self.hub
            .state()
            .settle(device, number, serial, settlement, now_ms, max)
    }

    /// Returns all messages held by the connection to the queue, as the end of the connection does.
    pub(crate) fn give_back(&self) {
        let max = self.hub.config.delivery_count_max;
        let (now_ms, serial) = (self.hub.now_ms(), self.connection.serial);
        self.hub
            .state()
            .requeue_all(self.device.number, serial, now_ms, max);
    }

    /// Answers a method call. Returns `false` if no caller waits.
    pub(crate) fn answer(&self, call: u64, answer: MethodAnswer) -> bool {
        self.touch();
        self.connection.answer(call, answer)
    }

    /// Accepts a message from the device. The content is not kept.
    pub(crate) fn telemetry(&self, bytes: usize) -> Result<(), Refusal> {
        self.touch();
        self.hub.take_telemetry(bytes)
    }

    /// Returns the subscriptions kept from earlier connections of a persistent session.
    pub(crate) fn subscriptions(&self) -> Option<Subscriptions> {
        let state = self.hub.state();
        state
            .devices
            .by_number
            .get(&self.device.number)?
            .subscriptions
    }

    /// Keeps the device's subscriptions for later connections; `None` forgets them.
    pub(crate) fn keep_subscriptions(&self, subscriptions: Option<Subscriptions>) {
        let mut state = self.hub.state();
        if let Some(real) = state.devices.by_number.get_mut(&self.device.number) {
            let is_current = real
                .connection
                .as_ref()
                .is_some_and(|connection| connection.serial == self.connection.serial);
            if is_current {
                real.subscriptions = subscriptions;
            }
        }
    }
}

impl Drop for DeviceSession {
    fn drop(&mut self) {
        self.give_back();
        let now_ms = self.hub.now_ms();
        let mut state = self.hub.state();
        if let Some(real) = state.devices.by_number.get_mut(&self.device.number) {
            real.activity_ms = real.activity_ms.max(self.connection.activity_ms());
            let is_current = real
                .connection
                .as_ref()
                .is_some_and(|connection| connection.serial == self.connection.serial);
            if is_current {
                real.connection = None;
                real.changed_ms = now_ms;
                self.hub.counters.connected_devices.down();
            }
        }
        drop(state);
        // Waiting callers learn that no answer will come.
        self.connection.end(EndReason::Cut);
    }
}
