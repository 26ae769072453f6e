//! Shared parts of the whole-program benchmarks: an emulator and other programs in separate
//! processes, measurements from outside, and the arithmetic of rounds.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod engine;
pub(crate) mod turns;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;

/// The program under test, built with the benchmark's own profile.
const TWINCAST: &str = env!("CARGO_BIN_EXE_twincast");

/// The time limit of any program: a hanging benchmark is a failure, not a figure.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(600);

/// The message, the same for all senders: a body of 200 bytes, a property, and the additions of
/// `twincast run`.
pub(crate) const BODY_BYTES: usize = 200;
pub(crate) const PROPERTY: (&str, &str) = ("kind", "firmware");
pub(crate) const TTL: Duration = Duration::from_secs(24 * 3600);

/// Returns whether the run is only a smoke test. `cargo bench` passes `--bench`; in any other run
/// (`cargo test --benches`), a benchmark only proves that it works.
pub(crate) fn is_smoke_test() -> bool {
    let given = |flag: &str| std::env::args().any(|argument| argument == flag);
    !given("--bench") || given("--test")
}

/// Creates a folder on the disk of the checkout. The system's folder for temporary files may be in
/// memory.
pub(crate) fn folder() -> Result<TempDir> {
    let parent = env!("CARGO_TARGET_TMPDIR");
    fs::create_dir_all(parent)?;
    TempDir::with_prefix_in("bench-", parent).with_context(|| format!("a folder in {parent}"))
}

pub(crate) fn device_id(index: usize) -> String {
    format!("fridge-{index:013}")
}

