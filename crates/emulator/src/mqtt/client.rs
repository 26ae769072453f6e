//! One connected device: handling of received packets, and delivery of messages and events.

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
    Admission, Delivery, DeviceEvent, DeviceSession, Hub, Interest, MessageSettlement,
    MethodAnswer, Operation, Refusal, Subscriptions,
};

/// The reason for ending a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DisconnectReason {
    #[error("the device has disconnected")]
    Disconnected,
    #[error("{0}")]
    Ended(#[from] crate::hub::EndReason),
    #[error("the device sent a packet that the hub does not allow: {0}")]
    Forbidden(String),
    #[error("{}", .0.text)]
    Refused(Refusal),
    #[error("injected by a fault")]
    Fault,
}

/// An operation waiting for a permit.
#[derive(Debug)]
enum DelayedOperation {
    TwinGet { rid: String },
    Report { rid: String, patch: Bytes },
    Telemetry { pid: Option<Pid>, bytes: usize },
}

/// The number of operations that may wait for permits.
const DELAYED_MAX: usize = 1_000;

/// A connected device.
#[derive(Debug)]
pub(crate) struct Client {
    session: DeviceSession,
    subscriptions: Subscriptions,
    /// Whether subscriptions outlive the connection.
    persistent: bool,
    /// Packets to be sent.
    pub(crate) out: Vec<Packet>,
    /// Messages not yet acknowledged by the device, by packet identifier.
    unacknowledged: Vec<(Pid, u32)>,
    last_pid: Pid,
    delayed: Timer<DelayedOperation>,
    waiting: usize,
    packets: u64,
    /// The size of the will in bytes; `None` without a will, or after a DISCONNECT packet.
    will: Option<usize>,
}

