//! Holds many MQTT connections, sends each device a message, and measures time and the memory per
//! connection.
//!
//! ```text
//! cargo run --release -p twincast-emulator --example connections -- [devices]
//! ```
//!
//! The hub and the devices run in separate processes, so that the hub's memory can be measured.
//! Devices connect from several addresses of the loopback network: a single address has too few
//! ports. Both processes need a file descriptor for each connection: `ulimit -n`.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use bytes::BytesMut;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Sender, Session};
use fe2o3_amqp_types::messaging::{ApplicationProperties, Data, Message, Properties};
use fe2o3_amqp_types::primitives::Binary;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Login, Packet, PubAck, Subscribe};
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use twincast_emulator::{Fleet, HubConfig, Summary, sign_device_token, sign_token, start};

/// The number of connections per source address.
const PER_ADDRESS: u32 = 5_000;
/// The number of devices connecting at the same time.
const CONNECTING: usize = 64;
const FAR_FUTURE_S: u64 = 4_000_000_000;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().unwrap_or_else(|| "20000".to_owned());
    if first == "hub" {
        return hub(arguments.next().context("count")?.parse()?).await;
    }
    devices(first.parse()?).await
}

/// The process of the hub. Prints the addresses and connection strings, then a summary for each
/// line of input.
async fn hub(count: u32) -> Result<()> {
    let hub = start(HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(Fleet::plain(count, "device-{index:06}")?)
    })
    .await?;
    println!("{}", hub.amqp_addr());
    println!("{}", hub.mqtt_addr());
    println!("{}", hub.connection_string());
    for number in 0..count {
        let text = hub.device_connection_string(&format!("device-{number:06}"));
        println!("{}", text.context("a device")?);
    }
    print!("{}", hub.ca_pem());
    println!("end");
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while receiver.recv().await.is_some() {
        println!("{}", serde_json::to_string(&hub.hub().summary())?);
    }
    hub.shutdown().await;
    Ok(())
}

/// The hub's process, as seen by the devices' process.
struct HubProcess {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl HubProcess {
    fn line(&mut self) -> Result<String> {
        Ok(self.lines.next().context("the hub has ended")??)
    }

    fn summary(&mut self) -> Result<Summary> {
        use std::io::Write as _;
        writeln!(self.child.stdin.as_mut().context("stdin")?, "summary")?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Returns the resident memory, in bytes.
    fn memory(&self) -> Result<u64> {
        let mut text = String::new();
        let path = format!("/proc/{}/status", self.child.id());
        std::fs::File::open(path)?.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.context("VmRSS")?.trim().trim_end_matches(" kB");
        Ok(kilobytes.trim().parse::<u64>()? * 1024)
    }
}

async fn devices(count: u32) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["hub", &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut hub = HubProcess { child, lines };
    let amqp: SocketAddr = hub.line()?.parse()?;
    let mqtt: SocketAddr = hub.line()?.parse()?;
    let owner = hub.line()?;
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(key_of(&hub.line()?)?);
    }
    let mut ca = String::new();
    loop {
        match hub.line()? {
            line if line == "end" => break,
            line => ca.push_str(&(line + "\n")),
        }
    }
    let tls = connector(&ca)?;
    let before = hub.memory()?;

    let delivered = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let permits = Arc::new(tokio::sync::Semaphore::new(CONNECTING));
    let (ready, mut all_ready) = tokio::sync::mpsc::channel::<()>(1);
    for (number, key) in (0..count).zip(keys) {
        let permit = Arc::clone(&permits).acquire_owned().await?;
        let (tls, delivered, ready) = (tls.clone(), Arc::clone(&delivered), ready.clone());
        tasks.spawn(async move {
            let device = connect(number, &key, mqtt, &tls).await?;
            drop((permit, ready));
            serve(device, &delivered).await
        });
    }
    drop(ready);
    // Closed after all devices have subscribed.
    all_ready.recv().await;
    let connected = started.elapsed();
    let summary = hub.summary()?;
    if summary.connected_devices != u64::from(count) {
        bail!("{} of {count} are connected", summary.connected_devices);
    }
    let idle = hub.memory()?;
    println!(
        "{count} devices connected in {:.1} s: {:.0} a second; {:.1} KB each in the hub",
        connected.as_secs_f64(),
        f64::from(count) / connected.as_secs_f64(),
        (idle.saturating_sub(before)) as f64 / f64::from(count) / 1024.0,
    );

