//! Devices on a connection: authentication, links, and the messages in both directions.
//!
//! A device has a slot in the connection from the first token or link on, and is connected to the
//! hub while at least one link is open. Libraries for many devices put the token and the links of
//! each device on one connection.

mod message;
mod method;
mod twin;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::address::{DeviceEndpoint, Node};
use super::connection::{Connection, LinkKey};
use super::link::{LinkState, Unsettled};
use super::message::{Message, body_bytes};
use super::outcome::{AmqpError, Verdict};
use crate::hub::{
    AuthenticatedDevice, AuthenticationError, ClientCertificate, Delivery, DeviceEvent,
    DeviceSession, EndReason, Interest, MessageSettlement, Proof, Refusal,
};

/// The largest number of devices on one connection, as on the hub (`iot-hub-amqp-support`,
/// multiplexing).
const DEVICES_MAX: usize = 1_000;
/// The number of calls, changes and answers that may wait for the credit of one device.
const WAITING_MAX: usize = 200;

/// The devices of one connection.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// The client's certificate from the TLS handshake.
    certificate: Option<ClientCertificate>,
    slots: Vec<Slot>,
    /// Notified when messages or events may be waiting for a device.
    pub(crate) wake: Arc<Notify>,
}

/// The slot of one device.
#[derive(Debug, Default)]
struct Slot {
    id: String,
    device: Option<AuthenticatedDevice>,
    session: Option<DeviceSession>,
    links: u32,
    /// The links for receiving, by endpoint: messages, methods, twin.
    receivers: [Option<LinkKey>; 3],
    deliveries: VecDeque<Delivery>,
    events: VecDeque<DeviceEvent>,
    /// Answers to twin requests.
    answers: VecDeque<Vec<u8>>,
}

impl Slot {
    fn receiver(&mut self, endpoint: DeviceEndpoint) -> Option<&mut Option<LinkKey>> {
        let index = match endpoint {
            DeviceEndpoint::Telemetry => return None,
            DeviceEndpoint::Messages => 0,
            DeviceEndpoint::Methods => 1,
            DeviceEndpoint::Twin => 2,
        };
        Some(&mut self.receivers[index])
    }
}

impl Devices {
    pub(crate) fn new(certificate: Option<ClientCertificate>) -> Self {
        Self {
            certificate,
            ..Self::default()
        }
    }

    /// Returns the client's certificate from the TLS handshake.
    pub(crate) fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.id == id)
    }

    /// Records an authenticated device. Returns the slot, or `None` if all [`DEVICES_MAX`] slots
    /// have links.
    pub(crate) fn put(&mut self, device: AuthenticatedDevice) -> Option<usize> {
        let slot_index = match self.position(&device.id) {
            Some(slot_index) => slot_index,
            None if self.slots.len() < DEVICES_MAX => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            // Reuse the slot of a device without links.
            None => self.slots.iter().position(|slot| slot.session.is_none())?,
        };
        let slot = &mut self.slots[slot_index];
        slot.id.clone_from(&device.id);
        slot.device = Some(device);
        Some(slot_index)
    }

    /// Drops the authentication of devices with an expired token, and returns their slots.
    fn take_ended(&mut self, now_s: u64) -> Vec<usize> {
        let mut ended = Vec::new();
        for (slot_index, slot) in self.slots.iter_mut().enumerate() {
            let over =
                |device: &AuthenticatedDevice| device.ends_s.is_some_and(|ends_s| ends_s <= now_s);
            if slot.device.as_ref().is_some_and(over) {
                slot.device = None;
                ended.push(slot_index);
            }
        }
        ended
    }

    /// Disconnects all devices.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    fn session(&self, slot_index: usize) -> Option<&DeviceSession> {
        self.slots.get(slot_index)?.session.as_ref()
    }

    /// Settles a message held by a device.
    pub(crate) fn settle(&self, slot_index: usize, number: u32, settlement: MessageSettlement) {
        if let Some(session) = self.session(slot_index) {
            session.settle(number, settlement);
        }
    }
}

