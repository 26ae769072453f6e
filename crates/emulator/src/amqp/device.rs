//! Devices on a connection: who has proved to be one, its links, and what goes to and fro on them.
//!
//! A device has a place in the connection from its first token or link on, and is connected to the hub as long as it has
//! a link. Libraries that serve many devices give each its token and its links on one connection.

mod message;
mod method;
mod twin;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::address::{DeviceEnd, Node};
use super::connection::{Connection, Place};
use super::link::{LinkState, Unsettled};
use super::message::{Message, body_bytes};
use super::outcome::{ErrorText, Verdict};
use crate::hub::{
    ClientCertificate, Delivery, Denial, DeviceEvent, DevicePass, DeviceSession, Ended, Interest,
    Proof, Refusal, Settling,
};

/// How many devices one connection may have, as at the hub (`iot-hub-amqp-support`, multiplexing).
const DEVICES_MAX: usize = 1_000;
/// How many calls, changes and answers may wait for the credit of one device.
const WAITING_MAX: usize = 200;

/// The devices of one connection.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// What the client has shown in its TLS handshake.
    certificate: Option<ClientCertificate>,
    slots: Vec<Slot>,
    /// Notified when there may be something for one of them.
    pub(crate) wake: Arc<Notify>,
}

/// The place of one device.
#[derive(Debug, Default)]
struct Slot {
    id: String,
    pass: Option<DevicePass>,
    session: Option<DeviceSession>,
    links: u32,
    /// The links on which it receives, by their ends.
    receivers: [Option<Place>; 3],
    deliveries: VecDeque<Delivery>,
    events: VecDeque<DeviceEvent>,
    /// Answers to requests about the twin.
    answers: VecDeque<Vec<u8>>,
}

impl Slot {
    fn receiver(&mut self, end: DeviceEnd) -> Option<&mut Option<Place>> {
        let at = match end {
            DeviceEnd::Telemetry => return None,
            DeviceEnd::Messages => 0,
            DeviceEnd::Methods => 1,
            DeviceEnd::Twin => 2,
        };
        Some(&mut self.receivers[at])
    }
}

impl Devices {
    pub(crate) fn new(certificate: Option<ClientCertificate>) -> Self {
        Self {
            certificate,
            ..Self::default()
        }
    }

    /// What the client has shown in its TLS handshake.
    pub(crate) fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.id == id)
    }

    /// Notes that the client has proved to be a device. Returns its place, or none if there are too many.
    pub(crate) fn put(&mut self, pass: DevicePass) -> Option<usize> {
        let at = match self.position(&pass.id) {
            Some(at) => at,
            None if self.slots.len() < DEVICES_MAX => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            // The place of one that has no link.
            None => self.slots.iter().position(|slot| slot.session.is_none())?,
        };
        let slot = &mut self.slots[at];
        slot.id.clone_from(&pass.id);
        slot.pass = Some(pass);
        Some(at)
    }

    /// The devices whose tokens have ended.
    fn take_ended(&mut self, now_s: u64) -> Vec<usize> {
        let mut ended = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let over = |pass: &DevicePass| pass.ends_s.is_some_and(|ends_s| ends_s <= now_s);
            if slot.pass.as_ref().is_some_and(over) {
                slot.pass = None;
                ended.push(at);
            }
        }
        ended
    }

    /// Disconnects all.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    fn session(&self, at: usize) -> Option<&DeviceSession> {
        self.slots.get(at)?.session.as_ref()
    }

    /// Settles what a device holds.
    pub(crate) fn settle(&self, at: usize, number: u32, settling: Settling) {
        if let Some(session) = self.session(at) {
            session.settle(number, settling);
        }
    }
}

impl Connection {
    /// The place of a device that may have a link: it has shown a token for itself, or has a certificate. Connects it.
    pub(crate) fn admit_device(&mut self, id: &str) -> Result<usize, Refusal> {
        let known = self.devices.position(id);
        let known = known.filter(|at| self.devices.slots[*at].pass.is_some());
        let at = match (known, self.devices.certificate()) {
            (Some(at), _) => at,
            (None, Some(certificate)) => {
                let pass = self
                    .hub
                    .authenticate_device(id, Proof::Certificate(certificate))
                    .map_err(|denial| Refusal::from(&denial))?;
                self.devices.put(pass).ok_or_else(too_many_devices)?
            }
            (None, None) => {
                let text = format!("no token on this connection is for the device {id}");
                return Err(Refusal::unauthorized(text));
            }
        };
        self.connect_device(at)
            .map_err(|denial| Refusal::from(&denial))?;
        Ok(at)
    }

