//! A server under attack: clients without a role, or with the viewer's role, take as many resources
//! as possible. A stop-all still succeeds in time, and the process stays small.

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
use crate::harness::{Fleet, Hub, MAX_WAIT, eventually};
use crate::services::{Access, wait};
use crate::waiting::{poll_for, poll_until};

/// The duration of each attack.
const ATTACK_DURATION: Duration = Duration::from_secs(2);
/// The promised time limit for an answer. On a machine busy with other tests, the promise is
/// checked for the fastest requests: a server without reserved capacity is slow every time.
const PROMISED_LIMIT: Duration = Duration::from_secs(1);
/// The time limit for every request.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(30);
const MAX_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Starts a slow issuer.
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

/// An attack: the number of connections, and the use of each connection until the server closes the
/// connection.
struct Attack<'a> {
    name: &'a str,
    connections: usize,
    sends: Vec<u8>,
    /// Sent repeatedly, unless empty.
    more: Vec<u8>,
}

#[test]
fn stop_all_is_fast_and_memory_bounded_under_attack() {
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
    let api: SocketAddr = eventually("the address of the API in the log", || {
        let log = engine.orchestrators[0].log();
        let (_, rest) = log.split_once("API: http://")?;
        rest.split_once('/')?.0.parse().ok()
    });
    let started = engine.room.rollout(
        "overloaded",
        "stages: [{ name: one, percent: 10%, gate: { approval: {} } }]",
    );
    engine.room.run(&["submit", &started]).expect(0);
    poll_until(MAX_WAIT, "the gate to wait", || {
        (engine.status("overloaded")["waits_for"] == "an approval").then_some(())
    });

    let head = |line: &str, token: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n{more}\r\n")
    };
    let json = "content-type: application/json\r\ncontent-length: 100\r\n";
    let stranger = TokenSigner::new("unknown").sign(&json!({ "sub": "nobody" }));
    let large = format!("x-large: {}\r\n", "x".repeat(300_000));
    let attacks = [
        Attack {
            name: "headers of a plan",
            connections: 600,
            sends: head("POST /api/v1/plan", &viewer, json).into(),
            more: Vec::new(),
        },
        Attack {
            name: "tokens of a slow issuer",
            connections: 600,
            sends: head("GET /api/v1/whoami", &stranger, "").into(),
            more: Vec::new(),
        },
        Attack {
            name: "silence",
            connections: 1_500,
            sends: Vec::new(),
            more: Vec::new(),
        },
        Attack {
            name: "large headers",
            connections: 1_500,
            sends: format!("GET / HTTP/1.1\r\nhost: localhost\r\n{large}").into(),
            more: Vec::new(),
        },
        Attack {
            name: "slow headers",
            connections: 600,
            sends: b"GET / HTTP/1.1\r\nhost: localhost\r\n".to_vec(),
            more: b"x-more: 1\r\n".to_vec(),
        },
        Attack {
            name: "events",
            connections: 600,
            sends: head("GET /api/v1/rollouts/overloaded/events", &viewer, "").into(),
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
    for attack in &attacks {
        let name = attack.name;
        let took = measure_under(attack, api, || stop_and_resume(api, &admin));
        println!("{name}: {took:?}");
        assert!(
            took.iter().all(|took| *took < MAX_ANSWER_TIME),
            "{name}: {took:?}"
        );
        assert!(took[took.len() / 4] < PROMISED_LIMIT, "{name}: {took:?}");
        let most = engine.orchestrators[0].most_memory();
        assert!(most < MAX_MEMORY_BYTES, "{name}: {most} bytes");
    }
    let attack = &attacks[3];
    let took = measure_under(attack, probes, || {
        let started_at = Instant::now();
        let answer = retry_until_answered(|| crate::engine::get(probes, "/livez"));
        assert_eq!(answer.0, 200);
        started_at.elapsed()
    });
    println!("probes: {took:?}");
    assert!(took[took.len() / 4] < PROMISED_LIMIT, "probes: {took:?}");
    let most = engine.orchestrators[0].most_memory();
    println!("at the most {} MiB", most >> 20);
    assert!(most < MAX_MEMORY_BYTES, "{most} bytes");
    engine.stop_all();
}

/// Repeats `doing` under attack; returns the durations in ascending order.
fn measure_under(
    attack: &Attack<'_>,
    target: SocketAddr,
    mut doing: impl FnMut() -> Duration,
) -> Vec<Duration> {
    let (over, connected) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&over);
        open_connections(scope, attack, target, &over, &connected);
        poll_until(MAX_WAIT, "the attack to begin", || {
            (connected.load(Ordering::Relaxed) >= attack.connections as u64).then_some(())
        });
        let mut took = Vec::new();
        poll_for(ATTACK_DURATION, || took.push(doing()));
        // Enough for a quartile, on a busy machine as well.
        while took.len() < 5 {
            took.push(doing());
        }
        took.sort();
        took
    })
}