impl Connection {
    /// Connects a device authenticated by a token on this connection or by the TLS certificate, and
    /// returns the slot.
    pub(crate) fn admit_device(&mut self, id: &str) -> Result<usize, Refusal> {
        let known = self.devices.position(id);
        let known = known.filter(|slot_index| self.devices.slots[*slot_index].device.is_some());
        let slot_index = match (known, self.devices.certificate()) {
            (Some(slot_index), _) => slot_index,
            (None, Some(certificate)) => {
                let device = self
                    .hub
                    .authenticate_device(id, Proof::Certificate(certificate))
                    .map_err(|error| Refusal::from(&error))?;
                self.devices.put(device).ok_or_else(too_many_devices)?
            }
            (None, None) => {
                let text = format!("no token on this connection is for the device {id}");
                return Err(Refusal::unauthorized(text));
            }
        };
        self.connect_device(slot_index)
            .map_err(|error| Refusal::from(&error))?;
        Ok(slot_index)
    }

    fn connect_device(&mut self, slot_index: usize) -> Result<(), AuthenticationError> {
        let Some(slot) = self.devices.slots.get_mut(slot_index) else {
            return Ok(());
        };
        if let (None, Some(device)) = (&slot.session, &slot.device) {
            let wake = Arc::clone(&self.devices.wake);
            slot.session = Some(self.hub.attach(device.clone(), wake)?);
        }
        Ok(())
    }

    pub(crate) fn device_link_opened(
        &mut self,
        key: LinkKey,
        slot_index: usize,
        endpoint: DeviceEndpoint,
    ) {
        let receives = self.live_link(key).is_some_and(|link| link.peer_receives);
        let Some(slot) = self.devices.slots.get_mut(slot_index) else {
            return;
        };
        slot.links += 1;
        if receives && let Some(receiver) = slot.receiver(endpoint) {
            *receiver = Some(key);
        }
        if receives
            && endpoint == DeviceEndpoint::Methods
            && let Some(session) = &slot.session
        {
            session.set_interest(Interest::Methods, true);
        }
        self.pump_device(slot_index);
    }

    /// Handles the end of a link. The end of the last link disconnects the device.
    pub(crate) fn device_link_closed(
        &mut self,
        key: LinkKey,
        slot_index: usize,
        endpoint: DeviceEndpoint,
    ) {
        let Some(slot) = self.devices.slots.get_mut(slot_index) else {
            return;
        };
        slot.links = slot.links.saturating_sub(1);
        if let Some(receiver) = slot.receiver(endpoint)
            && *receiver == Some(key)
        {
            *receiver = None;
            let interest = match endpoint {
                DeviceEndpoint::Methods => Some(Interest::Methods),
                DeviceEndpoint::Twin => Some(Interest::Desired),
                DeviceEndpoint::Telemetry | DeviceEndpoint::Messages => None,
            };
            if let (Some(interest), Some(session)) = (interest, &slot.session) {
                session.set_interest(interest, false);
            }
            match endpoint {
                DeviceEndpoint::Messages => {
                    for delivery in std::mem::take(&mut slot.deliveries) {
                        if let Some(session) = &slot.session {
                            session.settle(delivery.number, MessageSettlement::Abandoned);
                        }
                    }
                }
                DeviceEndpoint::Twin => slot.answers.clear(),
                DeviceEndpoint::Telemetry | DeviceEndpoint::Methods => {}
            }
        }
        if slot.links == 0 {
            slot.session = None;
            slot.events.clear();
        }
    }

    /// Detaches the links of devices with an expired token.
    pub(crate) fn check_devices(&mut self) {
        for slot_index in self.devices.take_ended(self.hub.now_s()) {
            let error = AmqpError::plain("amqp:unauthorized-access", "The token has expired.");
            self.detach_device(slot_index, &error);
        }
    }

