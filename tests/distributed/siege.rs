//! A server under siege: clients without a right, or with that of a viewer, take all that they can get. Whoever may stop
//! all does so meanwhile, and the process stays small.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use twincast_oidc::TokenSigner;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::engine::Engine;
use crate::harness::{Fleet, Hub, PATIENCE, eventually};
use crate::services::{Access, wait};
use crate::waiting::{throughout, within};

/// How long each siege lasts.
const LASTS: Duration = Duration::from_secs(2);
/// What is promised: to be answered so soon. Of a machine that is busy with other tests, of most requests.
const PROMISED: Duration = Duration::from_secs(1);
/// What no request may take.
const LONGEST: Duration = Duration::from_secs(8);
/// How long the head of a first request may take.
const FIRST_HEAD: Duration = Duration::from_secs(10);
const MEMORY: u64 = 256 * 1024 * 1024;

/// An issuer that takes its time.
async fn slow_issuer() -> MockServer {
    let server = MockServer::start().await;
    let keys = TokenSigner::key_set(&[&TokenSigner::new("k")]);
    let answer = ResponseTemplate::new(200).set_body_json(keys);
    let slow = answer.set_delay(Duration::from_millis(4_500));
    Mock::given(path("/keys"))
        .respond_with(slow)
        .mount(&server)
        .await;
    server
}

/// What a besieger does with a connection, until it is taken from them.
struct Siege<'a> {
    name: &'a str,
    connections: usize,
    sends: Vec<u8>,
    /// Sent again and again, if it is not empty.
    more: Vec<u8>,
}

#[test]
fn all_is_stopped_under_siege_and_memory_stays() {
    let hub = Hub::unlimited(&Fleet::of(10));
    let mut engine = Engine::new(&Access::shared(), vec![("north", hub)]);
    let (admin, admin_line) = engine.token("admin");
    let (viewer, viewer_line) = engine.token("viewer");
    let tokens = format!("{admin_line}\n{viewer_line}\n");
    let tokens = engine.room.write("tokens", &tokens).display().to_string();
    engine.set("TWINCAST__API__LISTEN", "127.0.0.1:0");
    engine.set("TWINCAST__API__TOKENS_FILE", &tokens);
    let issuer = wait(slow_issuer());
    engine.set("TWINCAST__API__OIDC__ISSUER", &issuer.uri());
    engine.set(
        "TWINCAST__API__OIDC__KEYS_URL",
        &format!("{}/keys", issuer.uri()),
    );
    engine.set("TWINCAST__API__OIDC__AUDIENCE", "twincast");
    engine.set("TWINCAST__API__OIDC__ROLES__VIEWER", "all");
    engine.grow(1, 1);
    let api: SocketAddr = eventually("the orchestrator to say where its API is", || {
        let log = engine.orchestrators[0].log();
        let (_, rest) = log.split_once("API: http://")?;
        rest.split_once('/')?.0.parse().ok()
    });
    let started = engine.room.rollout(
        "besieged",
        "stages: [{ name: one, percent: 10%, gate: { approval: {} } }]",
    );
    engine.room.run(&["submit", &started]).expect(0);
    within(LONGEST, "the gate to wait", || {
        (engine.status("besieged")["waits_for"] == "an approval").then_some(())
    });

    let head = |line: &str, token: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n{more}\r\n")
    };
    let json = "content-type: application/json\r\ncontent-length: 100\r\n";
    let stranger = TokenSigner::new("unknown").sign(&json!({ "sub": "nobody" }));
    let large = format!("x-large: {}\r\n", "x".repeat(300_000));
    let sieges = [
        Siege {
            name: "headers of a plan",
            connections: 600,
            sends: head("POST /api/v1/plan", &viewer, json).into(),
            more: Vec::new(),
        },
        Siege {
            name: "tokens of a slow issuer",
            connections: 600,
            sends: head("GET /api/v1/whoami", &stranger, "").into(),
            more: Vec::new(),
        },
        Siege {
            name: "silence",
            connections: 1_500,
            sends: Vec::new(),
            more: Vec::new(),
        },
        Siege {
            name: "large headers",
            connections: 1_500,
            sends: format!("GET / HTTP/1.1\r\nhost: localhost\r\n{large}").into(),
            more: Vec::new(),
        },
        Siege {
            name: "slow headers",
            connections: 600,
            sends: b"GET / HTTP/1.1\r\nhost: localhost\r\n".to_vec(),
            more: b"x-more: 1\r\n".to_vec(),
        },
        Siege {
            name: "events",
            connections: 600,
            sends: head("GET /api/v1/rollouts/besieged/events", &viewer, "").into(),
            more: Vec::new(),
        },
    ];
    let probes = engine.orchestrators[0].probes();
    std::thread::scope(|scope| {
        for address in [api, probes] {
            refuses_large_heads(address);
            scope.spawn(move || ends_half_a_head(address));
        }
    });
    for siege in &sieges {
        let name = siege.name;
        let took = under(siege, api, || stop_and_go_on(api, &admin));
        println!("{name}: {took:?}");
        assert!(took.len() >= 3, "{name}: {took:?}");
        assert!(took.iter().all(|took| *took < LONGEST), "{name}: {took:?}");
        assert!(took[took.len() / 2] < PROMISED, "{name}: {took:?}");
        let most = engine.orchestrators[0].most_memory();
        assert!(most < MEMORY, "{name}: {most} bytes");
    }
    let siege = &sieges[3];
    let took = under(siege, probes, || {
        let begun = Instant::now();
        let answer = patiently(|| crate::engine::get(probes, "/livez"));
        assert_eq!(answer.0, 200);
        begun.elapsed()
    });
    println!("probes: {took:?}");
    assert!(took[took.len() / 2] < PROMISED, "probes: {took:?}");
    let most = engine.orchestrators[0].most_memory();
    println!("at the most {} MiB", most >> 20);
    assert!(most < MEMORY, "{most} bytes");
    engine.stop_all();
}

