//! The engine under test: hubs, orchestrators and workers, each a process killed at the end of the
//! test.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Ended, Fleet, Hub, MessageLog, Room, Row, Running, Signal, assert_report_matches, eventually,
};
use crate::pipeline::Pipeline;
use crate::services::Access;
use crate::waiting::poll_until;

/// Time limit for processes to become ready, at the start or again.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// Batches per worker and hub in parallel, and devices per batch possibly sent to without a record.
/// Small, so a crash can repeat little.
pub(crate) const SLOTS: u64 = 4;
pub(crate) const WINDOW: u64 = 64;

/// Tests with time measurements run alone on the machine.
static MACHINE: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "what matters is how long they are held")]
enum Turn {
    WithOthers(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A hub with a name in the configuration.
pub(crate) type Named = (&'static str, Hub);

/// The parts of an engine.
pub(crate) struct Engine {
    pub(crate) access: Access,
    pub(crate) hubs: Vec<Named>,
    pub(crate) orchestrators: Vec<Member>,
    pub(crate) workers: Vec<Member>,
    /// The folder for operators' commands, with the configuration of all processes.
    pub(crate) room: Room,
    started: u32,
    _turn: Turn,
}

impl Engine {
    /// Creates an engine, to run beside the engines of other tests. Only the hubs run yet.
    pub(crate) fn new(access: &Access, hubs: Vec<Named>) -> Self {
        let turn = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Self::taking(Turn::WithOthers(turn), access, hubs)
    }

    /// Creates an engine with the same services and other hubs.
    pub(crate) fn beside(&self, hubs: Vec<Named>) -> Self {
        Self::new(&self.access, hubs)
    }

    /// Creates an engine, to run while no other engine runs.
    pub(crate) fn alone(access: &Access, hubs: Vec<Named>) -> Self {
        let turn = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        Self::taking(Turn::Alone(turn), access, hubs)
    }

    /// Gives workers the default settings, with slots for batches of several rollouts at the same
    /// time.
    pub(crate) fn with_default_workers(mut self) -> Self {
        self.room = Room::configured(&configuration(&self.access, &self.hubs, ""));
        self
    }

    /// Sets an environment variable for processes started later.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.room.set_for_all(key, value);
    }

    fn taking(turn: Turn, access: &Access, hubs: Vec<Named>) -> Self {
        let worker = format!("slots = {SLOTS}\nwindow = {WINDOW}\n");
        Self {
            room: Room::configured(&configuration(access, &hubs, &worker)),
            access: access.clone(),
            hubs,
            orchestrators: Vec::new(),
            workers: Vec::new(),
            started: 0,
            _turn: turn,
        }
    }

    /// Starts further orchestrators and workers, and waits until all are ready.
    pub(crate) fn grow(&mut self, orchestrators: usize, workers: usize) {
        for _ in 0..orchestrators {
            let member = self.member("orchestrator");
            self.orchestrators.push(member);
        }
        for _ in 0..workers {
            let member = self.member("worker");
            self.workers.push(member);
        }
        self.until_ready();
    }

    /// Starts a process. The caller adds the process to the engine.
    pub(crate) fn member(&mut self, role: &str) -> Member {
        self.started += 1;
        Member {
            name: format!("{role} {}", self.started),
            running: self.room.start(&[role]),
        }
    }

    /// Returns all processes of the engine.
    pub(crate) fn members(&mut self) -> impl Iterator<Item = &mut Member> {
        self.orchestrators.iter_mut().chain(&mut self.workers)
    }

    /// Waits until all processes report ready.
    pub(crate) fn until_ready(&mut self) {
        for member in self.members() {
            member.until_ready();
        }
    }

    /// Kills all processes, as in a power cut.
    pub(crate) fn kill_all(&mut self) {
        for member in self.orchestrators.drain(..).chain(self.workers.drain(..)) {
            member.kill();
        }
    }

    /// Stops all processes gracefully.
    pub(crate) fn stop_all(&mut self) {
        for member in self.orchestrators.drain(..).chain(self.workers.drain(..)) {
            member.stop();
        }
    }

    /// Creates a token of a role for the HTTP API: returns the token, and the line for the tokens
    /// file.
    pub(crate) fn token(&self, role: &str) -> (String, String) {
        let made = self.room.run(&["--json", "token", role, "--role", role]);
        let made = made.expect(0).json();
        let part = |part: &str| made[part].as_str().expect("a text").to_owned();
        (part("token"), part("line"))
    }

    /// Returns a client of RabbitMQ with knowledge only of the documented messages.
    pub(crate) fn pipeline(&self) -> Pipeline {
        Pipeline::connect(&self.access)
    }

    /// Returns the number of messages accepted by all hubs.
    pub(crate) fn accepted(&self) -> u64 {
        self.sum(|hub| hub.summary().accepted)
    }

    /// Returns the number of messages accepted for devices with an earlier message.
    pub(crate) fn repeats(&self) -> u64 {
        self.sum(|hub| hub.summary().repeats_by_device)
    }

    fn sum(&self, of: impl Fn(&Hub) -> u64) -> u64 {
        self.hubs.iter().map(|(_, hub)| of(hub)).sum()
    }

    /// Waits until the hubs have accepted the given number of messages.
    #[track_caller]
    pub(crate) fn until_accepted(&self, messages: u64, limit: Duration) {
        let what = format!("{messages} messages at the hubs");
        poll_until(limit, &what, || (self.accepted() >= messages).then_some(()));
    }

    /// Returns a rollout's state, as shown by the command line.
    #[track_caller]
    pub(crate) fn status(&self, name: &str) -> Value {
        self.room.run(&["--json", "status", name]).expect(0).json()
    }

    /// Waits until a rollout is in a phase.
    #[track_caller]
    pub(crate) fn until_phase(&self, name: &str, phase: &str, limit: Duration) -> Value {
        let mut last = Value::Null;
        poll_until(limit, &format!("{name} to be {phase}"), || {
            let output = self.room.run(&["--json", "status", name]);
            last = serde_json::from_str(&output.stdout).unwrap_or_default();
            (last["phase"] == phase).then(|| last.clone())
        })
    }

    /// Returns the dead letters.
    #[track_caller]
    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        let ended = self.room.run(&["--json", "dead-letters", "list"]).expect(0);
        let letters = ended.json()["dead_letters"].take();
        serde_json::from_value(letters).expect("a list")
    }

    /// Asserts that a rollout's report agrees with the hubs; returns the rows.
    #[track_caller]
    pub(crate) fn assert_reports_match_hubs(&self, rollout: &str) -> Vec<Row> {
        let report = self.room.run(&["--json", "report", rollout]).expect(0);
        let report = report.json();
        let rows: Vec<Row> =
            serde_json::from_value(report["devices_list"].clone()).expect("rows of devices");
        for (name, hub) in &self.hubs {
            let of_hub = rows.iter().filter(|row| row.hub == *name).cloned();
            assert_report_matches(&of_hub.collect::<Vec<_>>(), &of_rollout(hub, rollout));
        }
        let mut counted = serde_json::Map::new();
        for row in &rows {
            let count = counted.entry(row.outcome.clone()).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap_or_default() + 1);
        }
        assert_eq!(
            report["counts"],
            Value::Object(counted),
            "the counters are not the sum of the outcomes"
        );
        rows
    }
}