    fn detach_device(&mut self, slot_index: usize, error: &AmqpError) {
        self.detach_where(error, |link| {
            link.state != LinkState::Detached
                && matches!(link.node, Node::Device(of, _) if of == slot_index)
        });
    }

    /// Sends waiting messages, events and answers to all devices, as far as credit allows.
    pub(crate) fn pump_devices(&mut self) {
        for slot_index in 0..self.devices.slots.len() {
            self.pump_device(slot_index);
        }
    }

    pub(crate) fn pump_device(&mut self, slot_index: usize) {
        if let Some(ended) = self.take_events(slot_index) {
            let code = match ended {
                EndReason::Replaced => "amqp:link:stolen",
                EndReason::Disabled | EndReason::Deleted => "amqp:not-found",
                EndReason::TooSlow => "amqp:resource-limit-exceeded",
                EndReason::Cut => "amqp:link:detach-forced",
            };
            let text = match ended {
                EndReason::Replaced => {
                    "400027 ConnectionForcefullyClosedOnNewConnection: the device has connected anew."
                        .to_owned()
                }
                other => format!("The link is detached: {other}."),
            };
            self.detach_device(slot_index, &AmqpError::plain(code, text));
            return;
        }
        self.pump_events(slot_index);
        self.pump_answers(slot_index);
        self.pump_messages(slot_index);
    }

    /// Takes events from the device's session. Returns the reason if the connection has ended.
    fn take_events(&mut self, slot_index: usize) -> Option<EndReason> {
        let slot = self.devices.slots.get_mut(slot_index)?;
        let session = slot.session.as_ref()?;
        while let Some(event) = session.next_event() {
            if let DeviceEvent::Ended(reason) = event {
                return Some(reason);
            }
            if slot.events.len() >= WAITING_MAX {
                return Some(EndReason::TooSlow);
            }
            slot.events.push_back(event);
        }
        None
    }

    fn pump_events(&mut self, slot_index: usize) {
        while let Some(slot) = self.devices.slots.get_mut(slot_index) {
            let Some(event) = slot.events.front() else {
                return;
            };
            let endpoint = match event {
                DeviceEvent::Method(_) => DeviceEndpoint::Methods,
                DeviceEvent::Desired(_) | DeviceEvent::Ended(_) => DeviceEndpoint::Twin,
            };
            let Some(key) = self.ready_receiver(slot_index, endpoint) else {
                return;
            };
            let event = self.devices.slots[slot_index].events.pop_front();
            let payload = match event {
                Some(DeviceEvent::Method(call)) => method::encode_call(&call),
                Some(DeviceEvent::Desired(push)) => twin::encode_push(&push),
                Some(DeviceEvent::Ended(_)) | None => return,
            };
            self.send_to_device(key, uuid::Uuid::new_v4().as_bytes(), &payload, None);
        }
    }

    fn pump_answers(&mut self, slot_index: usize) {
        while let Some(slot) = self.devices.slots.get(slot_index)
            && !slot.answers.is_empty()
            && let Some(key) = self.ready_receiver(slot_index, DeviceEndpoint::Twin)
        {
            let Some(payload) = self.devices.slots[slot_index].answers.pop_front() else {
                return;
            };
            self.send_to_device(key, uuid::Uuid::new_v4().as_bytes(), &payload, None);
        }
    }

    fn pump_messages(&mut self, slot_index: usize) {
        while let Some(key) = self.ready_receiver(slot_index, DeviceEndpoint::Messages) {
            let lock = self.hub.config.device_lock;
            let Some(slot) = self.devices.slots.get_mut(slot_index) else {
                return;
            };
            if slot.deliveries.is_empty()
                && let Some(session) = &slot.session
            {
                slot.deliveries.extend(session.take(Some(lock)));
            }
            let Some(delivery) = slot.deliveries.pop_front() else {
                return;
            };
            let payload = message::encode(&slot.id, &delivery);
            // The delivery tag is the lock token, as on the hub.
            let tag = delivery.lock.unwrap_or_default();
            self.send_to_device(
                key,
                tag.as_bytes(),
                &payload,
                Some((slot_index, delivery.number)),
            );
        }
    }

