//! Registrations at the Device Provisioning Service over AMQP
//! (`azure-iot-provisioning-device-amqp`): requests on one link, answers with the same correlation
//! id on the other.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

use super::address::Node;
use super::connection::{Connection, LinkKey};
use super::encode;
use super::link::LinkState;
use super::message::{Message, body_bytes, text_in};
use super::outcome::Verdict;
use crate::dps::{Answer, Operation, Request};
use crate::hub::{Proof, Refusal};

/// The largest number of registrations on one connection.
const REGISTRATIONS_MAX: usize = 100;
/// The number of answers that may wait for credit.
const ANSWERS_MAX: usize = 100;

/// The registrations of a connection.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    /// The token from the SASL layer.
    pub(crate) token: Option<String>,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    id_scope: String,
    registration_id: String,
    receiver: Option<LinkKey>,
    answers: VecDeque<Vec<u8>>,
}

impl Connection {
    /// Returns the slot of a registration. Authorization happens with each request.
    pub(crate) fn admit_registration(
        &mut self,
        id_scope: &str,
        registration_id: &str,
    ) -> Result<usize, Refusal> {
        let slots = &mut self.registrations.slots;
        let known = slots
            .iter()
            .position(|slot| slot.id_scope == id_scope && slot.registration_id == registration_id);
        if let Some(slot_index) = known {
            return Ok(slot_index);
        }
        if slots.len() >= REGISTRATIONS_MAX {
            return Err(Refusal::bad_operation(format!(
                "a connection can have at most {REGISTRATIONS_MAX} registrations"
            )));
        }
        slots.push(Slot {
            id_scope: id_scope.to_owned(),
            registration_id: registration_id.to_owned(),
            receiver: None,
            answers: VecDeque::new(),
        });
        Ok(slots.len() - 1)
    }

    pub(crate) fn registration_link_opened(&mut self, key: LinkKey, slot_index: usize) {
        let receives = self.live_link(key).is_some_and(|link| link.peer_receives);
        if let Some(slot) = self
            .registrations
            .slots
            .get_mut(slot_index)
            .filter(|_| receives)
        {
            slot.receiver = Some(key);
        }
        self.pump_registration(slot_index);
    }

    pub(crate) fn registration_link_closed(&mut self, key: LinkKey, slot_index: usize) {
        if let Some(slot) = self.registrations.slots.get_mut(slot_index)
            && slot.receiver == Some(key)
        {
            slot.receiver = None;
            slot.answers.clear();
        }
    }

    /// Handles a request. A refusal answers the transfer; any other answer is sent as a message.
    pub(crate) fn on_registration(
        &mut self,
        key: LinkKey,
        slot_index: usize,
        delivery_id: u32,
        settled: bool,
        payload: &[u8],
    ) {
        let verdict = match self.register(slot_index, payload) {
            Ok(()) => Verdict::Accepted,
            Err(refusal) => Verdict::Rejected(Box::new(refusal)),
        };
        if !settled {
            self.answer(key, delivery_id, &verdict);
        }
        self.flush_accepted();
        self.pump_registration(slot_index);
    }

    fn register(&mut self, slot_index: usize, payload: &[u8]) -> Result<(), Refusal> {
        let message = Message::read(payload).map_err(|error| {
            Refusal::bad_argument(format!("the message cannot be read: {error}"))
        })?;
        let body = body_bytes(message.body);
        let Some(slot) = self.registrations.slots.get_mut(slot_index) else {
            return Ok(());
        };
        if slot.answers.len() >= ANSWERS_MAX {
            return Err(Refusal::throttled("Registration"));
        }
        let properties = message.application_properties;
        let operation = match text_in(properties, "iotdps-operation-type") {
            Some("iotdps-register") => Operation::Register(&body),
            Some("iotdps-get-operationstatus") => {
                Operation::Status(text_in(properties, "iotdps-operation-id").unwrap_or_default())
            }
            other => {
                let other = other.unwrap_or_default();
                return Err(Refusal::bad_operation(format!(
                    "unknown iotdps-operation-type '{other}'"
                )));
            }
        };
        let token = self.registrations.token.as_deref().map(Proof::Token);
        let certificate = self.devices.certificate().map(Proof::Certificate);
        let request = Request {
            id_scope: &slot.id_scope,
            registration_id: &slot.registration_id,
            proof: token.or(certificate),
            operation,
        };
        let answer = self.hub.provisioning.handle(&self.hub, request);
        if answer.status >= 300 {
            let text = answer.body["message"].as_str().unwrap_or_default();
            return Err(match answer.status {
                401 => Refusal::unauthorized(text),
                404 => Refusal::registration_not_found(text),
                _ => Refusal::bad_argument(text),
            });
        }
        slot.answers
            .push_back(encode_answer(&answer, message.system.correlation_id));
        Ok(())
    }

    /// Sends waiting answers, as far as credit allows.
    pub(crate) fn pump_registrations(&mut self) {
        for slot_index in 0..self.registrations.slots.len() {
            self.pump_registration(slot_index);
        }
    }

    fn pump_registration(&mut self, slot_index: usize) {
        let frame_max = self.peer_frame_max;
        let Some(slot) = self.registrations.slots.get_mut(slot_index) else {
            return;
        };
        let Some(key) = slot.receiver else { return };
        let Some(Some(session)) = self.sessions.get_mut(usize::from(key.channel)) else {
            return;
        };
        while !slot.answers.is_empty() && session.can_send() {
            let Some(link) = session.link(key.handle) else {
                return;
            };
            let is_its = link.serial == key.serial && link.node == Node::Registration(slot_index);
            if !is_its || link.state != LinkState::Open || link.credit == 0 {
                return;
            }
            let Some(answer) = slot.answers.pop_front() else {
                return;
            };
            session.write_reply(&mut self.out, frame_max, key.handle, &answer);
        }
    }
}

fn encode_answer(answer: &Answer, correlation_id: Option<&[u8]>) -> Vec<u8> {
    let body = answer.body.to_string();
    let mut out = BytesMut::with_capacity(body.len() + 128);
    encode::described(&mut out, 0x73, |items| {
        items.null().null().null().null().null();
        items.raw(correlation_id);
    });
    out.put_slice(&[0x00, 0x53, 0x74]);
    encode::map(&mut out, |items| {
        items.text("iotdps-status").i32(i32::from(answer.status));
        if let Some(seconds) = answer.retry_after_s {
            items.text("retry-after").text(&seconds.to_string());
        }
    });
    out.put_slice(&[0x00, 0x53, 0x75]);
    encode::binary(&mut out, body.as_bytes());
    out.to_vec()
}
