//! A small AMQP client for the tests, on fe2o3-amqp, with the TLS connection.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp_types::primitives::{Binary, SimpleValue, Value};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use twincast_emulator::{Fleet, HubConfig, RunningHub, sign_token, start};

/// An expiry after the end of every test.
pub(crate) const FAR_FUTURE_S: u64 = 4_000_000_000;

/// Starts a hub with `count` devices `d0`, `d1`, … and no throttles.
pub(crate) async fn plain_hub(count: u32) -> RunningHub {
    let fleet = Fleet::plain(count, "d{index}").unwrap();
    start(HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(fleet)
    })
    .await
    .unwrap()
}

/// Starts a hub with this fleet file and no throttles.
pub(crate) async fn hub_with(yaml: &str, change: impl FnOnce(&mut HubConfig)) -> RunningHub {
    let mut config = HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(Fleet::from_yaml(yaml).unwrap())
    };
    change(&mut config);
    start(config).await.unwrap()
}

/// Signs a token of one of the hub's policies.
pub(crate) fn token(hub: &RunningHub, policy: &str, expires_s: u64) -> String {
    let connection_string = hub.connection_string_for(policy).unwrap();
    let key = connection_string.split_once("SharedAccessKey=").unwrap().1;
    let key = base64::engine::general_purpose::STANDARD
        .decode(key)
        .unwrap();
    sign_token("localhost", policy, &key, expires_s)
}

pub(crate) async fn dial(hub: &RunningHub) -> Result<TlsStream<TcpStream>> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(
        hub.ca_pem().as_bytes(),
    )?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(hub.amqp_addr()).await?;
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into()?, tcp)
        .await?)
}

/// A connection with one session.
pub(crate) struct Client {
    pub(crate) session: SessionHandle<()>,
    _connection: ConnectionHandle<()>,
}

impl Client {
    /// Connects without any rights.
    pub(crate) async fn connect(hub: &RunningHub) -> Result<Self> {
        let stream = dial(hub).await?;
        let mut connection = Connection::builder()
            .container_id("test")
            .hostname("localhost")
            .max_frame_size(65_536)
            .open_with_stream(stream)
            .await?;
        let session = Session::begin(&mut connection).await?;
        Ok(Self {
            session,
            _connection: connection,
        })
    }

    /// Connects with the rights of `service`.
    pub(crate) async fn authorised(hub: &RunningHub) -> Result<Self> {
        let mut client = Self::connect(hub).await?;
        let mut cbs = Cbs::attach(&mut client).await?;
        assert_eq!(cbs.put(&token(hub, "service", FAR_FUTURE_S)).await?, 200);
        Ok(client)
    }

    pub(crate) async fn sender(&mut self, address: &str) -> Result<Sender> {
        Ok(Sender::attach(&mut self.session, format!("to {address}"), address).await?)
    }

    pub(crate) async fn commands(&mut self) -> Result<Sender> {
        self.sender("/messages/devicebound").await
    }

    pub(crate) async fn feedback(&mut self) -> Result<Receiver> {
        Ok(Receiver::attach(
            &mut self.session,
            "feedback",
            "/messages/serviceBound/feedback",
        )
        .await?)
    }
}

/// The two token links.
pub(crate) struct Cbs {
    sender: Sender,
    receiver: Receiver,
    requests: u64,
}

impl Cbs {
    pub(crate) async fn attach(client: &mut Client) -> Result<Self> {
        let sender = Sender::attach(&mut client.session, "cbs-out", "$cbs").await?;
        let receiver = Receiver::attach(&mut client.session, "cbs-in", "$cbs").await?;
        Ok(Self {
            sender,
            receiver,
            requests: 0,
        })
    }

    /// Puts a token for the hub and returns the status.
    pub(crate) async fn put(&mut self, token: &str) -> Result<i32> {
        self.put_for("localhost", token).await
    }

    /// Puts a token for an audience and returns the status.
    pub(crate) async fn put_for(&mut self, audience: &str, token: &str) -> Result<i32> {
        // A number, as sent by Python: the answer must carry a number too.
        let id = MessageId::Ulong(self.requests);
        self.requests += 1;
        let message = Message::builder()
            .properties(Properties::builder().message_id(id.clone()).build())
            .application_properties(
                ApplicationProperties::builder()
                    .insert("operation", "put-token")
                    .insert("type", "servicebus.windows.net:sastoken")
                    .insert("name", audience)
                    .build(),
            )
            .body(AmqpValue(token.to_owned()))
            .build();
        let outcome = self.sender.send(message).await?;
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        let answer = self.receiver.recv::<Body<Value>>().await?;
        self.receiver.accept(&answer).await?;
        let properties = answer.message().properties.as_ref().context("properties")?;
        assert_eq!(properties.correlation_id, Some(id));
        let application = answer
            .message()
            .application_properties
            .as_ref()
            .context("application properties")?;
        match application.0.get("status-code") {
            Some(SimpleValue::Int(status)) => Ok(*status),
            other => bail!("status-code is {other:?}"),
        }
    }
}

/// Returns a message for a device.
pub(crate) fn message(device: &str, id: &str, ack: &str) -> Message<Data> {
    message_to(
        &format!("/devices/{device}/messages/devicebound"),
        id,
        ack,
        b"hello",
    )
}

/// Returns a message for any address.
pub(crate) fn message_to(to: &str, id: &str, ack: &str, body: &[u8]) -> Message<Data> {
    Message::builder()
        .properties(
            Properties::builder()
                .message_id(id.to_owned())
                .to(to.to_owned())
                .build(),
        )
        .application_properties(
            ApplicationProperties::builder()
                .insert("iothub-ack", ack)
                .insert("kind", "test")
                .build(),
        )
        .body(Data(Binary::from(body.to_vec())))
        .build()
}

/// Returns the condition and the hub's error code of a rejection.
pub(crate) fn rejection(outcome: &Outcome) -> (String, i32) {
    let Outcome::Rejected(rejected) = outcome else {
        panic!("{outcome:?}")
    };
    let error = rejected.error.as_ref().expect("an error");
    let info = error.info.as_ref().expect("the hub's details");
    let tracked = info
        .iter()
        .any(|(key, _)| key.as_str() == "com.microsoft:tracking-id");
    assert!(tracked, "{error:?}");
    let code = info
        .iter()
        .find(|(key, _)| key.as_str() == "com.microsoft:error-code");
    let code = match code.map(|(_, value)| value) {
        Some(Value::Int(code)) => *code,
        other => panic!("{other:?}"),
    };
    let description: serde_json::Value =
        serde_json::from_str(error.description.as_deref().unwrap_or_default()).expect("JSON");
    assert_eq!(description["errorCode"], code);
    let condition = match serde_amqp::to_value(&error.condition) {
        Ok(Value::Symbol(condition)) => condition.to_string(),
        other => panic!("{other:?}"),
    };
    (condition, code)
}
