//! A connected device, as its transport has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;

use super::super::core::{Hub, State};
use super::super::refusal::Refusal;
use super::identity::{Denial, DevicePass};
use super::line::{DeviceEvent, Ended, Interest, Line};
use super::method::MethodAnswer;
use super::queue::{Delivery, Hold, Settling};
use crate::fleet::{Contact, RealTwin, Registry, Reported};
use crate::hub::MessageState;

/// What a device has subscribed to, each with the granted quality of service, in a session that outlives its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Subscriptions {
    pub(crate) messages: Option<u8>,
    pub(crate) methods: Option<u8>,
    pub(crate) desired: Option<u8>,
    pub(crate) twin: Option<u8>,
}

/// A device's connection. Dropping it disconnects the device; what it holds goes back to its queue.
#[derive(Debug)]
pub(crate) struct DeviceSession {
    hub: Arc<Hub>,
    line: Arc<Line>,
    pub(crate) pass: DevicePass,
}

/// The largest message of a device, in bytes with its properties (`iot-hub-devguide-quotas-throttling`).
const LARGEST_TELEMETRY: usize = 256 * 1024;

impl Hub {
    /// Connects a device in the place of an earlier connection of it, which ends. `wake` is notified whenever there may
    /// be something to take or to do; several sessions may have the same one.
    pub(crate) fn attach(
        self: &Arc<Self>,
        pass: DevicePass,
        wake: Arc<Notify>,
    ) -> Result<DeviceSession, Denial> {
        let serial = self.connections_made.fetch_add(1, Ordering::Relaxed);
        let now_ms = self.now_ms();
        let line = Arc::new(Line::new(serial, wake, now_ms));
        self.settle_in(&pass, |state, registry_device| {
            let Some(real) = state.devices.by_number.get_mut(&registry_device) else {
                return;
            };
            real.changed_ms = now_ms;
            let old = real.line.replace(Arc::clone(&line));
            if let Some(old) = old {
                self.tallies.device_replacements.one();
                state.take_back_all(
                    registry_device,
                    old.serial,
                    now_ms,
                    self.config.delivery_count_max,
                );
                old.end(Ended::Replaced);
            } else {
                self.tallies.connected_devices.up();
            }
        })?;
        self.tallies.device_connections.one();
        Ok(DeviceSession {
            hub: Arc::clone(self),
            line,
            pass,
        })
    }

    /// Makes the device a real one, if it is still the one that the pass is for, and notes that it is active.
    pub(crate) fn visit(&self, pass: &DevicePass) -> Result<(), Denial> {
        let now_ms = self.now_ms();
        self.settle_in(pass, |state, device| {
            if let Some(real) = state.devices.by_number.get_mut(&device) {
                real.activity_ms = now_ms;
            }
        })
    }

    fn settle_in(
        &self,
        pass: &DevicePass,
        then: impl FnOnce(&mut State, u32),
    ) -> Result<(), Denial> {
        {
            // Under the lock to the end: a device that is deleted is forgotten after this, and its connection ends.
            let registry = self.registry();
            if check_pass(&registry, pass)? {
                then(&mut self.state(), pass.device);
                return Ok(());
            }
        }
        let mut registry = self.registry_mut();
        check_pass(&registry, pass)?;
        // First nothing is played any more, and then what was played is kept.
        self.state().make_real(pass.device);
        self.make_real(&mut registry, pass.device);
        then(&mut self.state(), pass.device);
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

    /// What is known of a real device's connection.
    pub(crate) fn real_contact(&self, device: u32) -> Contact {
        let state = self.state();
        let Some(real) = state.devices.by_number.get(&device) else {
            return Contact::default();
        };
        let at = |ms: u64| (ms > 0).then_some(ms);
        let active = real.line.as_ref().map_or(0, |line| line.activity_ms());
        Contact {
            connected: real.line.is_some(),
            activity_ms: at(active.max(real.activity_ms)),
            changed_ms: at(real.changed_ms),
        }
    }

    /// Ends a device's connection, if it has one.
    pub(crate) fn disconnect(&self, device: u32, reason: Ended) {
        if let Some(line) = self.state().devices.line(device) {
            line.end(reason);
        }
    }

    /// Ends the connections of all devices.
    pub(crate) fn disconnect_all(&self) {
        let state = self.state();
        let lines = state
            .devices
            .by_number
            .values()
            .filter_map(|it| it.line.as_ref());
        lines.for_each(|line| line.end(Ended::Cut));
    }

    /// Forgets a deleted device: its messages are lost and its connection ends.
    pub(crate) fn forget_device(&self, device: u32) {
        self.empty_queue(device, MessageState::Lost);
        let line = self.state().forget(device);
        if let Some(line) = line {
            self.tallies.connected_devices.down();
            line.end(Ended::Deleted);
        }
    }

    /// Counts a message of a device against the day's quota; nothing is kept of it.
    pub(crate) fn take_telemetry(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes > LARGEST_TELEMETRY {
            return Err(Refusal::too_large(bytes, LARGEST_TELEMETRY));
        }
        let now_ms = self.now_ms();
        self.charge(&mut self.state(), bytes, now_ms)?;
        self.tallies.telemetry_messages.one();
        self.tallies.telemetry_bytes.add(bytes as u64);
        Ok(())
    }
}

/// Whether the device is a real one already; an error if it is not the one that the pass is for.
fn check_pass(registry: &Registry, pass: &DevicePass) -> Result<bool, Denial> {
    use crate::fleet::Conduct;
    let found = registry.id_and_generation(pass.device);
    if found.is_none_or(|(_, generation)| generation != pass.generation) {
        return Err(Denial::Unknown(pass.id.clone()));
    }
    match registry.conduct(pass.device) {
        Conduct::Disabled => Err(Denial::Disabled(pass.id.clone())),
        conduct => Ok(conduct == Conduct::Real),
    }
}

impl DeviceSession {
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Notes that the device has done something.
    pub(crate) fn touch(&self) {
        self.line.touch(self.hub.now_ms());
    }