    let sent = Instant::now();
    let first = send_all(count, amqp, &owner, &tls).await?;
    let accepted = sent.elapsed();
    while delivered.load(Ordering::Relaxed) < u64::from(count) {
        if sent.elapsed() > Duration::from_secs(300) {
            bail!("{:#?}", hub.summary()?);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let received = sent.elapsed();
    while hub.summary()?.delivered < u64::from(count) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "each got a message: accepted after {:.2} s, received after {:.2} s, acknowledged after {:.2} s; the first was accepted after {:.1} ms",
        accepted.as_secs_f64(),
        received.as_secs_f64(),
        sent.elapsed().as_secs_f64(),
        first.as_secs_f64() * 1000.0,
    );
    println!(
        "the hub has {:.0} MB; {:.1} KB for each device after its message",
        hub.memory()? as f64 / 1e6,
        (hub.memory()?.saturating_sub(before)) as f64 / f64::from(count) / 1024.0,
    );
    tasks.shutdown().await;
    drop(hub.child.stdin.take());
    hub.child.wait()?;
    Ok(())
}

fn key_of(connection_string: &str) -> Result<Vec<u8>> {
    let (_, key) = connection_string
        .split_once("SharedAccessKey=")
        .context("a key")?;
    Ok(base64::engine::general_purpose::STANDARD.decode(key)?)
}

fn connector(ca: &str) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(
        ca.as_bytes(),
    )?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// Connects a device and subscribes to the device's messages.
async fn connect(number: u32, key: &[u8], mqtt: SocketAddr, tls: &TlsConnector) -> Result<Tls> {
    let id = format!("device-{number:06}");
    let socket = TcpSocket::new_v4()?;
    let third = u8::try_from(number / PER_ADDRESS).context("too many devices")?;
    socket.bind((Ipv4Addr::new(127, 0, third, 2), 0).into())?;
    let mut stream = tls
        .connect("localhost".try_into()?, socket.connect(mqtt).await?)
        .await?;
    let token = sign_device_token(&format!("localhost/devices/{id}"), key, FAR_FUTURE_S);
    let mut connect = Connect::new(id.clone());
    connect.clean_session = false;
    connect.keep_alive = 1_000;
    let user_name = format!("localhost/{id}/?api-version=2021-04-12");
    connect.login = Some(Login::new(user_name, token));
    let filter = format!("devices/{id}/messages/devicebound/#");
    let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
    subscribe.pkid = 1;
    let mut out = BytesMut::new();
    connect.write(&mut out)?;
    subscribe.write(&mut out)?;
    stream.write_all(&out).await?;
    // A CONNACK of four bytes and a SUBACK of five.
    let mut answers = [0; 9];
    stream.read_exact(&mut answers).await?;
    if answers[..4] != [0x20, 2, 0, 0] {
        bail!("{id} is refused: {answers:?}");
    }
    Ok(stream)
}

/// Acknowledges all messages.
async fn serve(mut stream: Tls, delivered: &AtomicU64) -> Result<()> {
    let mut input = BytesMut::new();
    loop {
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        while let Ok(packet) = Packet::read(&mut input, 1 << 20) {
            if let Packet::Publish(publish) = packet {
                let mut out = BytesMut::new();
                PubAck::new(publish.pkid).write(&mut out)?;
                stream.write_all(&out).await?;
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Sends each device a message. Returns the time of the first send.
async fn send_all(
    count: u32,
    amqp: SocketAddr,
    owner: &str,
    tls: &TlsConnector,
) -> Result<Duration> {
    let token = sign_token("localhost", "iothubowner", &key_of(owner)?, FAR_FUTURE_S);
    let tcp = tokio::net::TcpStream::connect(amqp).await?;
    let stream = tls.connect("localhost".try_into()?, tcp).await?;
    let mut connection = Connection::builder()
        .container_id("connections")
        .hostname("localhost")
        .sasl_profile(SaslProfile::Plain {
            username: "iothubowner@sas.root.localhost".to_owned(),
            password: token,
        })
        .open_with_stream(stream)
        .await?;
    let mut session = Session::begin(&mut connection).await?;
    let mut sender = Sender::attach(&mut session, "commands", "/messages/devicebound").await?;
    let message = |number: u32| {
        let to = format!("/devices/device-{number:06}/messages/devicebound");
        Message::builder()
            .properties(
                Properties::builder()
                    .message_id(format!("m-{number}"))
                    .to(to)
                    .build(),
            )
            .application_properties(
                ApplicationProperties::builder()
                    .insert("iothub-ack", "full")
                    .build(),
            )
            .body(Data(Binary::from(vec![7; 200])))
            .build()
    };
    let started = Instant::now();
    sender.send(message(0)).await?;
    let first = started.elapsed();
    let mut answers = FuturesUnordered::new();
    for number in 1..count {
        answers.push(sender.send_batchable(message(number)).await?);
        if answers.len() >= 256 {
            answers.next().await.context("an answer")??;
        }
    }
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(first)
}