    /// Returns the link for sending to a device's endpoint, if the link has credit.
    fn ready_receiver(&mut self, slot_index: usize, endpoint: DeviceEndpoint) -> Option<LinkKey> {
        let key = (*self.devices.slots.get_mut(slot_index)?.receiver(endpoint)?)?;
        let session = self.session(key.channel)?;
        if !session.can_send() {
            return None;
        }
        let link = self.live_link(key)?;
        (link.state == LinkState::Open && link.credit > 0).then_some(key)
    }

    /// Sends on a link with credit. `held` is the device slot and the number of a message to be
    /// settled.
    fn send_to_device(
        &mut self,
        key: LinkKey,
        tag: &[u8],
        payload: &[u8],
        held: Option<(usize, u32)>,
    ) {
        let frame_max = self.peer_frame_max;
        let Some(link) = self.live_link(key) else {
            return;
        };
        link.credit = link.credit.saturating_sub(1);
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let (presettled, handle) = (link.presettled, key.handle);
        self.flush_accepted();
        let sessions = &mut self.sessions;
        let Some(Some(session)) = sessions.get_mut(usize::from(key.channel)) else {
            return;
        };
        let id = session.write_message(&mut self.out, frame_max, handle, tag, presettled, payload);
        match (held, presettled) {
            (Some((device, number)), true) => {
                self.devices
                    .settle(device, number, MessageSettlement::Completed);
            }
            (Some((device, number)), false) => {
                let held = Unsettled::Message {
                    handle,
                    device,
                    number,
                };
                session.unsettled.insert(id, held);
            }
            (None, true) => {}
            (None, false) => {
                session.unsettled.insert(id, Unsettled::Reply { handle });
            }
        }
    }

    /// Handles a message from a device.
    pub(crate) fn on_device_message(
        &mut self,
        key: LinkKey,
        (slot_index, endpoint): (usize, DeviceEndpoint),
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) {
        let verdict = match self.do_device_message(slot_index, endpoint, payload) {
            Ok(()) => Verdict::Accepted,
            Err(refusal) => Verdict::Rejected(Box::new(refusal)),
        };
        if !settled {
            self.answer(key, delivery_id, &verdict);
        }
        if endpoint == DeviceEndpoint::Twin {
            self.flush_accepted();
            self.pump_device(slot_index);
        }
    }

    fn do_device_message(
        &mut self,
        slot_index: usize,
        endpoint: DeviceEndpoint,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let unreadable =
            |error| Refusal::bad_argument(format!("the message cannot be read: {error}"));
        let message = Message::read(payload).map_err(unreadable)?;
        let Some(slot) = self.devices.slots.get_mut(slot_index) else {
            return Ok(());
        };
        let Some(session) = &slot.session else {
            return Ok(());
        };
        match endpoint {
            DeviceEndpoint::Telemetry => session.telemetry(payload.len()),
            DeviceEndpoint::Methods => {
                let (call, answer) = method::read_answer(&message)?;
                // A late answer, without a waiting caller, is accepted.
                session.answer(call, answer);
                Ok(())
            }
            DeviceEndpoint::Twin => {
                if slot.answers.len() >= WAITING_MAX {
                    return Err(Refusal::throttled("TwinRequest"));
                }
                let answer = twin::answer(session, &message, &body_bytes(message.body));
                slot.answers.push_back(answer);
                Ok(())
            }
            // Never reached: see `Node::directions`.
            DeviceEndpoint::Messages => Ok(()),
        }
    }
}

pub(crate) fn too_many_devices() -> Refusal {
    Refusal::bad_operation(format!(
        "a connection can have at most {DEVICES_MAX} devices; use another connection for more"
    ))
}
