//! A single MQTT connection, from CONNECT to the end. The crate `mqtt-protocol-core` implements the
//! protocol; this module applies it to IoT Hub.

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

use super::mqtt_stream::MqttStream;
use super::topics::{self, Topic};
use super::{ConnectionError, End, HubCommand, HubEvent};
use crate::agent::until;
use crate::config::{self, to_std};
use crate::identity::Assignment;
use crate::update::Patch;

/// The time limit of the hub's answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest accepted packet, in bytes: a message has 64 KB, a twin somewhat more.
const PACKET_MAX: u32 = 512 << 10;

/// The capacity of the channel of commands from the driver: acknowledgements and answers of a
/// single connection. The hub has at most 50 messages for a device.
const COMMANDS_MAX: usize = 128;

/// A request to the twin with an outstanding answer.
enum Request {
    Twin,
    Report(Patch),
}

/// A connection accepted by the hub.
pub(super) struct Session {
    stream: MqttStream,
    mqtt: mqtt::Connection<mqtt::role::Client>,
    timers: Vec<(TimerKind, Instant)>,
    packets: VecDeque<Packet>,
    /// The bytes to send.
    out: Vec<u8>,
    outstanding: BTreeMap<u32, (Request, Instant)>,
    next_rid: u32,
    renew: Option<Instant>,
    property: String,
    device_id: String,
    peer: String,
}

impl Session {
    /// Sends CONNECT and waits for the answer. [`Session::run`] sends SUBSCRIBE.
    pub(super) async fn open(
        stream: MqttStream,
        assignment: &Assignment,
        settings: &config::Hub,
        password: Option<String>,
        renew: Option<Instant>,
        property: String,
    ) -> Result<Self, ConnectionError> {
        let options = ConnectionOptions::new().maximum_packet_size_recv(PACKET_MAX);
        let mut session = Self {
            stream,
            mqtt: mqtt::Connection::with_options(mqtt::Version::V3_1_1, options),
            timers: Vec::new(),
            packets: VecDeque::new(),
            out: Vec::new(),
            outstanding: BTreeMap::new(),
            next_rid: 1,
            renew,
            property,
            device_id: assignment.device_id.clone(),
            peer: assignment.hub.clone(),
        };
        session.mqtt.set_pingresp_recv_timeout(20_000);
        match tokio::time::timeout(
            ANSWER_TIMEOUT,
            session.connect(assignment, settings, password),
        )
        .await
        {
            Ok(result) => result.map(|()| session),
            Err(_) => Err(session.silent("CONNECT")),
        }
    }

    async fn connect(
        &mut self,
        assignment: &Assignment,
        settings: &config::Hub,
        password: Option<String>,
    ) -> Result<(), ConnectionError> {
        let Assignment { hub, device_id } = assignment;
        let agent = crate::sas::encode(concat!("twincast-agent/", env!("CARGO_PKG_VERSION")));
        let user = format!("{hub}/{device_id}/?api-version=2021-04-12&DeviceClientType={agent}");
        let keep_alive = u16::try_from(to_std(settings.keep_alive).as_secs()).unwrap_or(240);
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
        let connect = connect().map_err(|error| self.protocol_error(&error))?;
        self.queue(connect.into())?;
        self.flush().await?;
        let peer = self.peer.clone();
        let refused = |reason| ConnectionError::Refused { peer, reason };
        let Packet::V3_1_1Connack(answer) = self.receive().await? else {
            return Err(self.protocol_error(&"the first packet is not a CONNACK"));
        };
        match answer.return_code() {
            ConnectReturnCode::Accepted => Ok(()),
            ConnectReturnCode::NotAuthorized => Err(refused("not authorized (5)")),
            ConnectReturnCode::BadUserNameOrPassword => {
                Err(refused("bad user name or password (4)"))
            }
            other => {
                Err(self.protocol_error(&format_args!("CONNACK with return code {}", other as u8)))
            }
        }
    }

