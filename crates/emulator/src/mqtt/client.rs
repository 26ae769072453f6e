//! One connected device: what comes of its packets, and what it is sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_proto::v3::{Packet, Publish, Suback, Subscribe, SubscribeReturnCode, Unsubscribe};
use mqtt_proto::{Pid, QoS, QosPid, TopicName};
use serde_json::{Map, Value, json};

use super::topic::{self, Filter, Published};
use crate::amqp::timer::Timer;
use crate::amqp::tracking_id;
use crate::fleet::iso_time;
use crate::hub::{
    Admission, Delivery, DeviceEvent, DeviceSession, Hub, Interest, MethodAnswer, Operation,
    Refusal, Settling, Subscriptions,
};

/// Why the hub ends a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Leave {
    #[error("the device has disconnected")]
    Disconnected,
    #[error("{0}")]
    Ended(#[from] crate::hub::Ended),
    #[error("the device has done what the hub does not allow: {0}")]
    Forbidden(String),
    #[error("{}", .0.text)]
    Refused(Refusal),
    #[error("injected by a fault")]
    Fault,
}

/// Something that waits for its permit.
#[derive(Debug)]
enum Later {
    TwinGet { rid: String },
    Report { rid: String, patch: Bytes },
    Telemetry { pid: Option<Pid>, bytes: usize },
}

/// How many operations may wait for their permits.
const LATER_MAX: usize = 1_000;

/// A connected device.
#[derive(Debug)]
pub(crate) struct Client {
    session: DeviceSession,
    subscriptions: Subscriptions,
    /// Whether subscriptions outlive the connection.
    lasting: bool,
    /// Packets to be sent.
    pub(crate) out: Vec<Packet>,
    /// Messages that the device has not acknowledged, by packet identifier.
    unacknowledged: Vec<(Pid, u32)>,
    last_pid: Pid,
    later: Timer<Later>,
    waiting: usize,
    packets: u64,
    /// The bytes of the will, unless the device has taken leave.
    will: Option<usize>,
}

impl Client {
    /// The client of a session, with the subscriptions of an earlier one if there was one and it is to last.
    pub(crate) fn new(session: DeviceSession, lasting: bool, will: Option<usize>) -> (Self, bool) {
        let kept = session.subscriptions().filter(|_| lasting);
        if !lasting {
            session.keep_subscriptions(None);
        }
        let mut client = Self {
            session,
            subscriptions: Subscriptions::default(),
            lasting,
            out: Vec::new(),
            unacknowledged: Vec::new(),
            last_pid: Pid::default(),
            later: Timer::new(),
            waiting: 0,
            packets: 0,
            will,
        };
        client.set_subscriptions(kept.unwrap_or_default());
        (client, kept.is_some())
    }

    fn hub(&self) -> &Arc<Hub> {
        self.session.hub()
    }