impl Client {
    /// Creates the client of a session. A `persistent` client resumes the kept subscriptions. Also
    /// returns whether kept subscriptions existed.
    pub(crate) fn new(
        session: DeviceSession,
        persistent: bool,
        will: Option<usize>,
    ) -> (Self, bool) {
        let kept = session.subscriptions().filter(|_| persistent);
        if !persistent {
            session.keep_subscriptions(None);
        }
        let mut client = Self {
            session,
            subscriptions: Subscriptions::default(),
            persistent,
            out: Vec::new(),
            unacknowledged: Vec::new(),
            last_pid: Pid::default(),
            delayed: Timer::new(),
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

    /// Returns the time of the next delayed operation.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.delayed.next_at()
    }

    /// Performs the due operations.
    pub(crate) fn on_time(&mut self, now: Instant) -> Result<(), DisconnectReason> {
        while let Some(delayed) = self.delayed.pop_due(now) {
            self.waiting -= 1;
            self.carry_out(delayed)?;
        }
        Ok(())
    }

    /// Queues waiting events first, then messages, up to the number of messages a device may hold.
    pub(crate) fn pump(&mut self) -> Result<(), DisconnectReason> {
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

    fn deliver(&mut self, delivery: &Delivery, qos: u8) -> Result<(), DisconnectReason> {
        let ttl_ms = u64::try_from(self.hub().config.default_ttl.as_millis()).unwrap_or(u64::MAX);
        let topic = topic::of_delivery(delivery, &self.session.device.id, ttl_ms);
        let payload = topic::payload(delivery);
        if qos == 0 {
            self.publish(QosPid::Level0, &topic, payload)?;
            // With quality of service 0, no acknowledgement follows.
            self.session
                .settle(delivery.number, MessageSettlement::Completed);
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

    /// Returns a packet identifier unused by the few unacknowledged packets.
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

    fn publish(
        &mut self,
        qos: QosPid,
        topic: &str,
        payload: Bytes,
    ) -> Result<(), DisconnectReason> {
        let packet = Publish::new(qos, topic_name(topic)?, payload);
        self.out.push(packet.into());
        Ok(())
    }

    /// Handles a packet from the device.
    pub(crate) fn on_packet(&mut self, packet: Packet) -> Result<(), DisconnectReason> {
        self.packets += 1;
        self.session.touch();
        let drop_after = self.hub().faults.device_rules().drop_after;
        if drop_after.is_some_and(|after| self.packets > after) {
            return Err(DisconnectReason::Fault);
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
                Err(DisconnectReason::Disconnected)
            }
            other => Err(DisconnectReason::Forbidden(format!(
                "a packet of the type {:?}",
                other.get_type()
            ))),
        }
    }

    fn on_puback(&mut self, pid: Pid) -> Result<(), DisconnectReason> {
        if self.hub().faults.on_device_acknowledgement() {
            return Err(DisconnectReason::Fault);
        }
        let mut held = self.unacknowledged.iter();
        if let Some(at) = held.position(|(known, _)| *known == pid) {
            let (_, number) = self.unacknowledged.remove(at);
            self.session.settle(number, MessageSettlement::Completed);
        }
        Ok(())
    }

    fn on_subscribe(&mut self, subscribe: &Subscribe) {
        let mut subscriptions = self.subscriptions;
        let answers = subscribe.topics.iter().map(|(filter, qos)| {
            let Some(filter) = Filter::read(filter, &self.session.device.id) else {
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
            if let Some(filter) = Filter::read(filter, &self.session.device.id) {
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
        if self.persistent {
            self.session.keep_subscriptions(Some(self.subscriptions));
        }
    }

    fn on_publish(&mut self, publish: Publish) -> Result<(), DisconnectReason> {
        let pid = match publish.qos_pid {
            QosPid::Level0 => None,
            QosPid::Level1(pid) => Some(pid),
            QosPid::Level2(_) => {
                let text = "a publish with QoS 2";
                return Err(DisconnectReason::Forbidden(text.to_owned()));
            }
        };
        let topic = &publish.topic_name;
        let Some(published) = Published::read(topic, &self.session.device.id) else {
            return Err(DisconnectReason::Forbidden(format!(
                "a publish to '{topic:.200}'"
            )));
        };
        if let Published::Telemetry = published {
            let bytes = topic.len() + publish.payload.len();
            return self.in_time(
                Operation::DeviceSend,
                DelayedOperation::Telemetry { pid, bytes },
            );
        }
        self.out.extend(pid.map(Packet::Puback));
        match published {
            Published::TwinGet { rid } => {
                let rid = rid.to_owned();
                self.in_time(Operation::TwinRead, DelayedOperation::TwinGet { rid })
            }
            Published::Report { rid } => {
                let (rid, patch) = (rid.to_owned(), publish.payload);
                self.in_time(
                    Operation::TwinUpdate,
                    DelayedOperation::Report { rid, patch },
                )
            }
            Published::MethodAnswer { call, status } => {
                let payload = publish.payload;
                self.session.answer(call, MethodAnswer { status, payload });
                Ok(())
            }
            Published::Telemetry => Ok(()),
        }
    }

    /// Performs an operation when the throttle permits.
    fn in_time(
        &mut self,
        operation: Operation,
        delayed: DelayedOperation,
    ) -> Result<(), DisconnectReason> {
        let admission = match operation {
            Operation::TwinRead | Operation::TwinUpdate if self.hub().faults.on_device_twin() => {
                Admission::Refused
            }
            _ => self.hub().admit(operation, 1),
        };
        match admission {
            Admission::Now => self.carry_out(delayed),
            Admission::After(wait) if self.waiting < DELAYED_MAX => {
                self.hub().counters.device_shaped.one();
                self.waiting += 1;
                self.delayed.push(Instant::now() + wait, delayed);
                Ok(())
            }
            Admission::After(_) | Admission::Refused => {
                self.hub().counters.device_throttled.one();
                let refusal = Refusal::throttled(operation.name());
                match delayed {
                    DelayedOperation::TwinGet { rid } | DelayedOperation::Report { rid, .. } => {
                        self.answer_twin(&rid, Err(refusal))
                    }
                    // MQTT has no other way to report the refusal.
                    DelayedOperation::Telemetry { .. } => Err(DisconnectReason::Refused(refusal)),
                }
            }
        }
    }

    fn carry_out(&mut self, delayed: DelayedOperation) -> Result<(), DisconnectReason> {
        match delayed {
            DelayedOperation::TwinGet { rid } => {
                let twin = self.session.twin();
                let answer = twin.map(|twin| (200, None, twin.to_string().into()));
                self.answer_twin(&rid, answer)
            }
            DelayedOperation::Report { rid, patch } => {
                let reported = self.session.report(&patch);
                let answer = reported.map(|version| (204, Some(version), Bytes::new()));
                self.answer_twin(&rid, answer)
            }
            DelayedOperation::Telemetry { pid, bytes } => {
                self.session
                    .telemetry(bytes)
                    .map_err(DisconnectReason::Refused)?;
                self.out.extend(pid.map(Packet::Puback));
                Ok(())
            }
        }
    }

    fn answer_twin(
        &mut self,
        rid: &str,
        answer: Result<(u32, Option<u64>, Bytes), Refusal>,
    ) -> Result<(), DisconnectReason> {
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

/// Sends the will as telemetry, unless a DISCONNECT packet has removed the will.
impl Drop for Client {
    fn drop(&mut self) {
        if let Some(bytes) = self.will
            && let Err(refusal) = self.session.telemetry(bytes)
        {
            tracing::debug!(reason = refusal.text, "will message refused");
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

/// Converts a topic. A topic may not contain wildcards, while a device's id and a request's id may.
fn topic_name(topic: &str) -> Result<TopicName, DisconnectReason> {
    TopicName::try_from(topic).map_err(|error| {
        DisconnectReason::Forbidden(format!("a name not allowed in a topic: {error}"))
    })
}

/// Returns the longest silence of a connection: 1.5 times the client's keep-alive, at most the
/// hub's maximum (`iot-mqtt-connect-to-iot-hub`). The hub's behaviour for a keep-alive of 0 is not
/// documented; the maximum applies.
pub(crate) fn silence_max(keep_alive_s: u16) -> Duration {
    const MAX_SILENCE: Duration = Duration::from_secs(1_767);
    if keep_alive_s == 0 {
        return MAX_SILENCE;
    }
    Duration::from_millis(u64::from(keep_alive_s) * 1_500).min(MAX_SILENCE)
}