/// Does something again and again under siege. Gives how long it took, in order.
fn under(
    siege: &Siege<'_>,
    target: SocketAddr,
    mut doing: impl FnMut() -> Duration,
) -> Vec<Duration> {
    let (over, connected) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&over);
        besiege(scope, siege, target, &over, &connected);
        within(PATIENCE, "the siege to begin", || {
            (connected.load(Ordering::Relaxed) >= siege.connections as u64).then_some(())
        });
        let mut took = Vec::new();
        throughout(LASTS, || took.push(doing()));
        took.sort();
        took
    })
}

/// Ends a siege, also when its test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries again what besiegers may have come in the way of: whoever is on the same machine shares its connections with
/// them.
fn patiently<T>(mut ask: impl FnMut() -> std::io::Result<T>) -> T {
    within(LONGEST, "an answer", || ask().ok())
}

/// Keeps so many connections, and replaces those that it loses.
fn besiege<'s>(
    scope: &'s Scope<'s, '_>,
    siege: &'s Siege<'_>,
    target: SocketAddr,
    over: &'s AtomicBool,
    connected: &'s AtomicU64,
) {
    const THREADS: usize = 4;
    for _ in 0..THREADS {
        scope.spawn(move || {
            let mut held: Vec<Option<TcpStream>> = Vec::new();
            held.resize_with(siege.connections / THREADS, || None);
            while !over.load(Ordering::Relaxed) {
                for place in &mut held {
                    if place
                        .as_mut()
                        .is_some_and(|stream| is_open(stream, &siege.more))
                    {
                        continue;
                    }
                    *place = connect(target, &siege.sends);
                    connected.fetch_add(1, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
                throughout(Duration::from_millis(50), || {});
            }
        });
    }
}

fn connect(target: SocketAddr, sends: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, LONGEST).ok()?;
    stream.set_nonblocking(true).ok()?;
    // Whatever is taken of it.
    _ = stream.write(sends);
    Some(stream)
}

fn is_open(stream: &mut TcpStream, more: &[u8]) -> bool {
    let mut answer = [0; 4096];
    let is_open = match stream.read(&mut answer) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    };
    is_open && (more.is_empty() || stream.write(more).is_ok())
}

fn refuses_large_heads(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let large = "x".repeat(33 * 1024);
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: localhost\r\nx-large: {large}\r\n\r\n"
    )
    .expect("it is taken");
    let mut answer = Vec::new();
    // What was not read of it may take the answer with it.
    _ = stream.read_to_end(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{answer:?}"
    );
}

fn ends_half_a_head(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream
        .set_read_timeout(Some(2 * FIRST_HEAD))
        .expect("a time");
    write!(stream, "GET / HTTP/1.1\r\nhost: localhost\r\n").expect("it is taken");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("an end, not in vain waited for");
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"),
        "{answer:?}"
    );
}

/// Stops all and lets all go on; gives how long the first took.
fn stop_and_go_on(api: SocketAddr, token: &str) -> Duration {
    let begun = Instant::now();
    let stopped = post(api, "/api/v1/stop-all", token);
    let took = begun.elapsed();
    assert_eq!(stopped["ok"], true, "{stopped}");
    let went_on = loop {
        let answer = post(api, "/api/v1/resume-all", token);
        if answer["status"] != 503 {
            break answer;
        }
    };
    assert_eq!(went_on["ok"], true, "{went_on}");
    took
}

fn post(api: SocketAddr, path: &str, token: &str) -> Value {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&api, LONGEST)?;
        stream.set_read_timeout(Some(LONGEST))?;
        let body = r#"{"reason":"siege"}"#;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = patiently(ask);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