    /// Whether the hub has ended the connection.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.session.next_event(), Some(DeviceEvent::Ended(_)))
    }

    /// When there is something to do without the device's doing.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.later.next_at()
    }

    /// Does what is due.
    pub(crate) fn on_time(&mut self, now: Instant) -> Result<(), Leave> {
        while let Some(later) = self.later.pop_due(now) {
            self.waiting -= 1;
            self.carry_out(later)?;
        }
        Ok(())
    }

    /// Sends what there is to be sent: events first, and then messages as far as the device may have more.
    pub(crate) fn pump(&mut self) -> Result<(), Leave> {
        while let Some(event) = self.session.next_event() {
            match event {
                DeviceEvent::Ended(reason) => return Err(reason.into()),
                DeviceEvent::Method(call) => {
                    let topic = topic::of_method(&call.name, call.id);
                    self.publish(QosPid::Level0, &topic, call.payload)?;
                }
                DeviceEvent::Desired(push) => {
                    let mut patch = push.patch;
                    patch.insert("$version".to_owned(), push.version.into());
                    let body = Value::Object(patch).to_string();
                    self.publish(
                        QosPid::Level0,
                        &topic::of_desired(push.version),
                        body.into(),
                    )?;
                }
            }
        }
        let Some(qos) = self.subscriptions.messages else {
            return Ok(());
        };
        loop {
            let deliveries = self.session.take(None);
            if deliveries.is_empty() {
                return Ok(());
            }
            for delivery in deliveries {
                self.deliver(&delivery, qos)?;
            }
            if qos > 0 {
                return Ok(());
            }
        }
    }

    fn deliver(&mut self, delivery: &Delivery, qos: u8) -> Result<(), Leave> {
        let ttl_ms = u64::try_from(self.hub().config.default_ttl.as_millis()).unwrap_or(u64::MAX);
        let topic = topic::of_delivery(delivery, &self.session.pass.id, ttl_ms);
        let payload = topic::payload(delivery);
        if qos == 0 {
            self.publish(QosPid::Level0, &topic, payload)?;
            // Nothing is heard of it any more.
            self.session.settle(delivery.number, Settling::Completed);
            return Ok(());
        }
        let pid = self.free_pid();
        self.unacknowledged.push((pid, delivery.number));
        let topic = topic_name(&topic)?;
        let mut publish = Publish::new(QosPid::Level1(pid), topic, payload);
        publish.dup = delivery.deliveries > 0;
        self.out.push(publish.into());
        Ok(())
    }

    /// An identifier that none of the few unacknowledged packets has.
    fn free_pid(&mut self) -> Pid {
        while self
            .unacknowledged
            .iter()
            .any(|(pid, _)| *pid == self.last_pid)
        {
            self.last_pid += 1;
        }
        let pid = self.last_pid;
        self.last_pid += 1;
        pid
    }

    fn publish(&mut self, qos: QosPid, topic: &str, payload: Bytes) -> Result<(), Leave> {
        let packet = Publish::new(qos, topic_name(topic)?, payload);
        self.out.push(packet.into());
        Ok(())
    }

    /// Does what a packet asks for.
    pub(crate) fn on_packet(&mut self, packet: Packet) -> Result<(), Leave> {
        self.packets += 1;
        self.session.touch();
        let drop_after = self.hub().faults.device_rules().drop_after;
        if drop_after.is_some_and(|after| self.packets > after) {
            return Err(Leave::Fault);
        }
        match packet {
            Packet::Publish(publish) => self.on_publish(publish),
            Packet::Puback(pid) => self.on_puback(pid),
            Packet::Subscribe(subscribe) => {
                self.on_subscribe(&subscribe);
                Ok(())
            }
            Packet::Unsubscribe(unsubscribe) => {
                self.on_unsubscribe(&unsubscribe);
                Ok(())
            }
            Packet::Pingreq => {
                self.out.push(Packet::Pingresp);
                Ok(())
            }
            Packet::Disconnect => {
                self.will = None;
                Err(Leave::Disconnected)
            }
            other => Err(Leave::Forbidden(format!(
                "a packet of the type {:?}",
                other.get_type()
            ))),
        }
    }

    fn on_puback(&mut self, pid: Pid) -> Result<(), Leave> {
        if self.hub().faults.on_device_acknowledgement() {
            return Err(Leave::Fault);
        }
        let mut held = self.unacknowledged.iter();
        if let Some(at) = held.position(|(known, _)| *known == pid) {
            let (_, number) = self.unacknowledged.remove(at);
            self.session.settle(number, Settling::Completed);
        }
        Ok(())
    }

    fn on_subscribe(&mut self, subscribe: &Subscribe) {
        let mut subscriptions = self.subscriptions;
        let answers = subscribe.topics.iter().map(|(filter, qos)| {
            let Some(filter) = Filter::read(filter, &self.session.pass.id) else {
                return SubscribeReturnCode::Failure;
            };
            // The hub has no quality of service 2.
            let granted = u8::from(*qos != QoS::Level0);
            *slot(&mut subscriptions, filter) = Some(granted);
            if granted == 0 {
                SubscribeReturnCode::MaxLevel0
            } else {
                SubscribeReturnCode::MaxLevel1
            }
        });
        let answer = Suback::new(subscribe.pid, answers.collect());
        self.out.push(answer.into());
        self.set_subscriptions(subscriptions);
        self.keep_subscriptions();
    }

    fn on_unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        let mut subscriptions = self.subscriptions;
        for filter in &unsubscribe.topics {
            if let Some(filter) = Filter::read(filter, &self.session.pass.id) {
                *slot(&mut subscriptions, filter) = None;
            }
        }
        self.out.push(Packet::Unsuback(unsubscribe.pid));
        self.set_subscriptions(subscriptions);
        self.keep_subscriptions();
    }

    fn set_subscriptions(&mut self, subscriptions: Subscriptions) {
        self.subscriptions = subscriptions;
        let session = &self.session;
        session.set_interest(Interest::Methods, subscriptions.methods.is_some());
        session.set_interest(Interest::Desired, subscriptions.desired.is_some());
    }

    fn keep_subscriptions(&self) {
        if self.lasting {
            self.session.keep_subscriptions(Some(self.subscriptions));
        }
    }

    fn on_publish(&mut self, publish: Publish) -> Result<(), Leave> {
        let pid = match publish.qos_pid {
            QosPid::Level0 => None,
            QosPid::Level1(pid) => Some(pid),
            QosPid::Level2(_) => {
                let text = "a publication with the quality of service 2";
                return Err(Leave::Forbidden(text.to_owned()));
            }
        };
        let topic = &publish.topic_name;
        let Some(published) = Published::read(topic, &self.session.pass.id) else {
            return Err(Leave::Forbidden(format!("a publication to '{topic:.200}'")));
        };
        if let Published::Telemetry = published {
            let bytes = topic.len() + publish.payload.len();
            return self.in_time(Operation::DeviceSend, Later::Telemetry { pid, bytes });
        }
        self.out.extend(pid.map(Packet::Puback));
        match published {
            Published::TwinGet { rid } => {
                let rid = rid.to_owned();
                self.in_time(Operation::TwinRead, Later::TwinGet { rid })
            }
            Published::Report { rid } => {
                let (rid, patch) = (rid.to_owned(), publish.payload);
                self.in_time(Operation::TwinUpdate, Later::Report { rid, patch })
            }
            Published::MethodAnswer { call, status } => {
                let payload = publish.payload;
                self.session.answer(call, MethodAnswer { status, payload });
                Ok(())
            }
            Published::Telemetry => Ok(()),
        }
    }

    /// Carries something out when the throttle permits it.
    fn in_time(&mut self, operation: Operation, later: Later) -> Result<(), Leave> {
        let admission = match operation {
            Operation::TwinRead | Operation::TwinUpdate if self.hub().faults.on_device_twin() => {
                Admission::Refused
            }
            _ => self.hub().admit(operation, 1),
        };
        match admission {
            Admission::Now => self.carry_out(later),
            Admission::After(wait) if self.waiting < LATER_MAX => {
                self.hub().tallies.device_shaped.one();
                self.waiting += 1;
                self.later.push(Instant::now() + wait, later);
                Ok(())
            }
            Admission::After(_) | Admission::Refused => {
                self.hub().tallies.device_throttled.one();
                let refusal = Refusal::throttled(operation.name());
                match later {
                    Later::TwinGet { rid } | Later::Report { rid, .. } => {
                        self.answer_twin(&rid, Err(refusal))
                    }
                    // There is no other way to say so.
                    Later::Telemetry { .. } => Err(Leave::Refused(refusal)),
                }
            }
        }
    }

    fn carry_out(&mut self, later: Later) -> Result<(), Leave> {
        match later {
            Later::TwinGet { rid } => {
                let twin = self.session.twin();
                let answer = twin.map(|twin| (200, None, twin.to_string().into()));
                self.answer_twin(&rid, answer)
            }
            Later::Report { rid, patch } => {
                let reported = self.session.report(&patch);
                let answer = reported.map(|version| (204, Some(version), Bytes::new()));
                self.answer_twin(&rid, answer)
            }
            Later::Telemetry { pid, bytes } => {
                self.session.telemetry(bytes).map_err(Leave::Refused)?;
                self.out.extend(pid.map(Packet::Puback));
                Ok(())
            }
        }
    }

    fn answer_twin(
        &mut self,
        rid: &str,
        answer: Result<(u32, Option<u64>, Bytes), Refusal>,
    ) -> Result<(), Leave> {
        if self.subscriptions.twin.is_none() {
            return Ok(());
        }
        let (status, version, body) = answer.unwrap_or_else(|refusal| {
            let body = error_body(&refusal, self.hub().now_ms());
            (refusal.code / 1000, None, body)
        });
        let topic = topic::of_twin_answer(status, rid, version);
        self.publish(QosPid::Level0, &topic, body)
    }
}