    /// Subscribes, then forwards received packets to `events` and sends the driver's commands,
    /// until the connection ends.
    pub(super) async fn run(
        mut self,
        events: &mpsc::Sender<HubEvent>,
        stop: &CancellationToken,
    ) -> Result<End, ConnectionError> {
        let (commands, mut from_driver) = mpsc::channel(COMMANDS_MAX);
        if events.send(HubEvent::Up(commands)).await.is_err() {
            return Ok(End::Stop);
        }
        self.subscribe()?;
        loop {
            self.flush().await?;
            let next_timer = self.timers.iter().map(|(_, at)| *at).min();
            let deadline = self.outstanding.values().map(|(_, until)| *until).min();
            let renew = self.renew;
            let event = tokio::select! {
                packet = self.receive() => {
                    let packet = packet?;
                    self.handle_packet(packet)?
                }
                command = from_driver.recv() => match command {
                    Some(command) => self.handle_command(command)?,
                    None => return Ok(End::Stop),
                },
                () = until(next_timer) => self.fire_timers()?,
                () = until(deadline) => return Err(self.silent("a twin request")),
                () = until(renew) => {
                    self.disconnect().await;
                    return Ok(End::Renew);
                }
                () = stop.cancelled() => {
                    self.disconnect().await;
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

    fn subscribe(&mut self) -> Result<(), ConnectionError> {
        let id = self
            .mqtt
            .acquire_packet_id()
            .map_err(|error| self.protocol_error(&error))?;
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
        self.queue(packet.map_err(|error| self.protocol_error(&error))?.into())
    }

    fn handle_packet(&mut self, packet: Packet) -> Result<Option<HubEvent>, ConnectionError> {
        match packet {
            Packet::V3_1_1Publish(publication) => self.handle_publish(&publication),
            Packet::V3_1_1Suback(answer)
                if answer.return_codes().contains(&SubackReturnCode::Failure) =>
            {
                Err(self.protocol_error(&"a subscription was refused"))
            }
            Packet::V3_1_1Suback(_) => {
                // Like the SDKs, send a non-empty body.
                self.send_request(Request::Twin, topics::twin_get, b" ")
                    .map(|()| None)
            }
            _ => Ok(None),
        }
    }

    fn handle_publish(
        &mut self,
        publication: &v3_1_1::Publish,
    ) -> Result<Option<HubEvent>, ConnectionError> {
        let body = publication.payload().as_slice();
        match topics::parse(publication.topic_name(), &self.device_id) {
            Topic::Message(properties) => Ok(Some(HubEvent::Message {
                packet: publication.packet_id(),
                properties,
                body: body.to_vec(),
            })),
            topic => {
                if let Some(packet) = publication.packet_id() {
                    self.acknowledge(packet)?;
                }
                self.handle_answer(topic, body)
            }
        }
    }

    fn handle_answer(
        &mut self,
        topic: Topic,
        body: &[u8],
    ) -> Result<Option<HubEvent>, ConnectionError> {
        let json = |session: &Self| {
            serde_json::from_slice(body).map_err(|error| session.protocol_error(&error))
        };
        Ok(match topic {
            Topic::Method { name, rid } => Some(HubEvent::Method { name, rid }),
            Topic::Desired => Some(HubEvent::Desired(json(self)?)),
            Topic::Twin { status, rid } => {
                let request = rid
                    .parse()
                    .ok()
                    .and_then(|rid| self.outstanding.remove(&rid));
                match (request, status) {
                    (Some((Request::Twin, _)), 200) => Some(HubEvent::Twin(json(self)?)),
                    (Some((Request::Twin, _)), _) => {
                        return Err(self.protocol_error(&format_args!(
                            "the answer to the twin request has status {status}"
                        )));
                    }
                    (Some((Request::Report(patch), _)), 200..300) => {
                        Some(HubEvent::Reported(patch))
                    }
                    (Some((Request::Report(_), _)), _) => Some(HubEvent::NotReported { status }),
                    (None, _) => None,
                }
            }
            Topic::Message(_) | Topic::Other => None,
        })
    }

    fn handle_command(&mut self, command: HubCommand) -> Result<Option<HubEvent>, ConnectionError> {
        match command {
            HubCommand::Acknowledge(packet) => self.acknowledge(packet)?,
            HubCommand::Report(patch) => {
                let mut body = serde_json::Map::new();
                if let Some(report) = &patch.update {
                    body.insert("update".to_owned(), serde_json::json!(report));
                }
                if let Some(version) = &patch.version {
                    body.insert(self.property.clone(), Value::from(version.as_str()));
                }
                let body = Value::from(body).to_string();
                self.send_request(Request::Report(patch), topics::reported, body.as_bytes())?;
            }
            HubCommand::Answer { rid, status, body } => {
                self.publish(topics::answer(status, &rid), body.to_string().as_bytes())?;
            }
        }
        Ok(None)
    }

    fn acknowledge(&mut self, packet: u16) -> Result<(), ConnectionError> {
        let packet = v3_1_1::Puback::builder().packet_id(packet).build();
        self.queue(packet.map_err(|error| self.protocol_error(&error))?.into())
    }

    /// Sends a request to the twin. The request id identifies the answer.
    fn send_request(
        &mut self,
        request: Request,
        topic: fn(u32) -> String,
        body: &[u8],
    ) -> Result<(), ConnectionError> {
        let rid = self.next_rid;
        self.next_rid += 1;
        self.outstanding
            .insert(rid, (request, Instant::now() + ANSWER_TIMEOUT));
        self.publish(topic(rid), body)
    }

    fn publish(&mut self, topic: String, body: &[u8]) -> Result<(), ConnectionError> {
        let id = self
            .mqtt
            .acquire_packet_id()
            .map_err(|error| self.protocol_error(&error))?;
        let packet = v3_1_1::Publish::builder()
            .topic_name(topic)
            .and_then(|packet| {
                packet
                    .qos(Qos::AtLeastOnce)
                    .packet_id(id)
                    .payload(body.to_vec())
                    .build()
            });
        self.queue(packet.map_err(|error| self.protocol_error(&error))?.into())
    }

    fn fire_timers(&mut self) -> Result<Option<HubEvent>, ConnectionError> {
        let now = Instant::now();
        while let Some(at) = self.timers.iter().position(|(_, at)| *at <= now) {
            let (kind, _) = self.timers.swap_remove(at);
            let events = self.mqtt.notify_timer_fired(kind);
            self.handle_events(events)?;
        }
        Ok(None)
    }

    /// Returns the next received packet. Cancel safe.
    async fn receive(&mut self) -> Result<Packet, ConnectionError> {
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return Ok(packet);
            }
            let mut buffer = BytesMut::with_capacity(4 << 10);
            let read = self.stream.read(&mut buffer).await;
            match read {
                Ok(0) => {
                    return Err(ConnectionError::Closed {
                        peer: self.peer.clone(),
                    });
                }
                Err(source) => {
                    return Err(ConnectionError::Lost {
                        peer: self.peer.clone(),
                        source,
                    });
                }
                Ok(_) => {
                    let mut cursor = Cursor::new(&buffer[..]);
                    while (cursor.position() as usize) < buffer.len() {
                        let events = self.mqtt.recv(&mut cursor);
                        self.handle_events(events)?;
                    }
                }
            }
        }
    }

    fn queue(&mut self, packet: Packet) -> Result<(), ConnectionError> {
        let events = self.mqtt.send(packet);
        self.handle_events(events)
    }

    /// Handles the events of the protocol library. Outgoing packets are only queued.
    fn handle_events(&mut self, events: Vec<Event>) -> Result<(), ConnectionError> {
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
                Event::NotifyError(error) => {
                    return Err(self.protocol_error(&format_args!("{error:?}")));
                }
                Event::RequestClose => {
                    return Err(ConnectionError::Closed {
                        peer: self.peer.clone(),
                    });
                }
                Event::NotifyPacketIdReleased(_) => {}
            }
        }
        Ok(())
    }

    /// Sends the queued bytes.
    async fn flush(&mut self) -> Result<(), ConnectionError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.out);
        match tokio::time::timeout(ANSWER_TIMEOUT, self.stream.write(&bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(ConnectionError::Lost {
                peer: self.peer.clone(),
                source,
            }),
            Err(_) => Err(self.silent("sending")),
        }
    }

    /// Sends DISCONNECT as far as possible, and closes the connection.
    async fn disconnect(&mut self) {
        let packet = v3_1_1::Disconnect::builder().build();
        if let Ok(packet) = packet
            && self.queue(packet.into()).is_ok()
        {
            _ = tokio::time::timeout(Duration::from_secs(2), self.flush()).await;
        }
        self.stream.close().await;
    }

    fn protocol_error(&self, what: &dyn std::fmt::Display) -> ConnectionError {
        ConnectionError::Protocol {
            peer: self.peer.clone(),
            what: what.to_string(),
        }
    }

    fn silent(&self, what: &'static str) -> ConnectionError {
        ConnectionError::Silent {
            peer: self.peer.clone(),
            what,
        }
    }
}
