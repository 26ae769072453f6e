//! The cost of idle rollouts: Redis commands and CPU time of orchestrators, the time of a takeover
//! by another orchestrator, and the log lines during an outage of Redis.
//!
//! ```text
//! cargo bench --bench idle -- [--rollouts 300] [--settle-s 90] [--measure-s 30] [--away-s 20] [--json]
//! ```
//!
//! A third of the rollouts is outside of the schedule's window, a third waits for an approval, a
//! third is paused. Two orchestrators drive the rollouts; then an orchestrator is killed; then
//! Redis is stopped and started again. `TWINCAST_PROGRAM` selects another build of the engine.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};

use common::engine::{Engine, Services, post};
use common::turns::pause;
use common::{Hub, Machine, TIMEOUT};

/// The number of concurrent starts: each request waits until the start is durable.
const STARTS_AT_ONCE: usize = 16;
/// The number of concurrent pauses: an API accepts only few such requests from a single client.
const STOPS_AT_ONCE: usize = 4;
/// Ticks of CPU time per second.
const TICKS: f64 = 100.0;
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 300)]
    rollouts: usize,
    /// Seconds before the measurement.
    #[arg(long, default_value_t = 90)]
    settle_s: u64,
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 30)]
    measure_s: u64,
    /// Seconds without Redis.
    #[arg(long, default_value_t = 20)]
    away_s: u64,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    test: bool,
}

#[derive(Debug, Serialize)]
struct Figures {
    redis_commands_per_second: f64,
    /// Used cores, by orchestrator.
    cores: Vec<f64>,
    taken_over: usize,
    takeover_s: f64,
    /// Lines logged by an orchestrator during the outage of Redis, and during an equal time after
    /// the outage.
    outage_lines: usize,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        (args.rollouts, args.settle_s, args.measure_s, args.away_s) = (6, 1, 1, 1);
    }
    let machine = Machine::probe(common::folder()?.path())?;
    let figures = measure(&args)?;
    if args.json {
        println!("{}", json!({ "machine": machine, "figures": figures }));
        return Ok(());
    }
    println!(
        "{} cores ({}), {} rollouts\n",
        machine.cores, machine.cpu, args.rollouts
    );
    let line = |name: &str, figure: f64, digits: usize| println!("{name:<40} {figure:>12.digits$}");
    line(
        "Redis, commands a second",
        figures.redis_commands_per_second,
        1,
    );
    for cores in &figures.cores {
        line("an orchestrator, cores", *cores, 3);
    }
    line("taken over from a killed one", figures.taken_over as f64, 0);
    line("in s", figures.takeover_s, 1);
    line(
        "log lines for an outage of Redis",
        figures.outage_lines as f64,
        0,
    );
    Ok(())
}

fn measure(args: &Args) -> Result<Figures> {
    let folder = common::folder()?;
    let services = Services::start(folder.path())?;
    let hub = Hub::start(folder.path(), 2)?;
    let engine = Engine {
        hub: &hub,
        services: &services,
        folder: folder.path(),
    };
    let (with_api, api) = engine.start_with_api()?;
    let other = engine.start("orchestrator", 1)?;
    let worker = engine.start("worker", 0)?;
    let mut redis = services.redis()?;
    make(args.rollouts, &engine, &api)?;
    drop(worker);
    pause(Duration::from_secs(args.settle_s));

    let processes = [with_api.id(), other.id()];
    let before = (redis.commands()?, processes.map(ticks_of));
    pause(Duration::from_secs(args.measure_s));
    let after = (redis.commands()?, processes.map(ticks_of));
    let seconds = args.measure_s as f64;
    let cores = before.1.into_iter().zip(after.1);
    let cores = cores.map(|(before, after)| (after - before) / TICKS / seconds);

    let log = folder.path().join("orchestrator.log");
    let theirs = args.rollouts - driving(&log)?;
    drop(other);
    let killed = Instant::now();
    while driving(&log)? < args.rollouts {
        ensure!(killed.elapsed() < TIMEOUT, "rollouts are not taken over");
        pause(POLL_INTERVAL);
    }
    let takeover_s = killed.elapsed().as_secs_f64();

    let lines = std::fs::read_to_string(&log)?.lines().count();
    services.stop_redis()?;
    pause(Duration::from_secs(args.away_s));
    services.start_redis()?;
    pause(Duration::from_secs(args.away_s));
    let outage_lines = std::fs::read_to_string(&log)?.lines().count() - lines;
    Ok(Figures {
        redis_commands_per_second: (after.0 - before.0) as f64 / seconds,
        cores: cores.collect(),
        taken_over: theirs,
        takeover_s,
        outage_lines,
    })
}

/// Returns the number of rollouts taken up by an orchestrator.
fn driving(log: &Path) -> Result<usize> {
    let log = std::fs::read_to_string(log)?;
    Ok(log.lines().filter(|line| line.contains("driving")).count())
}

/// Returns the CPU time of a process so far, in ticks.
fn ticks_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let times = fields.split(' ').skip(11).take(2);
    times.filter_map(|ticks| ticks.parse::<f64>().ok()).sum()
}

/// Creates rollouts, and makes each rollout idle.
fn make(rollouts: usize, engine: &Engine<'_>, api: &str) -> Result<()> {
    eprintln!("{rollouts} rollouts");
    let today = SystemTime::UNIX_EPOCH.elapsed()?.as_secs() / 86_400 + 3;
    let later = DAYS[(today as usize + 3) % DAYS.len()];
    in_threads(STARTS_AT_ONCE, rollouts, |number| {
        let mut spec = json!({
            "name": format!("idle-{number}"),
            "target": { "all": true },
            "message": { "body": { "text": "hello" } },
        });
        match number % 3 {
            0 => {
                spec["schedule"] =
                    json!({ "windows": [{ "days": [later], "from": "00:00", "for": "1h" }] });
            }
            _ => {
                spec["stages"] =
                    json!([{ "name": "first", "percent": "50%", "gate": { "approval": {} } }]);
            }
        }
        post(api, "/api/v1/rollouts", &spec)
    })?;
    let started_at = Instant::now();
    let awaiting = rollouts - rollouts.div_ceil(3);
    loop {
        let output = engine.command(&["--json", "status"]).output()?;
        let status: Value = serde_json::from_slice(&output.stdout).context("the status")?;
        let rows = status["rollouts"].as_array().context("its rollouts")?;
        let waits = |row: &&Value| {
            row["waits_for"]
                .as_str()
                .is_some_and(|it| it.contains("approval"))
        };
        let planned = rows.iter().filter(|row| row["phase"] == "running").count();
        if planned == rollouts && rows.iter().filter(waits).count() == awaiting {
            break;
        }
        ensure!(
            started_at.elapsed() < TIMEOUT,
            "rollouts do not come to a rest: {status}"
        );
        pause(Duration::from_secs(2));
    }
    in_threads(STOPS_AT_ONCE, rollouts, |number| match number % 3 {
        2 => post(
            api,
            &format!("/api/v1/rollouts/idle-{number}/pause"),
            &json!({}),
        ),
        _ => Ok(()),
    })
}

fn in_threads(
    at_once: usize,
    many: usize,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    number if number < many => work(number)?,
                    _ => return Ok(()),
                }
            }
        };
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut ended = threads
            .into_iter()
            .map(|it| it.join().expect("a thread that asks"));
        ended.try_for_each(|ended| ended)
    })
}
