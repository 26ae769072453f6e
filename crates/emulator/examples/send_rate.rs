//! Measures the emulator alone: transfers per second, memory per message, and the time of a count
//! query.
//!
//! ```text
//! cargo run --release -p twincast-emulator --example send_rate -- [devices] [body bytes]
//! ```
//!
//! The hub runs in a separate process, so that CPU time and memory can be measured. The client
//! writes prepared frames, and reads only the credit and the number of answers.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Sender, Session};
use fe2o3_amqp_types::messaging::{Data, Message, Properties};
use fe2o3_amqp_types::primitives::Binary;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use twincast_emulator::{Fleet, HubConfig, sign_token, start};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().unwrap_or_else(|| "1000000".to_owned());
    if first == "hub" {
        let count = arguments.next().context("count")?.parse()?;
        return hub(count).await;
    }
    let body = arguments.next().map_or(Ok(200), |text| text.parse())?;
    client(first.parse()?, body).await
}

async fn hub(count: u32) -> Result<()> {
    let started = Instant::now();
    let yaml = format!(
        "groups: [{{count: {count}, id: 'fridge-{{index:07}}', tags: {{region: {{$weighted: {{eu: 70, us: 30}}}}, site: {{$text: 'site-{{index/100:05}}'}}}}, behaviour: {{offline: 100%}}}}]"
    );
    let hub = start(HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(Fleet::from_yaml(&yaml)?)
    })
    .await?;
    println!(
        "{} {} {}",
        hub.amqp_addr(),
        hub.connection_string(),
        started.elapsed().as_millis()
    );
    print!("{}", hub.ca_pem());
    println!("end");
    // The parent closes the pipe at the end.
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await?;
    hub.shutdown().await;
    Ok(())
}

async fn client(count: u32, body: usize) -> Result<()> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program)
        .args(["hub", &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let head = lines.next().context("the hub said nothing")??;
    let [address, connection_string, start_ms] = head.split(' ').collect::<Vec<_>>()[..] else {
        bail!("{head}")
    };
    println!("start: {start_ms} ms");
    let mut pem = String::new();
    for line in lines.by_ref() {
        match line? {
            line if line == "end" => break,
            line => pem = pem + &line + "\n",
        }
    }
    let before = cpu_seconds(child.id())?;
    let started = Instant::now();
    send_all(address, connection_string, &pem, count, body).await?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds(child.id())? - before;
    println!(
        "sent {count} in {seconds:.2} s: {:.0}/s",
        f64::from(count) / seconds
    );
    println!(
        "hub CPU {cpu:.2} s: {:.0} transfers per CPU second",
        f64::from(count) / cpu
    );
    let (rounds, started) = (100_000.min(count), Instant::now());
    let before = cpu_seconds(child.id())?;
    send_with_library(address, connection_string, &pem, rounds).await?;
    let rate = f64::from(rounds) / started.elapsed().as_secs_f64();
    let share = (cpu_seconds(child.id())? - before) / started.elapsed().as_secs_f64();
    println!(
        "fe2o3-amqp, 256 in flight: {rate:.0}/s, with the hub {:.0} % busy",
        share * 100.0
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    for line in status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
    {
        println!("hub {line}");
    }
    let port = address.rsplit_once(':').context("port")?.1;
    let base = format!("https://localhost:{port}");
    let http = reqwest::Client::builder()
        .add_root_certificate(reqwest::Certificate::from_pem(pem.as_bytes())?);
    let http = http.build()?;
    for query in [
        "SELECT COUNT() AS n FROM devices",
        "SELECT COUNT() AS n FROM devices WHERE tags.region = 'eu'",
        "SELECT COUNT() AS n FROM devices WHERE tags.region = 'eu' AND STARTSWITH(tags.site, 'site-0')",
    ] {
        let started = Instant::now();
        let answer = http
            .post(format!("{base}/devices/query?api-version=2021-04-12"))
            .header("Authorization", token(connection_string)?)
            .body(format!("{{\"query\": {}}}", serde_json::Value::from(query)))
            .send()
            .await?;
        let text = answer.text().await?;
        println!("{:4} ms {query} -> {text}", started.elapsed().as_millis());
    }
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

fn token(connection_string: &str) -> Result<String> {
    use base64::Engine as _;
    let key = connection_string
        .split_once("SharedAccessKey=")
        .context("key")?
        .1;
    let key = base64::engine::general_purpose::STANDARD.decode(key)?;
    Ok(sign_token("localhost", "iothubowner", &key, 4_000_000_000))
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .context("stat")?
        .1
        .split(' ')
        .collect();
    // In hundredths of a second, user and system.
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

async fn dial(address: &str, pem: &str) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut roots = rustls::RootCertStore::empty();
    use rustls_pki_types::pem::PemObject as _;
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(
        pem.as_bytes(),
    )?)?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into()?, tcp)
        .await?)
}