    /// The next thing to do, if there is one. After [`DeviceEvent::Ended`] there is nothing else.
    pub(crate) fn next_event(&self) -> Option<DeviceEvent> {
        self.line.next_event()
    }

    /// Whether the device wants to be called, or told of changes. It does not, to begin with.
    pub(crate) fn set_interest(&self, interest: Interest, on: bool) {
        self.line.set_interest(interest, on);
        if on && interest == Interest::Methods {
            self.hub.methods_ready.notify_waiters();
        }
    }

    /// The next messages, in order, as far as the connection may hold more. With a `lock`, what is not settled in that
    /// time goes back to the queue; without, the connection holds it as long as it lasts.
    pub(crate) fn take(&self, lock: Option<Duration>) -> Vec<Delivery> {
        let hold = Hold {
            serial: Some(self.line.serial),
            lock,
            held_max: self.hub.config.device_inflight_max,
        };
        let now_ms = self.hub.now_ms();
        let taken = self.hub.state().take(self.pass.device, hold, now_ms);
        self.hub.tallies.deliveries.add(taken.len() as u64);
        taken
    }

    /// Settles a message; false if the connection does not hold it, or no longer.
    pub(crate) fn settle(&self, number: u32, settling: Settling) -> bool {
        self.touch();
        let max = self.hub.config.delivery_count_max;
        let (now_ms, serial) = (self.hub.now_ms(), self.line.serial);
        let device = self.pass.device;
        self.hub
            .state()
            .settle(device, number, serial, settling, now_ms, max)
    }

    /// Gives back all that the connection holds, as it does when it ends.
    pub(crate) fn give_back(&self) {
        let max = self.hub.config.delivery_count_max;
        let (now_ms, serial) = (self.hub.now_ms(), self.line.serial);
        self.hub
            .state()
            .take_back_all(self.pass.device, serial, now_ms, max);
    }

    /// Answers a method; false if nobody waits for the answer.
    pub(crate) fn answer(&self, call: u64, answer: MethodAnswer) -> bool {
        self.touch();
        self.line.answer(call, answer)
    }

    /// Takes a message of the device, of which nothing is kept.
    pub(crate) fn telemetry(&self, bytes: usize) -> Result<(), Refusal> {
        self.touch();
        self.hub.take_telemetry(bytes)
    }

    /// What the device has subscribed to in earlier connections, if that was to last.
    pub(crate) fn subscriptions(&self) -> Option<Subscriptions> {
        let state = self.hub.state();
        state
            .devices
            .by_number
            .get(&self.pass.device)?
            .subscriptions
    }

    /// Keeps what the device has subscribed to for its next connections; `None` forgets it.
    pub(crate) fn keep_subscriptions(&self, subscriptions: Option<Subscriptions>) {
        let mut state = self.hub.state();
        if let Some(real) = state.devices.by_number.get_mut(&self.pass.device) {
            let is_current = real
                .line
                .as_ref()
                .is_some_and(|line| line.serial == self.line.serial);
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
        if let Some(real) = state.devices.by_number.get_mut(&self.pass.device) {
            real.activity_ms = real.activity_ms.max(self.line.activity_ms());
            let is_current = real
                .line
                .as_ref()
                .is_some_and(|line| line.serial == self.line.serial);
            if is_current {
                real.line = None;
                real.changed_ms = now_ms;
                self.hub.tallies.connected_devices.down();
            }
        }
        drop(state);
        // Callers that wait hear that no answer will come.
        self.line.end(Ended::Cut);
    }
}
