//! One MQTT connection, from CONNECT to its end. The protocol is `mqtt-protocol-core`'s; here is what it is used for.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use mqtt::common::Cursor;
use mqtt::connection::{ConnectionOptions, Event, TimerKind};
use mqtt::packet::{GenericPacketTrait as _, Packet, Qos, SubEntry, SubOpts, v3_1_1};
use mqtt::result_code::{ConnectReturnCode, SubackReturnCode};
use mqtt_protocol_core::mqtt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::topics::{self, Topic};
use super::wire::Wire;
use super::{End, FromHub, LinkError, ToHub};
use crate::agent::until;
use crate::config::{self, span};
use crate::identity::Assignment;
use crate::update::Patch;

/// How long the hub may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest packet that is taken: a message has 64 KB, a twin somewhat more.
const PACKET_MAX: u32 = 512 << 10;

/// What the driver may have asked for and the wire has not taken: acknowledgements and answers of one connection. The hub has
/// at most 50 messages for a device.
const COMMANDS_MAX: usize = 128;

/// A question whose answer is outstanding.
enum Asked {
    Twin,
    Report(Patch),
}

/// A connection that the hub has accepted.
pub(super) struct Session {
    wire: Wire,
    mqtt: mqtt::Connection<mqtt::role::Client>,
    timers: Vec<(TimerKind, Instant)>,
    packets: VecDeque<Packet>,
    /// What is to be sent.
    out: Vec<u8>,
    asked: BTreeMap<u32, (Asked, Instant)>,
    next_rid: u32,
    renew: Option<Instant>,
    property: String,
    device_id: String,
    peer: String,
}

impl Session {
    /// Says CONNECT and SUBSCRIBE, and waits for the answers.
    pub(super) async fn open(
        wire: Wire,
        assignment: &Assignment,
        settings: &config::Hub,
        password: Option<String>,
        renew: Option<Instant>,
        property: String,
    ) -> Result<Self, LinkError> {
        let options = ConnectionOptions::new().maximum_packet_size_recv(PACKET_MAX);
        let mut session = Self {
            wire,
            mqtt: mqtt::Connection::with_options(mqtt::Version::V3_1_1, options),
            timers: Vec::new(),
            packets: VecDeque::new(),
            out: Vec::new(),
            asked: BTreeMap::new(),
            next_rid: 1,
            renew,
            property,
            device_id: assignment.device_id.clone(),
            peer: assignment.hub.clone(),
        };
        session.mqtt.set_pingresp_recv_timeout(20_000);
        match tokio::time::timeout(PATIENCE, session.greet(assignment, settings, password)).await {
            Ok(result) => result.map(|()| session),
            Err(_) => Err(session.silent("CONNECT")),
        }
    }

    async fn greet(
        &mut self,
        assignment: &Assignment,
        settings: &config::Hub,
        password: Option<String>,
    ) -> Result<(), LinkError> {
        let Assignment { hub, device_id } = assignment;
        let agent = crate::sas::encode(concat!("twincast-agent/", env!("CARGO_PKG_VERSION")));
        let user = format!("{hub}/{device_id}/?api-version=2021-04-12&DeviceClientType={agent}");
        let keep_alive = u16::try_from(span(settings.keep_alive).as_secs()).unwrap_or(240);
        let connect = || -> Result<v3_1_1::Connect, mqtt::result_code::MqttError> {
            let connect = v3_1_1::Connect::builder()
                .client_id(device_id.as_str())?
                .user_name(user)?
                .clean_session(false)
                .keep_alive(keep_alive);
            match password {
                Some(password) => connect.password(password.into_bytes())?.build(),
                None => connect.build(),
            }
        };
        let connect = connect().map_err(|error| self.broken(&error))?;
        self.queue(connect.into())?;
        self.flush().await?;
        let peer = self.peer.clone();
        let refused = |reason| LinkError::Refused { peer, reason };
        let Packet::V3_1_1Connack(answer) = self.receive().await? else {
            return Err(self.broken(&"the first packet is no CONNACK"));
        };
        match answer.return_code() {
            ConnectReturnCode::Accepted => Ok(()),
            ConnectReturnCode::NotAuthorized => Err(refused("not authorized (5)")),
            ConnectReturnCode::BadUserNameOrPassword => {
                Err(refused("bad user name or password (4)"))
            }
            other => Err(self.broken(&format_args!("CONNACK {}", other as u8))),
        }
    }