/// Ends an attack on drop, also after a failed test.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Retries a request disturbed by the attack: all clients on the same machine share a limit of
/// connections.
fn retry_until_answered<T>(mut ask: impl FnMut() -> std::io::Result<T>) -> T {
    poll_until(MAX_WAIT, "an answer", || ask().ok())
}

/// Opens the connections of the attack, and replaces lost connections.
fn open_connections<'s>(
    scope: &'s Scope<'s, '_>,
    attack: &'s Attack<'_>,
    target: SocketAddr,
    over: &'s AtomicBool,
    connected: &'s AtomicU64,
) {
    const THREADS: usize = 4;
    for _ in 0..THREADS {
        scope.spawn(move || {
            let mut held: Vec<Option<TcpStream>> = Vec::new();
            held.resize_with(attack.connections / THREADS, || None);
            while !over.load(Ordering::Relaxed) {
                for place in &mut held {
                    if place
                        .as_mut()
                        .is_some_and(|stream| is_open(stream, &attack.more))
                    {
                        continue;
                    }
                    *place = connect(target, &attack.sends);
                    connected.fetch_add(1, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
                poll_for(Duration::from_millis(50), || {});
            }
        });
    }
}

fn connect(target: SocketAddr, sends: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, MAX_ANSWER_TIME).ok()?;
    stream.set_nonblocking(true).ok()?;
    // A partial write is acceptable.
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
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let large = "x".repeat(33 * 1024);
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: localhost\r\nx-large: {large}\r\n\r\n"
    )
    .expect("the request is sent");
    let mut answer = Vec::new();
    // Unread bytes of the request may cause a reset, and a reset discards the answer.
    _ = stream.read_to_end(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{answer:?}"
    );
}

fn ends_half_a_head(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream
        .set_read_timeout(Some(MAX_WAIT))
        .expect("the timeout is set");
    write!(stream, "GET / HTTP/1.1\r\nhost: localhost\r\n").expect("the request is sent");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("the server closes the connection");
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"),
        "{answer:?}"
    );
}

/// Stops and resumes all rollouts; returns the duration of the stop.
fn stop_and_resume(api: SocketAddr, token: &str) -> Duration {
    let started_at = Instant::now();
    let stopped = post(api, "/api/v1/stop-all", token);
    let took = started_at.elapsed();
    assert_eq!(stopped["ok"], true, "{stopped}");
    let resumed = loop {
        let answer = post(api, "/api/v1/resume-all", token);
        if answer["status"] != 503 {
            break answer;
        }
    };
    assert_eq!(resumed["ok"], true, "{resumed}");
    took
}

fn post(api: SocketAddr, path: &str, token: &str) -> Value {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&api, MAX_ANSWER_TIME)?;
        stream.set_read_timeout(Some(MAX_ANSWER_TIME))?;
        let body = r#"{"reason":"attack"}"#;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        // A crowded server may evict a connection before the request is read.
        if answer.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    };
    let answer = retry_until_answered(ask);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