    fn connect_device(&mut self, at: usize) -> Result<(), Denial> {
        let Some(slot) = self.devices.slots.get_mut(at) else {
            return Ok(());
        };
        if let (None, Some(pass)) = (&slot.session, &slot.pass) {
            let wake = Arc::clone(&self.devices.wake);
            slot.session = Some(self.hub.attach(pass.clone(), wake)?);
        }
        Ok(())
    }

    pub(crate) fn device_link_opened(&mut self, place: Place, at: usize, end: DeviceEnd) {
        let receives = self.live_link(place).is_some_and(|link| link.peer_receives);
        let Some(slot) = self.devices.slots.get_mut(at) else {
            return;
        };
        slot.links += 1;
        if receives && let Some(receiver) = slot.receiver(end) {
            *receiver = Some(place);
        }
        if receives
            && end == DeviceEnd::Methods
            && let Some(session) = &slot.session
        {
            session.set_interest(Interest::Methods, true);
        }
        self.pump_device(at);
    }

    /// A link is no more. With its last link the device is disconnected.
    pub(crate) fn device_link_gone(&mut self, place: Place, at: usize, end: DeviceEnd) {
        let Some(slot) = self.devices.slots.get_mut(at) else {
            return;
        };
        slot.links = slot.links.saturating_sub(1);
        if let Some(receiver) = slot.receiver(end)
            && *receiver == Some(place)
        {
            *receiver = None;
            let interest = match end {
                DeviceEnd::Methods => Some(Interest::Methods),
                DeviceEnd::Twin => Some(Interest::Desired),
                DeviceEnd::Telemetry | DeviceEnd::Messages => None,
            };
            if let (Some(interest), Some(session)) = (interest, &slot.session) {
                session.set_interest(interest, false);
            }
            match end {
                DeviceEnd::Messages => {
                    for delivery in std::mem::take(&mut slot.deliveries) {
                        if let Some(session) = &slot.session {
                            session.settle(delivery.number, Settling::Abandoned);
                        }
                    }
                }
                DeviceEnd::Twin => slot.answers.clear(),
                DeviceEnd::Telemetry | DeviceEnd::Methods => {}
            }
        }
        if slot.links == 0 {
            slot.session = None;
            slot.events.clear();
        }
    }

    /// Detaches the links of devices whose tokens have ended.
    pub(crate) fn check_devices(&mut self) {
        for at in self.devices.take_ended(self.hub.now_s()) {
            let error = ErrorText::plain("amqp:unauthorized-access", "The token has expired.");
            self.detach_device(at, &error);
        }
    }

    fn detach_device(&mut self, at: usize, error: &ErrorText) {
        self.detach_where(error, |link| {
            link.state != LinkState::Detached
                && matches!(link.node, Node::Device(of, _) if of == at)
        });
    }

    /// Sends all devices what there is for them, as far as credit allows.
    pub(crate) fn pump_devices(&mut self) {
        for at in 0..self.devices.slots.len() {
            self.pump_device(at);
        }
    }

    pub(crate) fn pump_device(&mut self, at: usize) {
        if let Some(ended) = self.take_events(at) {
            let code = match ended {
                Ended::Replaced => "amqp:link:stolen",
                Ended::Disabled | Ended::Deleted => "amqp:not-found",
                Ended::TooSlow => "amqp:resource-limit-exceeded",
                Ended::Cut => "amqp:link:detach-forced",
            };
            let text = match ended {
                Ended::Replaced => {
                    "400027 ConnectionForcefullyClosedOnNewConnection: the device has connected anew."
                        .to_owned()
                }
                other => format!("The link is detached: {other}."),
            };
            self.detach_device(at, &ErrorText::plain(code, text));
            return;
        }
        self.pump_events(at);
        self.pump_answers(at);
        self.pump_messages(at);
    }

    /// Takes what is to be said to a device; says why its connection is over, if it is.
    fn take_events(&mut self, at: usize) -> Option<Ended> {
        let slot = self.devices.slots.get_mut(at)?;
        let session = slot.session.as_ref()?;
        while let Some(event) = session.next_event() {
            if let DeviceEvent::Ended(reason) = event {
                return Some(reason);
            }
            if slot.events.len() >= WAITING_MAX {
                return Some(Ended::TooSlow);
            }
            slot.events.push_back(event);
        }
        None
    }