/// Returns a hub's messages of a single rollout.
pub(crate) fn of_rollout(hub: &Hub, rollout: &str) -> MessageLog {
    let prefix = format!("{rollout}.");
    let mut message_log = hub.message_log();
    message_log.retain(|_, ids| {
        ids.retain(|id| id.starts_with(&prefix));
        !ids.is_empty()
    });
    message_log
}

impl Drop for Engine {
    /// After a failed test, prints the end of every log.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in self.members() {
                println!("-- {}\n{}", member.name, member.log_end());
            }
        }
    }
}

/// A process of the engine.
pub(crate) struct Member {
    pub(crate) name: String,
    running: Running,
}

impl Member {
    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.running.stderr()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// `orchestrator` or `worker`.
    pub(crate) fn role(&self) -> String {
        let role = self.name.split(' ').next();
        role.unwrap_or_default().to_owned()
    }

    /// Returns the address of the probes.
    pub(crate) fn probes(&mut self) -> SocketAddr {
        eventually("the address of the probes", || {
            assert!(
                !self.running.is_over(),
                "{} ended: {}",
                self.name,
                self.log()
            );
            let log = self.running.stderr();
            let (_, rest) = log.split_once("Probes: http://")?;
            rest.split_once('/')?.0.parse().ok()
        })
    }

