//! What the distributed engine costs: time, Redis, and memory of a rollout over RabbitMQ and Redis.
//!
//! ```text
//! cargo bench --bench distributed -- [--small 100000] [--large 1000000] [--workers 2] [--json]
//! cargo bench --bench distributed -- --plan-only 10000000
//! ```
//!
//! One orchestrator, some workers, private services and an emulator without limits, all of them on this machine's
//! cores. Memory must not grow with the fleet. Redis counts every command, those inside of scripts among them.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

mod common;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};

use common::{Hub, LONGEST, Machine, Process};

const TWINCAST: &str = env!("CARGO_BIN_EXE_twincast");
const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 100_000)]
    small: usize,
    #[arg(long, default_value_t = 1_000_000)]
    large: usize,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Only plan, for so many devices.
    #[arg(long)]
    plan_only: Option<usize>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    test: bool,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    devices: usize,
    planning_s: f64,
    sends_per_second: f64,
    redis_bytes_per_device: f64,
    redis_commands_per_device: f64,
    orchestrator_mib: f64,
    /// The largest worker.
    worker_mib: f64,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        (args.small, args.large) = (100, 1_000);
    }
    let machine = Machine::look(common::folder()?.path())?;
    let sizes = match args.plan_only {
        Some(devices) => vec![(devices, 0)],
        None => vec![(args.small, args.workers), (args.large, args.workers)],
    };
    let mut figures = Vec::new();
    for (devices, workers) in sizes {
        figures.push(measure(devices, workers)?);
    }
    if args.json {
        println!("{}", json!({ "machine": machine, "runs": figures }));
        return Ok(());
    }
    println!(
        "{} cores ({}), {} workers\n",
        machine.cores, machine.cpu, args.workers
    );
    let line = |name: &str, figure: fn(&Figures) -> f64, digits: usize| {
        let cells = figures.iter().map(|f| format!("{:>12.digits$}", figure(f)));
        println!("{name:<40} {}", cells.collect::<Vec<_>>().join(" "));
    };
    line("devices", |f| f.devices as f64, 0);
    line("planning, s", |f| f.planning_s, 1);
    line("sends a second", |f| f.sends_per_second, 0);
    line("Redis, bytes a device", |f| f.redis_bytes_per_device, 1);
    line(
        "Redis, commands a device (goal 0.1)",
        |f| f.redis_commands_per_device,
        3,
    );
    line(
        "most memory of the orchestrator, MiB",
        |f| f.orchestrator_mib,
        1,
    );
    line("most memory of a worker, MiB", |f| f.worker_mib, 1);
    Ok(())
}

/// Plans a rollout for `devices`, and sends it with `workers` if there are any.
fn measure(devices: usize, workers: usize) -> Result<Figures> {
    eprintln!("{devices} devices, {workers} workers");
    let folder = common::folder()?;
    let services = Services::start(folder.path())?;
    let hub = Hub::start(folder.path(), devices)?;
    let engine = Engine {
        hub: &hub,
        services: &services,
        folder: folder.path(),
    };
    let mut redis = services.redis()?;
    let orchestrator = engine.start("orchestrator", 0)?;
    let empty = redis.memory()?;
    let commands = redis.commands()?;
    let begun = Instant::now();
    engine.submit()?;
    engine.until(|phase| phase != "accepted" && phase != "planning")?;
    let planning = begun.elapsed();
    let planned = redis.memory()?;
    let mut figures = Figures {
        devices,
        planning_s: planning.as_secs_f64(),
        redis_bytes_per_device: (planned - empty) as f64 / devices as f64,
        ..Figures::default()
    };
    if workers > 0 {
        let begun = Instant::now();
        let workers: Vec<_> = (0..workers)
            .map(|n| engine.start("worker", n))
            .collect::<Result<_>>()?;
        let phase = engine.until(|phase| phase != "running")?;
        let took = begun.elapsed();
        ensure!(phase == "succeeded", "the rollout is {phase}");
        let counts = hub.counter()?.read()?;
        ensure!(
            counts.accepted == devices as u64 && counts.repeats_by_device == 0,
            "the hub accepted {} messages, {} of them repeats",
            counts.accepted,
            counts.repeats_by_device
        );
        figures.sends_per_second = devices as f64 / took.as_secs_f64();
        let peaks = workers.iter().filter_map(|w| common::peak_kib_of(w.id()));
        figures.worker_mib = peaks.max().unwrap_or(0) as f64 / 1024.0;
        let after = redis.memory()?;
        figures.redis_bytes_per_device = (after - empty) as f64 / devices as f64;
    }
    figures.redis_commands_per_device = (redis.commands()? - commands) as f64 / devices as f64;
    let peak = common::peak_kib_of(orchestrator.id()).context("the orchestrator's memory")?;
    figures.orchestrator_mib = peak as f64 / 1024.0;
    Ok(figures)
}