/// Returns a JSON text of [`BODY_BYTES`] bytes.
pub(crate) fn body() -> String {
    let frame = r#"{"command":"update","url":""}"#;
    let filler = "x".repeat(BODY_BYTES - frame.len());
    frame.replace(r#""url":"""#, &format!(r#""url":"{filler}""#))
}

/// A process, killed on drop.
pub(crate) struct Process {
    child: Child,
    what: String,
}

impl Process {
    pub(crate) fn start(what: &str, command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        Ok(Self {
            child,
            what: what.to_owned(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether the process has ended; an error after an unsuccessful end.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) => {
                ensure!(status.success(), "{} ended with {status}", self.what);
                Ok(true)
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already; an error cannot be reported here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process of `twincast hub` on free ports.
pub(crate) struct Hub {
    pub(crate) process: Process,
    pub(crate) connection_string: String,
    pub(crate) amqp: SocketAddr,
    pub(crate) folder: PathBuf,
    control: String,
}

#[derive(Deserialize)]
struct Announcement {
    connection_string: String,
    amqp: SocketAddr,
    control: String,
}

impl Hub {
    /// Starts a hub without limits. All devices are offline, so the hub keeps every message and
    /// does nothing more.
    pub(crate) fn start(folder: &Path, devices: usize) -> Result<Self> {
        Self::start_with(folder, devices, &["--unlimited"])
    }

    /// Starts a hub with the limits of these command line arguments, otherwise like
    /// [`Self::start`].
    pub(crate) fn start_with(folder: &Path, devices: usize, limits: &[&str]) -> Result<Self> {
        let out = folder.join("hub");
        fs::create_dir_all(&out)?;
        let fleet = folder.join("fleet.yaml");
        let text = format!(
            "groups:\n- count: {devices}\n  id: 'fridge-{{index:013}}'\n  tags:\n    type: fridge\n    region: {{ $weighted: \
             {{ eu-north: 40, eu-south: 25, us-east: 20, us-west: 15 }} }}\n    pair: {{ $text: '{{index/2}}' }}\n  behaviour: {{ offline: 100% }}\n"
        );
        fs::write(&fleet, text)?;
        let mut command = Command::new(TWINCAST);
        command
            .arg("hub")
            .args(limits)
            .args(["--json", "--amqp-port", "0", "--fleet"])
            .arg(&fleet)
            .arg("--out")
            .arg(&out)
            .stdout(Stdio::piped());
        let mut process = Process::start("twincast hub", &mut command)?;
        let stdout = process.child.stdout.take().context("the hub's output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let announced: Announcement = serde_json::from_str(&line)
            .with_context(|| format!("the hub did not announce itself but printed: {line}"))?;
        Ok(Self {
            process,
            connection_string: announced.connection_string,
            amqp: announced.amqp,
            folder: out,
            control: announced
                .control
                .strip_prefix("http://")
                .context("the control endpoint")?
                .to_owned(),
        })
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Connects to the control endpoint, for reading the number of accepted messages.
    pub(crate) fn counter(&self) -> Result<Counter> {
        let stream = TcpStream::connect(&self.control)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Counter {
            stream: BufReader::new(stream),
        })
    }
}

/// A connection to the hub's control endpoint.
pub(crate) struct Counter {
    stream: BufReader<TcpStream>,
}

#[derive(Deserialize)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) repeats_by_device: u64,
}

impl Counter {
    pub(crate) fn read(&mut self) -> Result<Counts> {
        self.stream
            .get_mut()
            .write_all(b"GET /summary HTTP/1.1\r\nHost: hub\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(
                self.stream.read_line(&mut line)? > 0,
                "the hub hung up on us"
            );
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        serde_json::from_slice(&body).context("the hub's summary")
    }
}

/// Measurements of a sending program, taken from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurement {
    /// The time from the program's start to the first accepted message: starting, connecting,
    /// planning.
    pub(crate) before: Duration,
    /// The time from the first to the last accepted message.
    pub(crate) sending: Duration,
    /// The time from the last accepted message to the program's end.
    pub(crate) after: Duration,
    /// The peak memory of the program.
    pub(crate) peak_kib: u64,
    /// The CPU time of the program, and of the hub, in seconds.
    pub(crate) cpu: f64,
    pub(crate) hub_cpu: f64,
}

/// Watches `sender` send `messages` to a fresh hub, with a reading every `pause`. The measured
/// start is at most a pause too early, and the measured end at most a pause too late, so a speed is
/// never overstated.
pub(crate) fn measure(
    hub: &Hub,
    sender: &mut Process,
    messages: usize,
    pause: Duration,
) -> Result<Measurement> {
    let started = Instant::now();
    let expected = u64::try_from(messages)?;
    let mut counter = hub.counter()?;
    let mut nothing_until = started;
    let (mut first, mut last) = (None, None);
    let (mut peak_kib, mut cpu) = (0, 0.0);
    let ended_at = loop {
        // Read the usage before checking for the end: the figures vanish with the process.
        let (peak, used) = (peak_kib_of(sender.id()), cpu_seconds(sender.id()));
        peak_kib = peak_kib.max(peak.unwrap_or(0));
        cpu = used.unwrap_or(cpu);
        let ended = sender.has_ended()?;
        let read_at = Instant::now();
        let counts = counter.read()?;
        if counts.accepted == 0 {
            nothing_until = read_at;
        } else if first.is_none() {
            first = Some(nothing_until);
        }
        if counts.accepted >= expected && last.is_none() {
            last = Some(Instant::now());
        }
        if ended {
            ensure!(
                counts.accepted == expected && counts.repeats_by_device == 0,
                "the hub accepted {} messages, {} of them repeats, where {expected} were to be \
                 sent",
                counts.accepted,
                counts.repeats_by_device
            );
            break read_at;
        }
        if started.elapsed() > TIMEOUT {
            bail!("not done after {TIMEOUT:?}");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the beat of a measurement, not a wait for luck"
        )]
        std::thread::sleep(pause);
    };
    let (first, last) = (
        first.context("nothing was sent")?,
        last.context("not all was sent")?,
    );
    Ok(Measurement {
        before: first - started,
        sending: last - first,
        after: ended_at.saturating_duration_since(last),
        peak_kib,
        cpu,
        hub_cpu: cpu_seconds(hub.process.id()).unwrap_or(0.0),
    })
}

/// Measures `twincast run` of a single message to all devices of `hub`, with the state in the
/// folder `state`.
pub(crate) fn run_twincast(
    hub: &Hub,
    state: &Path,
    devices: usize,
    settings: &[(&str, &str)],
    pause: Duration,
) -> Result<Measurement> {
    let spec = state.with_extension("yaml");
    let text = format!(
        "name: bench\ntarget: {{ tags: {{ type: fridge }} }}\nbatch_by: [region]\nmessage:\n  body: {{ json: {} }}\n  \
         properties: {{ {}: {} }}\n  ttl: {}s\n",
        body(),
        PROPERTY.0,
        PROPERTY.1,
        TTL.as_secs()
    );
    fs::write(&spec, text)?;
    let log = state.with_extension("log");
    let mut command = Command::new(TWINCAST);
    command
        .args(["--json", "--config"])
        .arg(hub.folder.join("twincast.toml"))
        .arg("--state")
        .arg(state)
        .arg("run")
        .arg(spec)
        .envs(settings.iter().copied())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    let mut run = Process::start("twincast run", &mut command)?;
    measure(hub, &mut run, devices, pause).with_context(|| {
        let output = fs::read_to_string(&log).unwrap_or_default();
        format!("twincast run, which printed:\n{output}")
    })
}

/// Returns the peak memory of a process so far, if the system reports the value.
pub(crate) fn peak_kib_of(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Returns the CPU time of a process so far, in seconds, if the system reports the value.
pub(crate) fn cpu_seconds(process: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The process name may contain blanks; the later fields do not. The times are hundredths of a
    // second.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some((user.parse::<f64>().ok()? + system.parse::<f64>().ok()?) / 100.0)
}

/// The median of the rounds, with the least and the largest value.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Rounds {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Rounds {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(sorted.len() / 2),
            least: at(0),
            most: at(sorted.len().saturating_sub(1)),
        }
    }
}

/// The properties of the machine relevant to the figures.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    /// The time to make 4 KiB durable on the disk, in milliseconds.
    pub(crate) sync_ms: f64,
}

impl Machine {
    pub(crate) fn probe(folder: &Path) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .and_then(|rest| rest.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim())
            .to_owned();
        let mut file = File::create(folder.join("sync-probe"))?;
        let times = (0..32).map(|_| {
            let started_at = Instant::now();
            file.write_all(&[7; 4096])?;
            file.sync_data()?;
            Ok(started_at.elapsed().as_secs_f64() * 1e3)
        });
        let times = times.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu,
            sync_ms: Rounds::of(times).median,
        })
    }
}