    fn pump_events(&mut self, at: usize) {
        while let Some(slot) = self.devices.slots.get_mut(at) {
            let Some(event) = slot.events.front() else {
                return;
            };
            let end = match event {
                DeviceEvent::Method(_) => DeviceEnd::Methods,
                DeviceEvent::Desired(_) | DeviceEvent::Ended(_) => DeviceEnd::Twin,
            };
            let Some(place) = self.ready_receiver(at, end) else {
                return;
            };
            let event = self.devices.slots[at].events.pop_front();
            let payload = match event {
                Some(DeviceEvent::Method(call)) => method::encode_call(&call),
                Some(DeviceEvent::Desired(push)) => twin::encode_push(&push),
                Some(DeviceEvent::Ended(_)) | None => return,
            };
            self.send_to_device(place, uuid::Uuid::new_v4().as_bytes(), &payload, None);
        }
    }

    fn pump_answers(&mut self, at: usize) {
        while let Some(slot) = self.devices.slots.get(at)
            && !slot.answers.is_empty()
            && let Some(place) = self.ready_receiver(at, DeviceEnd::Twin)
        {
            let Some(payload) = self.devices.slots[at].answers.pop_front() else {
                return;
            };
            self.send_to_device(place, uuid::Uuid::new_v4().as_bytes(), &payload, None);
        }
    }

    fn pump_messages(&mut self, at: usize) {
        while let Some(place) = self.ready_receiver(at, DeviceEnd::Messages) {
            let lock = self.hub.config.device_lock;
            let Some(slot) = self.devices.slots.get_mut(at) else {
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
            // The token of the lock is the delivery's tag, as at the hub.
            let tag = delivery.lock.unwrap_or_default();
            self.send_to_device(place, tag.as_bytes(), &payload, Some((at, delivery.number)));
        }
    }

    /// The link on which a device receives, if it has credit.
    fn ready_receiver(&mut self, at: usize, end: DeviceEnd) -> Option<Place> {
        let place = (*self.devices.slots.get_mut(at)?.receiver(end)?)?;
        let session = self.session(place.channel)?;
        if !session.can_send() {
            return None;
        }
        let link = self.live_link(place)?;
        (link.state == LinkState::Open && link.credit > 0).then_some(place)
    }

    /// Sends on a link that is ready. `held` is the device and the message that it settles.
    fn send_to_device(
        &mut self,
        place: Place,
        tag: &[u8],
        payload: &[u8],
        held: Option<(usize, u32)>,
    ) {
        let frame_max = self.peer_frame_max;
        let Some(link) = self.live_link(place) else {
            return;
        };
        link.credit = link.credit.saturating_sub(1);
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let (presettled, handle) = (link.presettled, place.handle);
        self.flush_accepted();
        let sessions = &mut self.sessions;
        let Some(Some(session)) = sessions.get_mut(usize::from(place.channel)) else {
            return;
        };
        let id = session.write_message(&mut self.out, frame_max, handle, tag, presettled, payload);
        match (held, presettled) {
            (Some((device, number)), true) => {
                self.devices.settle(device, number, Settling::Completed);
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

    /// Takes what a device sends.
    pub(crate) fn on_device_message(
        &mut self,
        place: Place,
        (at, end): (usize, DeviceEnd),
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) {
        let verdict = match self.do_device_message(at, end, payload) {
            Ok(()) => Verdict::Accepted,
            Err(refusal) => Verdict::Rejected(Box::new(refusal)),
        };
        if !settled {
            self.answer(place, delivery_id, &verdict);
        }
        if end == DeviceEnd::Twin {
            self.flush_accepted();
            self.pump_device(at);
        }
    }

    fn do_device_message(
        &mut self,
        at: usize,
        end: DeviceEnd,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let unreadable =
            |error| Refusal::bad_argument(format!("the message cannot be read: {error}"));
        let message = Message::read(payload).map_err(unreadable)?;
        let Some(slot) = self.devices.slots.get_mut(at) else {
            return Ok(());
        };
        let Some(session) = &slot.session else {
            return Ok(());
        };
        match end {
            DeviceEnd::Telemetry => session.telemetry(payload.len()),
            DeviceEnd::Methods => {
                let (call, answer) = method::read_answer(&message)?;
                // An answer that nobody waits for any more is nobody's fault.
                session.answer(call, answer);
                Ok(())
            }
            DeviceEnd::Twin => {
                if slot.answers.len() >= WAITING_MAX {
                    return Err(Refusal::throttled("TwinRequest"));
                }
                let answer = twin::answer(session, &message, &body_bytes(message.body));
                slot.answers.push_back(answer);
                Ok(())
            }
            // Nothing is sent there: see `Node::directions`.
            DeviceEnd::Messages => Ok(()),
        }
    }
}

pub(crate) fn too_many_devices() -> Refusal {
    Refusal::bad_operation(format!(
        "a connection may have {DEVICES_MAX} devices; the others need one of their own"
    ))
}