    /// Passes on what comes, and sends what it is given, until the connection ends.
    pub(super) async fn run(
        mut self,
        events: &mpsc::Sender<FromHub>,
        stop: &CancellationToken,
    ) -> Result<End, LinkError> {
        let (commands, mut from_driver) = mpsc::channel(COMMANDS_MAX);
        if events.send(FromHub::Up(commands)).await.is_err() {
            return Ok(End::Stop);
        }
        self.subscribe()?;
        loop {
            self.flush().await?;
            let next_timer = self.timers.iter().map(|(_, at)| *at).min();
            let patience = self.asked.values().map(|(_, until)| *until).min();
            let renew = self.renew;
            let event = tokio::select! {
                packet = self.receive() => {
                    let packet = packet?;
                    self.understand(packet)?
                }
                command = from_driver.recv() => match command {
                    Some(command) => self.perform(command)?,
                    None => return Ok(End::Stop),
                },
                () = until(next_timer) => self.fire_timers()?,
                () = until(patience) => return Err(self.silent("about the twin")),
                () = until(renew) => {
                    self.leave().await;
                    return Ok(End::Renew);
                }
                () = stop.cancelled() => {
                    self.leave().await;
                    return Ok(End::Stop);
                }
            };
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return Ok(End::Stop);
            }
        }
    }

    fn subscribe(&mut self) -> Result<(), LinkError> {
        let id = self
            .mqtt
            .acquire_packet_id()
            .map_err(|error| self.broken(&error))?;
        let entries = topics::subscriptions(&self.device_id)
            .into_iter()
            .map(|(filter, qos)| {
                let qos = if qos == 0 {
                    Qos::AtMostOnce
                } else {
                    Qos::AtLeastOnce
                };
                SubEntry::new(filter, SubOpts::new().set_qos(qos))
            });
        let packet = entries.collect::<Result<Vec<_>, _>>().and_then(|entries| {
            v3_1_1::Subscribe::builder()
                .entries(entries)
                .packet_id(id)
                .build()
        });
        self.queue(packet.map_err(|error| self.broken(&error))?.into())
    }

    fn understand(&mut self, packet: Packet) -> Result<Option<FromHub>, LinkError> {
        match packet {
            Packet::V3_1_1Publish(publication) => self.published(&publication),
            Packet::V3_1_1Suback(answer)
                if answer.return_codes().contains(&SubackReturnCode::Failure) =>
            {
                Err(self.broken(&"a subscription was refused"))
            }
            Packet::V3_1_1Suback(_) => {
                // Not empty: so do the SDKs.
                self.ask(Asked::Twin, topics::twin_get, b" ").map(|()| None)
            }
            _ => Ok(None),
        }
    }

    fn published(&mut self, publication: &v3_1_1::Publish) -> Result<Option<FromHub>, LinkError> {
        let body = publication.payload().as_slice();
        match topics::parse(publication.topic_name(), &self.device_id) {
            Topic::Message(properties) => Ok(Some(FromHub::Message {
                packet: publication.packet_id(),
                properties,
                body: body.to_vec(),
            })),
            topic => {
                if let Some(packet) = publication.packet_id() {
                    self.acknowledge(packet)?;
                }
                self.answered(topic, body)
            }
        }
    }

    fn answered(&mut self, topic: Topic, body: &[u8]) -> Result<Option<FromHub>, LinkError> {
        let json =
            |session: &Self| serde_json::from_slice(body).map_err(|error| session.broken(&error));
        Ok(match topic {
            Topic::Method { name, rid } => Some(FromHub::Method { name, rid }),
            Topic::Desired => Some(FromHub::Desired(json(self)?)),
            Topic::Twin { status, rid } => {
                let asked = rid.parse().ok().and_then(|rid| self.asked.remove(&rid));
                match (asked, status) {
                    (Some((Asked::Twin, _)), 200) => Some(FromHub::Twin(json(self)?)),
                    (Some((Asked::Twin, _)), _) => {
                        return Err(self.broken(&format_args!("status {status} for the twin")));
                    }
                    (Some((Asked::Report(patch), _)), 200..300) => Some(FromHub::Reported(patch)),
                    (Some((Asked::Report(_), _)), _) => Some(FromHub::NotReported { status }),
                    (None, _) => None,
                }
            }
            Topic::Message(_) | Topic::Other => None,
        })
    }

    fn perform(&mut self, command: ToHub) -> Result<Option<FromHub>, LinkError> {
        match command {
            ToHub::Acknowledge(packet) => self.acknowledge(packet)?,
            ToHub::Report(patch) => {
                let mut body = serde_json::Map::new();
                if let Some(report) = &patch.update {
                    body.insert("update".to_owned(), serde_json::json!(report));
                }
                if let Some(version) = &patch.version {
                    body.insert(self.property.clone(), Value::from(version.as_str()));
                }
                let body = Value::from(body).to_string();
                self.ask(Asked::Report(patch), topics::reported, body.as_bytes())?;
            }
            ToHub::Answer { rid, status, body } => {
                self.publish(topics::answer(status, &rid), body.to_string().as_bytes())?;
            }
        }
        Ok(None)
    }

    fn acknowledge(&mut self, packet: u16) -> Result<(), LinkError> {
        let packet = v3_1_1::Puback::builder().packet_id(packet).build();
        self.queue(packet.map_err(|error| self.broken(&error))?.into())
    }

    /// Asks the twin something. The answer comes by its number.
    fn ask(&mut self, what: Asked, topic: fn(u32) -> String, body: &[u8]) -> Result<(), LinkError> {
        let rid = self.next_rid;
        self.next_rid += 1;
        self.asked.insert(rid, (what, Instant::now() + PATIENCE));
        self.publish(topic(rid), body)
    }

    fn publish(&mut self, topic: String, body: &[u8]) -> Result<(), LinkError> {
        let id = self
            .mqtt
            .acquire_packet_id()
            .map_err(|error| self.broken(&error))?;
        let packet = v3_1_1::Publish::builder()
            .topic_name(topic)
            .and_then(|packet| {
                packet
                    .qos(Qos::AtLeastOnce)
                    .packet_id(id)
                    .payload(body.to_vec())
                    .build()
            });
        self.queue(packet.map_err(|error| self.broken(&error))?.into())
    }

    fn fire_timers(&mut self) -> Result<Option<FromHub>, LinkError> {
        let now = Instant::now();
        while let Some(at) = self.timers.iter().position(|(_, at)| *at <= now) {
            let (kind, _) = self.timers.swap_remove(at);
            let events = self.mqtt.notify_timer_fired(kind);
            self.take(events)?;
        }
        Ok(None)
    }

    /// The next packet that came. Cancel safe.
    async fn receive(&mut self) -> Result<Packet, LinkError> {
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return Ok(packet);
            }
            let mut buffer = BytesMut::with_capacity(4 << 10);
            let read = self.wire.read(&mut buffer).await;
            match read {
                Ok(0) => {
                    return Err(LinkError::Closed {
                        peer: self.peer.clone(),
                    });
                }
                Err(source) => {
                    return Err(LinkError::Lost {
                        peer: self.peer.clone(),
                        source,
                    });
                }
                Ok(_) => {
                    let mut cursor = Cursor::new(&buffer[..]);
                    while (cursor.position() as usize) < buffer.len() {
                        let events = self.mqtt.recv(&mut cursor);
                        self.take(events)?;
                    }
                }
            }
        }
    }

    fn queue(&mut self, packet: Packet) -> Result<(), LinkError> {
        let events = self.mqtt.send(packet);
        self.take(events)
    }

    /// Does what the protocol asks for, short of sending.
    fn take(&mut self, events: Vec<Event>) -> Result<(), LinkError> {
        for event in events {
            match event {
                Event::NotifyPacketReceived(packet) => self.packets.push_back(packet),
                Event::RequestSendPacket { packet, .. } => {
                    self.out.extend(packet.to_continuous_buffer());
                }
                Event::RequestTimerReset { kind, duration_ms } => {
                    self.timers.retain(|(other, _)| *other != kind);
                    self.timers
                        .push((kind, Instant::now() + Duration::from_millis(duration_ms)));
                }
                Event::RequestTimerCancel(kind) => self.timers.retain(|(other, _)| *other != kind),
                Event::NotifyError(error) => return Err(self.broken(&format_args!("{error:?}"))),
                Event::RequestClose => {
                    return Err(LinkError::Closed {
                        peer: self.peer.clone(),
                    });
                }
                Event::NotifyPacketIdReleased(_) => {}
            }
        }
        Ok(())
    }

    /// Sends what is queued.
    async fn flush(&mut self) -> Result<(), LinkError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.out);
        match tokio::time::timeout(PATIENCE, self.wire.write(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(LinkError::Lost {
                peer: self.peer.clone(),
                source,
            }),
            Err(_) => Err(self.silent("and takes nothing")),
        }
    }

    /// Says DISCONNECT, as far as the hub takes it.
    async fn leave(&mut self) {
        let packet = v3_1_1::Disconnect::builder().build();
        if let Ok(packet) = packet
            && self.queue(packet.into()).is_ok()
        {
            _ = tokio::time::timeout(Duration::from_secs(2), self.flush()).await;
        }
        self.wire.close().await;
    }

    fn broken(&self, what: &dyn std::fmt::Display) -> LinkError {
        LinkError::Protocol {
            peer: self.peer.clone(),
            what: what.to_string(),
        }
    }

    fn silent(&self, what: &'static str) -> LinkError {
        LinkError::Silent {
            peer: self.peer.clone(),
            what,
        }
    }
}