    /// Returns the answer of `/readyz`.
    pub(crate) fn readiness(&mut self) -> (u16, Value) {
        let (code, body) = get(self.probes(), "/readyz").unwrap_or_else(|error| {
            panic!("{} answers no probes: {error}\n{}", self.name, self.log())
        });
        (code, serde_json::from_str(&body).unwrap_or_default())
    }

    /// Waits until the process reports ready.
    #[track_caller]
    pub(crate) fn until_ready(&mut self) {
        let what = format!("{} to be ready", self.name);
        let mut last = Value::Null;
        poll_until(READY_TIMEOUT, &what, || {
            let (code, answer) = self.readiness();
            last = answer;
            (code == 200).then_some(())
        });
    }

    /// Waits until the process reports waiting for a service.
    #[track_caller]
    pub(crate) fn until_waiting_for(&mut self, service: &str) {
        let what = format!("{} to wait for {service}", self.name);
        poll_until(READY_TIMEOUT, &what, || {
            let (code, answer) = self.readiness();
            (code == 503 && answer["waiting_for"][service].is_string()).then_some(())
        });
    }

    /// Returns the peak memory so far, in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.id()));
        let status = status.expect("the process runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse().ok());
        kib.map(|kib: u64| kib * 1024)
            .expect("the system reports the peak")
    }

    /// Kills the process, as in a power cut.
    pub(crate) fn kill(self) -> Ended {
        self.running.kill()
    }

    /// Asks the process to stop.
    pub(crate) fn ask_to_stop(&self) {
        self.running.signal(Signal::Terminate);
    }

    /// Returns true if the process has ended.
    pub(crate) fn is_over(&mut self) -> bool {
        self.running.is_over()
    }

    /// Waits for a graceful end.
    #[track_caller]
    pub(crate) fn stopped(self) -> Ended {
        self.running.wait().expect(0)
    }

    /// Asks the process to stop, and waits for a graceful end.
    #[track_caller]
    pub(crate) fn stop(self) -> Ended {
        self.ask_to_stop();
        self.stopped()
    }
}

/// Sends an HTTP/1.0 request, so the answer ends with the connection.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, READY_TIMEOUT)?;
    stream.set_read_timeout(Some(READY_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.unwrap_or_default(), body.to_owned()))
}

fn configuration(access: &Access, hubs: &[Named], worker: &str) -> String {
    let Access {
        amqp_url,
        redis_url,
        prefix,
    } = access;
    // A path names a file with the URL.
    let key = |url: &str| {
        if url.starts_with('/') {
            "url_file"
        } else {
            "url"
        }
    };
    let (amqp, redis) = (key(amqp_url), key(redis_url));
    let mut toml = format!(
        "\
[log]
filter = \"info,twincast_worker=debug\"
[worker]
{worker}[amqp]
{amqp} = \"{amqp_url}\"
prefix = \"{prefix}\"
[redis]
{redis} = \"{redis_url}\"
prefix = \"{prefix}:\"
[http]
listen = \"127.0.0.1:0\"
"
    );
    for (name, hub) in hubs {
        let of_hub = std::fs::read_to_string(hub.config()).expect("the hub wrote the file");
        let path = |file: &str| format!("\"{}\"", hub.folder().join(file).display());
        toml += &of_hub
            .replace("[hubs.emulator]", &format!("[hubs.{name}]"))
            .replace("\"connection-string\"", &path("connection-string"))
            .replace("\"ca.pem\"", &path("ca.pem"));
    }
    toml
}

/// Returns refrigerators of four regions and ten sites, for many small batches: at any time some
/// batch is starting or ending.
pub(crate) fn scattered(devices: u64) -> Fleet {
    Fleet::written(&format!(
        "\
seed: 5
groups:
  - name: fridges
    count: {devices}
    id: \"d-{{index:06}}\"
    tags:
      type: fridge
      region: {{ $choice: [eu-north, eu-south, us-east, us-west] }}
      site: {{ $choice: [a, b, c, d, e, f, g, h, i, j] }}
"
    ))
}
