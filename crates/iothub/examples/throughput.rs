//! Measures sends per second of [`C2dSender`], over plain AMQP and over WebSockets, against a bare
//! loop over the protocol library. The emulator runs in the same process; the variants take turns
//! so that all see the same machine load.
//!
//! ```text
//! cargo run --release -p twincast-iothub --example throughput -- [MESSAGES] [IN_FLIGHT] [ROUNDS]
//! ```

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, Outcome, Properties,
};
use futures::stream::{FuturesUnordered, StreamExt as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_amqp::Value;
use twincast_emulator::{Fleet, HubConfig, RunningHub};
use twincast_iothub::{
    C2dMessage, C2dSender, C2dTemplate, Client, ClientOptions, ConnectionString, Roots,
    SAS_TOKEN_TYPE, Transport,
};

const BODY: usize = 256;
const DEVICES: usize = 1_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let messages = arguments.next().transpose()?.unwrap_or(50_000);
    let in_flight = arguments.next().transpose()?.unwrap_or(256);
    let rounds = arguments.next().transpose()?.unwrap_or(5);
    let config = HubConfig {
        unlimited: true,
        amqp_port: 0,
        https_port: 0,
        control_port: None,
        queue_depth: u32::MAX,
        messages_max: u32::MAX,
        ..HubConfig::with_fleet(Fleet::plain(DEVICES as u32, "d-{index}")?)
    };
    let hub = twincast_emulator::start(config).await?;
    let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        speeds[0].push(bench_library(&hub, messages, in_flight).await?);
        for (at, transport) in [(1, Transport::Amqp), (2, Transport::AmqpWs)] {
            speeds[at].push(bench_sender(&hub, transport, messages, in_flight).await?);
        }
    }
    let ratios: Vec<f64> = speeds[2]
        .iter()
        .zip(&speeds[1])
        .map(|(ws, tcp)| ws / tcp)
        .collect();
    let names = ["bare library", "C2dSender", "over WebSockets"];
    for (name, speeds) in names.iter().zip(&mut speeds) {
        speeds.sort_by(f64::total_cmp);
        println!(
            "{name:>15}: median {:>8.0}/s of {speeds:.0?}",
            speeds[speeds.len() / 2]
        );
    }
    let mut sorted = ratios;
    sorted.sort_by(f64::total_cmp);
    println!(
        "WebSockets to plain AMQP: median {:.2} of {sorted:.2?}",
        sorted[sorted.len() / 2]
    );
    Ok(())
}

async fn bench_sender(
    hub: &RunningHub,
    transport: Transport,
    messages: usize,
    in_flight: usize,
) -> Result<f64, Box<dyn Error>> {
    let connection: ConnectionString = hub.connection_string().parse()?;
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.max_in_flight = in_flight;
    options.transport = transport;
    let sender = C2dSender::connect(&Client::new(&connection, options)?).await?;
    let template = C2dTemplate::builder(vec![7; BODY])
        .property("colour", "red")
        .build()?;
    let start = Instant::now();
    let mut sends = FuturesUnordered::new();
    for i in 0..messages {
        if sends.len() >= in_flight {
            assert!(
                sends
                    .next()
                    .await
                    .is_some_and(|o: twincast_iothub::SendOutcome| o.is_accepted())
            );
        }
        let device = format!("d-{}", i % DEVICES);
        let message = C2dMessage::new(device, format!("m-{i}"), Arc::clone(&template))?;
        sends.push(sender.send(message));
    }
    while let Some(outcome) = sends.next().await {
        assert!(outcome.is_accepted(), "{outcome}");
    }
    let speed = speed(messages, start);
    drop(sends);
    sender.close().await;
    Ok(speed)
}

async fn bench_library(
    hub: &RunningHub,
    messages: usize,
    in_flight: usize,
) -> Result<f64, Box<dyn Error>> {
    let connection_string: ConnectionString = hub.connection_string().parse()?;
    let host = connection_string.host_name();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(hub.ca_pem().as_bytes())?)?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(hub.amqp_addr()).await?;
    tcp.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = connector
        .connect(ServerName::try_from(host.to_owned())?, tcp)
        .await?;
    let mut connection = Connection::builder()
        .container_id("bare")
        .hostname(host)
        .scheme("amqp")
        .sasl_profile(SaslProfile::Anonymous)
        .max_frame_size(65_536)
        .open_with_stream(tls)
        .await?;
    let mut session = Session::begin(&mut connection).await?;
    let mut answers = Receiver::attach(&mut session, "cbs-r", "$cbs").await?;
    let mut cbs = Sender::attach(&mut session, "cbs-s", "$cbs").await?;
    let key = base64::engine::general_purpose::STANDARD.decode(connection_string.key().expose())?;
    let expiry = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 3_600;
    let token = twincast_iothub::sign(
        connection_string.host_name(),
        connection_string.key_name(),
        &key,
        expiry,
    );
    let put = Message::builder()
        .properties(Properties::builder().message_id(1_u64).build())
        .application_properties(
            ApplicationProperties::builder()
                .insert("operation", "put-token")
                .insert("type", SAS_TOKEN_TYPE)
                .insert("name", host)
                .build(),
        )
        .body(AmqpValue(token.expose().to_owned()))
        .build();
    cbs.send(put).await?;
    let answer = answers.recv::<Body<Value>>().await?;
    answers.accept(&answer).await?;
    let mut sender = Sender::attach(&mut session, "c2d", "/messages/devicebound").await?;

    let start = Instant::now();
    let mut sends = FuturesUnordered::new();
    for i in 0..messages {
        if sends.len() >= in_flight {
            let Some(answer) = sends.next().await else {
                continue;
            };
            let answer: Result<Outcome, _> = answer;
            assert!(matches!(answer?, Outcome::Accepted(_)));
        }
        let message = Message::builder()
            .properties(
                Properties::builder()
                    .to(format!("/devices/d-{}/messages/devicebound", i % DEVICES))
                    .message_id(format!("b-{i}"))
                    .build(),
            )
            .application_properties(
                ApplicationProperties::builder()
                    .insert("colour", "red")
                    .build(),
            )
            .body(Data(vec![7; BODY].into()))
            .build();
        sends.push(sender.send_batchable(message).await?);
    }
    while let Some(answer) = sends.next().await {
        assert!(matches!(answer?, Outcome::Accepted(_)));
    }
    let speed = speed(messages, start);
    drop((cbs, answers, sender, session, connection));
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(speed)
}

fn speed(messages: usize, start: Instant) -> f64 {
    messages as f64 / start.elapsed().as_secs_f64()
}