/// The will is a message of the device, if the device has not taken leave.
impl Drop for Client {
    fn drop(&mut self) {
        if let Some(bytes) = self.will
            && let Err(refusal) = self.session.telemetry(bytes)
        {
            tracing::debug!(reason = refusal.text, "a will was refused");
        }
    }
}

fn slot(subscriptions: &mut Subscriptions, filter: Filter) -> &mut Option<u8> {
    match filter {
        Filter::Messages => &mut subscriptions.messages,
        Filter::Methods => &mut subscriptions.methods,
        Filter::Twin => &mut subscriptions.twin,
        Filter::Desired => &mut subscriptions.desired,
    }
}

fn error_body(refusal: &Refusal, now_ms: u64) -> Bytes {
    let body: Map<String, Value> = [
        ("errorCode", json!(refusal.code)),
        ("trackingId", json!(tracking_id())),
        ("message", json!(refusal.text)),
        ("timestampUtc", json!(iso_time(now_ms))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect();
    Value::Object(body).to_string().into()
}

/// A topic may not have wildcards, which a device's id and a request's may.
fn topic_name(topic: &str) -> Result<TopicName, Leave> {
    TopicName::try_from(topic)
        .map_err(|error| Leave::Forbidden(format!("a name that is in no topic: {error}")))
}

/// How long a connection lasts that is silent: half as long again as the client has said, and no longer than the hub lets
/// any (`iot-mqtt-connect-to-iot-hub`). What the hub does with a client that says nothing is not documented.
pub(crate) fn silence_max(keep_alive_s: u16) -> Duration {
    const LONGEST: Duration = Duration::from_secs(1_767);
    if keep_alive_s == 0 {
        return LONGEST;
    }
    Duration::from_millis(u64::from(keep_alive_s) * 1_500).min(LONGEST)
}
