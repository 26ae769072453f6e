//! The baseline: a sender with nothing but the protocol library. The sender dials, authorises, and
//! sends with a fixed number of messages in flight. The sender checks the answers, but stores
//! nothing and cannot resume.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, Outcome, Properties,
};
use fe2o3_amqp_types::primitives::{SimpleValue, Timestamp, Value};
use futures::stream::{FuturesUnordered, StreamExt as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use twincast_iothub::{ConnectionString, SAS_TOKEN_TYPE, sign};

use crate::common::{Hub, PROPERTY, TTL, body, device_id};

/// What the sender in its own process has to know.
#[derive(Debug, clap::Args)]
pub(crate) struct Baseline {
    pub(crate) ca_file: PathBuf,
    pub(crate) connection_string: String,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) messages: usize,
    pub(crate) in_flight: usize,
}

impl Baseline {
    pub(crate) fn to(hub: &Hub, messages: usize, in_flight: usize) -> Self {
        Self {
            ca_file: hub.ca_file(),
            connection_string: hub.connection_string.clone(),
            address: hub.amqp,
            messages,
            in_flight,
        }
    }

    pub(crate) fn arguments(&self) -> [String; 5] {
        [
            self.ca_file.display().to_string(),
            self.connection_string.clone(),
            self.address.to_string(),
            self.messages.to_string(),
            self.in_flight.to_string(),
        ]
    }
}

#[tokio::main]
pub(crate) async fn send(arguments: &Baseline) -> Result<()> {
    let connection_string: ConnectionString = arguments.connection_string.parse()?;
    let host = connection_string.host_name();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&arguments.ca_file)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(arguments.address).await?;
    tcp.set_nodelay(true)?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from(host.to_owned())?, tcp)
        .await?;
    let mut connection = Connection::builder()
        .container_id("baseline")
        .hostname(host)
        .scheme("amqp")
        .sasl_profile(SaslProfile::Anonymous)
        .max_frame_size(65_536)
        .open_with_stream(tls)
        .await?;
    let mut session = Session::begin(&mut connection).await?;
    put_token(&mut session, &connection_string).await?;
    let mut sender = Sender::attach(&mut session, "c2d", "/messages/devicebound").await?;

    let body = body();
    let mut sends = FuturesUnordered::new();
    for index in 0..arguments.messages {
        if sends.len() >= arguments.in_flight {
            accepted(sends.next().await.context("some are in flight")?)?;
        }
        let expiry = SystemTime::now().duration_since(UNIX_EPOCH)? + TTL;
        let properties = Properties::builder()
            .to(format!(
                "/devices/{}/messages/devicebound",
                device_id(index)
            ))
            .message_id(format!("bench.0.{index:x}.1"))
            .content_type("application/json")
            .content_encoding("utf-8")
            .absolute_expiry_time(Timestamp::from_milliseconds(i64::try_from(
                expiry.as_millis(),
            )?))
            .build();
        let own = ApplicationProperties::builder()
            .insert(PROPERTY.0, PROPERTY.1)
            .build();
        let message = Message::builder()
            .properties(properties)
            .application_properties(own)
            .body(Data(body.as_bytes().to_vec().into()))
            .build();
        sends.push(sender.send_batchable(message).await?);
    }
    while let Some(answer) = sends.next().await {
        accepted(answer)?;
    }
    // The library's own shutdown can burn a core; the process ends here anyway.
    std::process::exit(0)
}

fn accepted<E>(answer: Result<Outcome, E>) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let outcome = answer?;
    ensure!(
        matches!(outcome, Outcome::Accepted(_)),
        "the hub answered {outcome:?}"
    );
    Ok(())
}

async fn put_token<T>(
    session: &mut fe2o3_amqp::session::SessionHandle<T>,
    connection_string: &ConnectionString,
) -> Result<()> {
    let (host, policy) = (connection_string.host_name(), connection_string.key_name());
    let key = STANDARD.decode(connection_string.key().expose())?;
    let expiry = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 3_600;
    let token = sign(host, policy, &key, expiry);
    let mut answers = Receiver::attach(session, "cbs-answers", "$cbs").await?;
    let mut requests = Sender::attach(session, "cbs-requests", "$cbs").await?;
    let request = Message::builder()
        .properties(Properties::builder().message_id("1".to_owned()).build())
        .application_properties(
            ApplicationProperties::builder()
                .insert("operation", "put-token")
                .insert("type", SAS_TOKEN_TYPE)
                .insert("name", host)
                .build(),
        )
        .body(AmqpValue(token.expose().to_owned()))
        .build();
    requests.send(request).await?;
    let answer = answers.recv::<Body<Value>>().await?;
    answers.accept(&answer).await?;
    let status = answer
        .message()
        .application_properties
        .as_ref()
        .and_then(|properties| properties.0.get("status-code").cloned());
    ensure!(
        status == Some(SimpleValue::Int(200)),
        "the hub answered the token with {status:?}"
    );
    Ok(())
}