/// Measures the same with a client library and 256 messages in flight.
async fn send_with_library(
    address: &str,
    connection_string: &str,
    pem: &str,
    count: u32,
) -> Result<()> {
    let login = SaslProfile::Plain {
        username: "iothubowner@sas.root.localhost".to_owned(),
        password: token(connection_string)?,
    };
    let mut connection = Connection::builder()
        .container_id("bench")
        .hostname("localhost")
        .max_frame_size(65_536)
        .sasl_profile(login)
        .open_with_stream(dial(address, pem).await?)
        .await?;
    let mut session = Session::begin(&mut connection).await?;
    let mut sender = Sender::attach(&mut session, "bench", "/messages/devicebound").await?;
    let mut in_flight = FuturesUnordered::new();
    for n in 0..count {
        let message = Message::builder()
            .properties(
                Properties::builder()
                    .message_id(format!("second.{n}"))
                    .to(format!("/devices/fridge-{n:07}/messages/devicebound"))
                    .build(),
            )
            .body(Data(Binary::from(vec![b'x'; 200])))
            .build();
        in_flight.push(sender.send_batchable(message).await?);
        if in_flight.len() >= 256 {
            in_flight.next().await.context("a send")??;
        }
    }
    while let Some(outcome) = in_flight.next().await {
        outcome?;
    }
    Ok(())
}

