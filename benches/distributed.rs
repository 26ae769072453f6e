//! The cost of the distributed engine: time, Redis, and memory of a rollout over RabbitMQ and
//! Redis.
//!
//! ```text
//! cargo bench --bench distributed -- [--small 100000] [--large 1000000] [--workers 2] [--json]
//! cargo bench --bench distributed -- --plan-only 10000000
//! cargo bench --bench distributed -- --batch-by pair
//! ```
//!
//! An orchestrator, several workers, private services and an emulator without limits share this
//! machine's cores. Memory must not grow with the fleet. Redis counts every command, including the
//! commands in scripts.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

mod common;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use common::engine::{ALL_DEVICES, Engine, Services};
use common::{Hub, Machine};

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
    /// The tag to batch by: `region` has four values, `pair` one for every two devices.
    #[arg(long, default_value = "region")]
    batch_by: String,
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
    /// The peak memory of the largest worker.
    worker_mib: f64,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        (args.small, args.large) = (100, 1_000);
    }
    let machine = Machine::probe(common::folder()?.path())?;
    let sizes = match args.plan_only {
        Some(devices) => vec![(devices, 0)],
        None => vec![(args.small, args.workers), (args.large, args.workers)],
    };
    let mut figures = Vec::new();
    for (devices, workers) in sizes {
        figures.push(measure(devices, workers, &args.batch_by)?);
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
fn measure(devices: usize, workers: usize, tag: &str) -> Result<Figures> {
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
    let started_at = Instant::now();
    engine.submit("bench", ALL_DEVICES, &format!("batch_by: [{tag}]"))?;
    engine.until("bench", |phase| phase != "accepted" && phase != "planning")?;
    let planning = started_at.elapsed();
    let planned = redis.memory()?;
    let mut figures = Figures {
        devices,
        planning_s: planning.as_secs_f64(),
        redis_bytes_per_device: (planned - empty) as f64 / devices as f64,
        ..Figures::default()
    };
    if workers > 0 {
        let started_at = Instant::now();
        let workers: Vec<_> = (0..workers)
            .map(|n| engine.start("worker", n))
            .collect::<Result<_>>()?;
        let phase = engine.until("bench", |phase| phase != "running")?;
        let took = started_at.elapsed();
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