/// Private RabbitMQ and Redis; stopped with this handle.
struct Services {
    rabbitmq: PathBuf,
    redis: PathBuf,
    amqp_port: String,
    redis_port: String,
}

impl Services {
    fn start(folder: &Path) -> Result<Self> {
        script(&["install".as_ref()])?;
        let (rabbitmq, redis) = (folder.join("rabbitmq"), folder.join("redis"));
        let port = |verb: &str, dir: &Path| {
            let mut said = script(&[verb.as_ref(), dir.as_os_str()])?;
            said.remove("port")
                .with_context(|| format!("{verb} told no port"))
        };
        Ok(Self {
            redis_port: port("redis-start", &redis)?,
            amqp_port: port("rabbitmq-start", &rabbitmq)?,
            rabbitmq,
            redis,
        })
    }

    fn redis(&self) -> Result<Redis> {
        let stream = TcpStream::connect(format!("127.0.0.1:{}", self.redis_port))?;
        Ok(Redis(BufReader::new(stream)))
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for dir in [&self.rabbitmq, &self.redis] {
            // There is nobody to tell.
            _ = script(&["stop".as_ref(), dir.as_os_str()]);
        }
    }
}

/// Runs `scripts/services`; gives the `key=value` lines that it says.
fn script(arguments: &[&std::ffi::OsStr]) -> Result<HashMap<String, String>> {
    let output = Command::new(SERVICES)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run scripts/services")?;
    ensure!(
        output.status.success(),
        "scripts/services ended with {}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

/// A connection to Redis, for its account of itself.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn info(&mut self, section: &str) -> Result<HashMap<String, String>> {
        write!(self.0.get_mut(), "INFO {section}\r\n")?;
        let mut head = String::new();
        self.0.read_line(&mut head)?;
        let length: usize = head.trim().strip_prefix('$').context("INFO")?.parse()?;
        let mut body = vec![0; length + 2];
        self.0.read_exact(&mut body)?;
        let text = String::from_utf8(body)?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs
            .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
            .collect())
    }

    /// Bytes that its data take.
    fn memory(&mut self) -> Result<i64> {
        Ok(self.info("memory")?["used_memory_dataset"].parse()?)
    }

    /// Commands that it has run, also those in scripts.
    fn commands(&mut self) -> Result<u64> {
        let calls = |line: &String| {
            let calls = line.split(',').find_map(|part| part.strip_prefix("calls="));
            calls.and_then(|calls| calls.parse::<u64>().ok())
        };
        Ok(self.info("commandstats")?.values().filter_map(calls).sum())
    }
}

/// The processes of the engine.
struct Engine<'a> {
    hub: &'a Hub,
    services: &'a Services,
    folder: &'a Path,
}

impl Engine<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(TWINCAST);
        let Services {
            amqp_port,
            redis_port,
            ..
        } = self.services;
        command
            .arg("--config")
            .arg(self.hub.folder.join("twincast.toml"))
            .args(arguments)
            .env(
                "TWINCAST__AMQP__URL",
                format!("amqp://127.0.0.1:{amqp_port}"),
            )
            .env(
                "TWINCAST__REDIS__URL",
                format!("redis://127.0.0.1:{redis_port}"),
            );
        command
    }

    fn start(&self, role: &str, number: usize) -> Result<Process> {
        let log = File::create(self.folder.join(format!("{role}-{number}.log")))?;
        let mut command = self.command(&[role]);
        command.stdout(Stdio::null()).stderr(log);
        Process::start(role, &mut command)
    }

    fn submit(&self) -> Result<()> {
        let spec = self.folder.join("rollout.yaml");
        let body = common::body();
        let text = format!(
            "name: bench\ntarget: {{ tags: {{ type: fridge }} }}\nbatch_by: [region]\nmessage: {{ body: {{ json: {body} }} }}\n"
        );
        std::fs::write(&spec, text)?;
        let spec = spec.to_str().context("a path that is text")?;
        let output = self.command(&["submit", spec]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "submit: {said}");
        Ok(())
    }

    /// Waits until the rollout's phase is as wanted.
    fn until(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let begun = Instant::now();
        while begun.elapsed() < LONGEST {
            let output = self.command(&["--json", "status"]).output()?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            let phase = status["rollouts"][0]["phase"].as_str().unwrap_or_default();
            if wanted(phase) {
                return Ok(phase.to_owned());
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "the beat of a measurement, not a wait for luck"
            )]
            std::thread::sleep(LOOK);
        }
        bail!("not done after {LONGEST:?}")
    }
}