async fn send_all(
    address: &str,
    connection_string: &str,
    pem: &str,
    count: u32,
    body: usize,
) -> Result<()> {
    let stream = dial(address, pem).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let login = format!(
        "\0iothubowner@sas.root.localhost\0{}",
        token(connection_string)?
    );
    let mut hello = b"AMQP\x03\x01\x00\x00".to_vec();
    frame(
        &mut hello,
        1,
        &described(0x41, &[symbol("PLAIN"), binary(login.as_bytes())]),
    );
    hello.extend_from_slice(b"AMQP\x00\x01\x00\x00");
    let address = described(0x29, &[text("/messages/devicebound")]);
    frame(
        &mut hello,
        0,
        &described(0x10, &[text("bench"), text("localhost")]),
    );
    frame(
        &mut hello,
        0,
        &described(0x11, &[NULL.to_vec(), uint(0), uint(5000), uint(5000)]),
    );
    let attach = [
        text("link"),
        uint(0),
        vec![0x42],
        vec![0x50, 0],
        vec![0x50, 0],
        NULL.to_vec(),
        address,
        NULL.to_vec(),
        NULL.to_vec(),
        uint(0),
    ];
    frame(&mut hello, 0, &described(0x12, &attach));
    writer.write_all(&hello).await?;
    writer.flush().await?;

    // The reader publishes the highest delivery count within the credit, and counts the answers.
    let (credit, mut allowed) = tokio::sync::watch::channel(0u32);
    let answers = tokio::spawn(async move {
        let mut input = bytes::BytesMut::with_capacity(1 << 16);
        let (mut settled, mut skipped) = (0u32, 0);
        while settled < count {
            if reader.read_buf(&mut input).await? == 0 {
                bail!("the hub closed after {settled} answers");
            }
            loop {
                if skipped < 2 && input.len() >= 8 && input.starts_with(b"AMQP") {
                    let _ = input.split_to(8);
                    skipped += 1;
                    continue;
                }
                let Some(size) = input
                    .first_chunk::<4>()
                    .map(|size| u32::from_be_bytes(*size) as usize)
                else {
                    break;
                };
                if input.len() < size {
                    break;
                }
                let frame = input.split_to(size);
                match frame.get(10) {
                    // Descriptor, list32, size, count: the fields begin at 20.
                    Some(0x13) => {
                        let fields = uints(&frame[20..]);
                        credit.send_replace(fields[5] + fields[6]);
                    }
                    Some(0x15) => {
                        let fields = uints(&frame[21..]);
                        settled += fields[1] - fields[0] + 1;
                    }
                    Some(0x16..=0x18) => bail!("{}", String::from_utf8_lossy(&frame)),
                    _ => {}
                }
            }
        }
        Ok(())
    });
    let filler = vec![b'x'; body];
    let mut out = Vec::with_capacity(1 << 16);
    for id in 0..count {
        let properties = described(
            0x73,
            &[
                text(&format!("rollout-1.b{:05}.{id}.0", id / 100)),
                NULL.to_vec(),
                text(&format!("/devices/fridge-{id:07}/messages/devicebound")),
            ],
        );
        let mut body = described(
            0x14,
            &[
                uint(0),
                uint(id),
                binary(&id.to_be_bytes()),
                uint(0),
                vec![0x42],
            ],
        );
        body.extend(properties);
        body.extend([0x00, 0x53, 0x75]);
        body.extend(binary(&filler));
        frame(&mut out, 0, &body);
        let blocked = *allowed.borrow_and_update() <= id + 1;
        if blocked || out.len() > 16_000 {
            writer.write_all(&out).await?;
            out.clear();
        }
        while *allowed.borrow_and_update() <= id + 1 && id + 1 < count {
            writer.flush().await?;
            if allowed.changed().await.is_err() {
                break;
            }
        }
    }
    writer.write_all(&out).await?;
    writer.flush().await?;
    answers.await?
}

const NULL: [u8; 1] = [0x40];

fn frame(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.extend(u32::try_from(body.len() + 8).unwrap_or(0).to_be_bytes());
    out.extend([2, kind, 0, 0]);
    out.extend(body);
}

fn described(code: u8, fields: &[Vec<u8>]) -> Vec<u8> {
    let fields_bytes: Vec<u8> = fields.concat();
    let mut out = vec![0x00, 0x53, code, 0xd0];
    out.extend(
        u32::try_from(fields_bytes.len() + 4)
            .unwrap_or(0)
            .to_be_bytes(),
    );
    out.extend(u32::try_from(fields.len()).unwrap_or(0).to_be_bytes());
    out.extend(fields_bytes);
    out
}

fn variable(code: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![code + 0x10];
    out.extend(u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
    out.extend(value);
    out
}

fn text(value: &str) -> Vec<u8> {
    variable(0xa1, value.as_bytes())
}

fn symbol(value: &str) -> Vec<u8> {
    variable(0xa3, value.as_bytes())
}

fn binary(value: &[u8]) -> Vec<u8> {
    variable(0xa0, value)
}

fn uint(value: u32) -> Vec<u8> {
    let mut out = vec![0x70];
    out.extend(value.to_be_bytes());
    out
}

/// Returns the unsigned integers at the start of the fields.
fn uints(mut fields: &[u8]) -> Vec<u32> {
    let mut values = Vec::new();
    loop {
        match fields {
            [0x43, rest @ ..] => {
                values.push(0);
                fields = rest;
            }
            [0x52, value, rest @ ..] => {
                values.push(u32::from(*value));
                fields = rest;
            }
            [0x70, a, b, c, d, rest @ ..] => {
                values.push(u32::from_be_bytes([*a, *b, *c, *d]));
                fields = rest;
            }
            _ => return values,
        }
    }
}
