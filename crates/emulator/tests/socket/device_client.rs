//! A test device: MQTT packet by packet, with a codec independent of the emulator's codec.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::messaging::{ApplicationProperties, Data, Message, Outcome, Properties};
use fe2o3_amqp_types::primitives::Binary;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, Login, Packet, PubAck, Publish, SubAck, Subscribe, SubscribeFilter,
};
use rumqttc::mqttbytes::{QoS, v4::ConnectReturnCode};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use twincast_emulator::{RunningHub, Summary, sign_device_token};

use crate::client::{Client, FAR_FUTURE_S};

/// The time limit for every step; only a defect takes longer.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A certificate chain and the private key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One MQTT connection of a device.
pub(crate) struct Device {
    stream: Box<dyn Stream>,
    input: BytesMut,
    id: String,
}

/// The connection parameters of a device.
pub(crate) struct ConnectOptions {
    pub(crate) user_name: String,
    pub(crate) client_id: String,
    pub(crate) password: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    pub(crate) will: Option<String>,
    pub(crate) identity: Option<Identity>,
}

impl ConnectOptions {
    /// Returns the default parameters: a token of the device's own, and a persistent session.
    pub(crate) fn of(hub: &RunningHub, id: &str) -> Self {
        Self {
            user_name: format!("localhost/{id}/?api-version=2021-04-12"),
            client_id: id.to_owned(),
            password: token_of(hub, id, FAR_FUTURE_S),
            clean: false,
            keep_alive: 60,
            will: None,
            identity: None,
        }
    }
}

/// Signs a token of a device.
pub(crate) fn token_of(hub: &RunningHub, id: &str, ends_s: u64) -> String {
    let connection_string = hub.device_connection_string(id).unwrap();
    let key = connection_string.split_once("SharedAccessKey=").unwrap().1;
    let key = STANDARD.decode(key).unwrap();
    sign_device_token(&format!("localhost/devices/{id}"), &key, ends_s)
}

/// Opens a TLS connection to one of the hub's ports.
pub(crate) async fn dial(
    hub: &RunningHub,
    address: std::net::SocketAddr,
    identity: Option<Identity>,
) -> TlsStream<TcpStream> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(hub.ca_pem().as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap()
}

impl Device {
    /// Connects. Also returns whether the hub still had the session.
    pub(crate) async fn connect(hub: &RunningHub, id: &str) -> (Self, bool) {
        Self::connect_as(hub, ConnectOptions::of(hub, id))
            .await
            .unwrap()
    }

    pub(crate) async fn connect_as(
        hub: &RunningHub,
        mut options: ConnectOptions,
    ) -> Result<(Self, bool), ConnectReturnCode> {
        let stream = dial(hub, hub.mqtt_addr(), options.identity.take()).await;
        Self::connect_over(stream, options).await
    }

    pub(crate) async fn connect_over(
        stream: impl Stream + 'static,
        options: ConnectOptions,
    ) -> Result<(Self, bool), ConnectReturnCode> {
        let mut connect = Connect::new(options.client_id.clone());
        connect.clean_session = options.clean;
        connect.keep_alive = options.keep_alive;
        connect.login = Some(Login::new(options.user_name, options.password));
        connect.last_will = options.will.map(|topic| {
            rumqttc::mqttbytes::v4::LastWill::new(topic, b"gone".to_vec(), QoS::AtLeastOnce, false)
        });
        let mut device = Self {
            stream: Box::new(stream),
            input: BytesMut::new(),
            id: options.client_id,
        };
        device.write(|out| connect.write(out).map(drop)).await;
        match device.next().await {
            Some(Packet::ConnAck(ConnAck {
                session_present,
                code: ConnectReturnCode::Success,
            })) => Ok((device, session_present)),
            Some(Packet::ConnAck(refused)) => {
                assert_eq!(device.next().await, None);
                Err(refused.code)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn write(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), rumqttc::mqttbytes::Error>,
    ) {
        let mut out = BytesMut::new();
        encode(&mut out).unwrap();
        // The hub may have closed already; the next read reports the end.
        let _ = self.stream.write_all(&out).await;
        let _ = self.stream.flush().await;
    }

    /// Returns the next packet, or `None` after the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        let waiting = async {
            loop {
                match Packet::read(&mut self.input, 1 << 20) {
                    Ok(packet) => return Some(packet),
                    Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(SOON, waiting)
            .await
            .expect("a packet in time")
    }

    pub(crate) async fn subscribe(&mut self, filters: &[(&str, QoS)]) -> SubAck {
        let filters = filters
            .iter()
            .map(|(path, qos)| SubscribeFilter::new((*path).to_owned(), *qos));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 7;
        self.write(|out| subscribe.write(out).map(drop)).await;
        match self.next().await {
            Some(Packet::SubAck(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn subscribe_messages(&mut self, qos: QoS) {
        let filter = format!("devices/{}/messages/devicebound/#", self.id);
        let answer = self.subscribe(&[(&filter, qos)]).await;
        assert_eq!(answer.return_codes.len(), 1);
    }

    /// Returns the next packet, which must be a publication.
    pub(crate) async fn publication(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self, topic: &str, qos: QoS, payload: impl Into<Vec<u8>>) {
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = 9;
        self.write(|out| publish.write(out).map(drop)).await;
    }

    pub(crate) async fn acknowledge(&mut self, publish: &Publish) {
        let answer = PubAck::new(publish.pkid);
        self.write(|out| answer.write(out).map(drop)).await;
    }

    pub(crate) async fn ping(&mut self) {
        self.write(|out| rumqttc::mqttbytes::v4::PingReq.write(out).map(drop))
            .await;
    }

    pub(crate) async fn disconnect(mut self) {
        self.write(|out| rumqttc::mqttbytes::v4::Disconnect.write(out).map(drop))
            .await;
        assert_eq!(self.next().await, None);
    }

    /// Waits until the hub has processed all earlier packets.
    pub(crate) async fn settle(&mut self) {
        self.ping().await;
        assert_eq!(self.next().await, Some(Packet::PingResp));
    }
}

/// Sends a message to a device, with these application properties.
pub(crate) async fn send(
    hub: &RunningHub,
    id: &str,
    message_id: &str,
    properties: &[(&str, &str)],
    body: &[u8],
) {
    let mut client = Client::authorised(hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    let mut application = ApplicationProperties::builder().insert("iothub-ack", "full");
    for (name, value) in properties {
        application = application.insert((*name).to_owned(), (*value).to_owned());
    }
    let message = Message::builder()
        .properties(
            Properties::builder()
                .message_id(message_id.to_owned())
                .to(format!("/devices/{id}/messages/devicebound"))
                .correlation_id("c/1".to_owned())
                .content_type("application/json")
                .build(),
        )
        .application_properties(application.build())
        .body(Data(Binary::from(body.to_vec())))
        .build();
    let outcome = sender.send(message).await.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

/// Waits until the hub's summary satisfies `condition`.
pub(crate) async fn until(hub: &RunningHub, condition: impl Fn(&Summary) -> bool) -> Summary {
    let waiting = async {
        loop {
            let summary = hub.hub().summary();
            if condition(&summary) {
                return summary;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(SOON, waiting).await;
    found.unwrap_or_else(|_| panic!("{:#?}", hub.hub().summary()))
}

/// Returns a publication's payload as text.
pub(crate) fn text(payload: &Bytes) -> &str {
    std::str::from_utf8(payload).unwrap()
}
