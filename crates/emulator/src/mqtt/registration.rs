//! Registrations at the Device Provisioning Service over MQTT (`azure-iot-provisioning-device-mqtt`).

use mqtt_proto::v3::{Connect, ConnectReturnCode, Packet, Publish, Suback, SubscribeReturnCode};
use mqtt_proto::{QoS, QosPid, TopicName};
use tokio::io::{AsyncRead, AsyncWrite};

use super::client::silence_max;
use super::io::{PacketStream, StreamError};
use super::serve::answer;
use crate::dps::{Answer, Operation, Request};
use crate::hub::{ClientCertificate, Hub, Proof};

/// The topic filter for answers.
const ANSWERS: &str = "$dps/registrations/res/#";

/// The registration named by the user name of a CONNECT packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegistrationName<'a> {
    pub(super) id_scope: &'a str,
    pub(super) registration_id: &'a str,
}

/// Serves the connection of a registering device, until either side ends the connection.
pub(super) async fn serve_registration<S: AsyncRead + AsyncWrite>(
    io: &mut PacketStream<S>,
    connect: &Connect,
    name: RegistrationName<'_>,
    certificate: Option<&ClientCertificate>,
    hub: &Hub,
) -> Result<(), StreamError> {
    let token = connect.password.as_deref().filter(|it| !it.is_empty());
    let token = token.map(|it| Proof::Token(std::str::from_utf8(it).unwrap_or_default()));
    let proof = token.or(certificate.map(Proof::Certificate));
    let RegistrationName {
        id_scope,
        registration_id,
    } = name;
    let admitted = proof.filter(|proof| {
        hub.provisioning
            .admits(id_scope, registration_id, *proof, hub.now_s())
    });
    let code = if *connect.client_id != *registration_id {
        ConnectReturnCode::IdentifierRejected
    } else if admitted.is_none() {
        ConnectReturnCode::NotAuthorized
    } else {
        ConnectReturnCode::Accepted
    };
    answer(io, code, false).await?;
    if code != ConnectReturnCode::Accepted {
        return Ok(());
    }
    let mut registrant = Registrant {
        hub,
        name,
        proof,
        subscribed: false,
    };
    loop {
        let next = tokio::time::timeout(silence_max(connect.keep_alive), io.next(true)).await;
        // Silent for too long.
        let Ok(packet) = next else { return Ok(()) };
        let Some(replies) = registrant.reply(&packet?) else {
            return Ok(());
        };
        for reply in &replies {
            io.push(reply)?;
        }
    }
}

/// A device authorized to register.
struct Registrant<'a> {
    hub: &'a Hub,
    name: RegistrationName<'a>,
    proof: Option<Proof<'a>>,
    subscribed: bool,
}

impl Registrant<'_> {
    /// Returns the reply to a packet; `None` ends the connection.
    fn reply(&mut self, packet: &Packet) -> Option<Vec<Packet>> {
        match packet {
            Packet::Pingreq => Some(vec![Packet::Pingresp]),
            // An acknowledgement needs no reply: answers are sent with quality of service 0.
            Packet::Puback(_) => Some(Vec::new()),
            Packet::Subscribe(subscribe) => {
                let topics = subscribe.topics.iter();
                let granted = topics.map(|(filter, qos)| self.grant(filter, *qos));
                let granted = granted.collect();
                Some(vec![Suback::new(subscribe.pid, granted).into()])
            }
            Packet::Unsubscribe(unsubscribe) => {
                let mut topics = unsubscribe.topics.iter();
                self.subscribed &= !topics.any(|filter| **filter == *ANSWERS);
                Some(vec![Packet::Unsuback(unsubscribe.pid)])
            }
            Packet::Publish(publish) => self.request(publish),
            // A DISCONNECT packet, or a packet without a meaning here.
            _ => None,
        }
    }

    fn grant(&mut self, filter: &str, qos: QoS) -> SubscribeReturnCode {
        if filter != ANSWERS {
            return SubscribeReturnCode::Failure;
        }
        self.subscribed = true;
        match qos {
            QoS::Level0 => SubscribeReturnCode::MaxLevel0,
            QoS::Level1 | QoS::Level2 => SubscribeReturnCode::MaxLevel1,
        }
    }

    fn request(&self, publish: &Publish) -> Option<Vec<Packet>> {
        let Some((rid, operation)) = read(publish) else {
            tracing::debug!(
                topic = &*publish.topic_name,
                "message is not a registration request"
            );
            return None;
        };
        let request = Request {
            id_scope: self.name.id_scope,
            registration_id: self.name.registration_id,
            proof: self.proof,
            operation,
        };
        let answer = self.hub.provisioning.handle(self.hub, request);
        let mut replies = Vec::new();
        if let QosPid::Level1(pid) = publish.qos_pid {
            replies.push(Packet::Puback(pid));
        }
        if self.subscribed {
            replies.extend(packet(&answer, rid));
        }
        Some(replies)
    }
}

/// Returns the id and the operation of a request:
/// `$dps/registrations/PUT/iotdps-register/?$rid={rid}` or
/// `$dps/registrations/GET/iotdps-get-operationstatus/?$rid={rid}&operationId={id}`.
fn read(publish: &Publish) -> Option<(&str, Operation<'_>)> {
    let topic: &str = &publish.topic_name;
    let (path, query) = topic
        .strip_prefix("$dps/registrations/")?
        .split_once("/?")?;
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    };
    let rid = value("$rid")?;
    let operation = match path {
        "PUT/iotdps-register" => Operation::Register(&publish.payload),
        "GET/iotdps-get-operationstatus" => Operation::Status(value("operationId")?),
        _ => return None,
    };
    Some((rid, operation))
}

/// Builds the answer's packet. Returns `None` if the request's id is not valid in a topic.
fn packet(answer: &Answer, rid: &str) -> Option<Packet> {
    let retry = answer.retry_after_s;
    let retry = retry.map_or_else(String::new, |seconds| format!("&retry-after={seconds}"));
    let topic = format!(
        "$dps/registrations/res/{}/?$rid={rid}{retry}",
        answer.status
    );
    let topic = TopicName::try_from(topic.as_str()).ok()?;
    let body = answer.body.to_string();
    Some(Publish::new(QosPid::Level0, topic, body.into()).into())
}
