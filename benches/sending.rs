//! The send rate, side by side: the bare protocol library, `twincast run`, and a script with
//! Azure's own SDK, as replaced by Twincast.
//!
//! ```text
//! cargo bench --bench sending -- [--messages 200000] [--rounds 5] [--json]
//! ```
//!
//! Every turn has a fresh emulator without limits in a separate process. All turns are measured in
//! the same way, from outside: from the first to the last message accepted by the hub. `twincast
//! run` is the program as shipped, with up to slots × window = 1024 messages in flight
//! (`--in-flight 1024` gives the bare library as many). The speed of `twincast run` counts until
//! the end of the process, when every outcome is durable and summed up. The other senders do not
//! have these costs. Planning happens before and is shown separately.
//!
//! Turns are interleaved, so that all senders see the same machine; medians of the rounds are
//! compared. Speeds of a single machine at a single moment say little, the ratios more.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

#[path = "common/baseline.rs"]
mod baseline;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use baseline::Baseline;
use common::{Hub, Machine, Measurement, Process, Rounds};

/// The interval between two readings of the hub's counter; a send phase takes some seconds.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug, Parser)]
struct Args {
    /// Messages of a turn of the library and of twincast.
    #[arg(long, default_value_t = 200_000)]
    messages: usize,
    /// Messages of a turn of the SDK's script, which is slower.
    #[arg(long, default_value_t = 5_000)]
    script_messages: usize,
    /// Messages in flight over the bare library.
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// How often each has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// The folder where `npm ci` was run.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node-sdk"))]
    sdk: PathBuf,
    /// Leave the SDK's script out.
    #[arg(long)]
    without_script: bool,
    /// Settings for twincast, as in its environment.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    test: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    #[command(hide = true)]
    Baseline(Baseline),
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if let Some(Role::Baseline(arguments)) = &args.role {
        return baseline::send(arguments);
    }
    if common::is_smoke_test() {
        args.messages = 500;
        args.script_messages = 20;
        args.rounds = 1;
        // Other tests prove the script; a machine without Node can run the rest.
        args.without_script |= !has_sdk(&args.sdk);
    }
    ensure!(
        args.without_script || has_sdk(&args.sdk),
        "azure-iothub is not installed: run `npm ci` in {}, or leave it out with --without-script",
        args.sdk.display()
    );
    let machine = Machine::probe(common::folder()?.path())?;
    let mut results = TurnResults::default();
    args.rounds = args.rounds.clamp(1, 50);
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        results.baseline.push(send_baseline(&args)?);
        results.twincast.push(send_twincast(&args)?);
        if !args.without_script {
            results.script.push(send_by_script(&args)?);
        }
    }
    let figures = Figures::of(&args, &results);
    if args.json {
        println!("{}", json!({ "machine": machine, "figures": figures }));
    } else {
        figures.print(&machine);
    }
    Ok(())
}

fn has_sdk(folder: &Path) -> bool {
    folder.join("node_modules/azure-iothub").is_dir()
}

fn send_baseline(args: &Args) -> Result<Measurement> {
    let folder = common::folder()?;
    let hub = Hub::start(folder.path(), args.messages)?;
    let arguments = Baseline::to(&hub, args.messages, args.in_flight);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("baseline").args(arguments.arguments());
    let mut sender = Process::start("the bare sender", &mut command)?;
    common::measure(&hub, &mut sender, args.messages, POLL_INTERVAL).context("the bare library")
}

fn send_twincast(args: &Args) -> Result<Measurement> {
    let folder = common::folder()?;
    let hub = Hub::start(folder.path(), args.messages)?;
    let settings: Vec<_> = args.set.iter().filter_map(|s| s.split_once('=')).collect();
    let state = folder.path().join("state");
    common::run_twincast(&hub, &state, args.messages, &settings, POLL_INTERVAL)
}

fn send_by_script(args: &Args) -> Result<Measurement> {
    let folder = common::folder()?;
    let hub = Hub::start(folder.path(), args.script_messages)?;
    let mut command = Command::new("node");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/sending.mjs"))
        .arg(&args.sdk)
        .arg(&hub.connection_string)
        .arg(args.script_messages.to_string())
        .arg(common::body())
        .arg("bench")
        .env("NODE_EXTRA_CA_CERTS", hub.ca_file());
    let mut sender = Process::start("the SDK's script", &mut command)?;
    common::measure(&hub, &mut sender, args.script_messages, POLL_INTERVAL)
        .context("the SDK's script")
}

#[derive(Default)]
struct TurnResults {
    baseline: Vec<Measurement>,
    twincast: Vec<Measurement>,
    script: Vec<Measurement>,
}

#[derive(Debug, Serialize)]
struct Figures {
    messages: usize,
    script_messages: usize,
    in_flight: usize,
    rounds: usize,
    /// Messages per second.
    baseline: Rounds,
    twincast: Rounds,
    script: Option<Rounds>,
    /// Ratios within the same round.
    twincast_to_baseline: Rounds,
    twincast_to_script: Option<Rounds>,
    /// Microseconds of CPU per message, in the sender and in the hub.
    baseline_cpu_us: (f64, f64),
    twincast_cpu_us: (f64, f64),
    /// Seconds of `twincast run` before its first and after its last message.
    before_s: Rounds,
    after_s: Rounds,
    peak_mib: Rounds,
}

impl Figures {
    fn of(args: &Args, results: &TurnResults) -> Self {
        let per_second = |messages: usize, time: Duration| messages as f64 / time.as_secs_f64();
        let baseline: Vec<_> = results
            .baseline
            .iter()
            .map(|measurement| per_second(args.messages, measurement.sending))
            .collect();
        let twincast: Vec<_> = results
            .twincast
            .iter()
            .map(|measurement| per_second(args.messages, measurement.sending + measurement.after))
            .collect();
        let script: Vec<_> = results
            .script
            .iter()
            .map(|measurement| per_second(args.script_messages, measurement.sending))
            .collect();
        let ratio = |to: &[f64]| Rounds::of(twincast.iter().zip(to).map(|(a, b)| a / b));
        let cpu_us = |measurements: &[Measurement]| {
            let each = |cpu: f64| cpu * 1e6 / args.messages as f64;
            (
                Rounds::of(measurements.iter().map(|measurement| each(measurement.cpu))).median,
                Rounds::of(
                    measurements
                        .iter()
                        .map(|measurement| each(measurement.hub_cpu)),
                )
                .median,
            )
        };
        let of_twincast =
            |figure: fn(&Measurement) -> f64| Rounds::of(results.twincast.iter().map(figure));
        Self {
            messages: args.messages,
            script_messages: args.script_messages,
            in_flight: args.in_flight,
            rounds: results.baseline.len(),
            twincast_to_baseline: ratio(&baseline),
            twincast_to_script: (!script.is_empty()).then(|| ratio(&script)),
            script: (!script.is_empty()).then(|| Rounds::of(script)),
            baseline: Rounds::of(baseline),
            twincast: Rounds::of(twincast),
            baseline_cpu_us: cpu_us(&results.baseline),
            twincast_cpu_us: cpu_us(&results.twincast),
            before_s: of_twincast(|measurement| measurement.before.as_secs_f64()),
            after_s: of_twincast(|measurement| measurement.after.as_secs_f64()),
            peak_mib: of_twincast(|measurement| measurement.peak_kib as f64 / 1024.0),
        }
    }

    fn print(&self, machine: &Machine) {
        println!(
            "{} cores ({}), shared by sender and hub; making 4 KiB durable takes {:.2} ms",
            machine.cores, machine.cpu, machine.sync_ms
        );
        println!(
            "{} messages a turn, {} by the script; medians of {} interleaved rounds (least to most)\n",
            self.messages, self.script_messages, self.rounds
        );
        let speed = |name: &str, speed: &Rounds| {
            println!(
                "{name:<48} {:>7.0}/s ({:.0} to {:.0})",
                speed.median, speed.least, speed.most
            );
        };
        let library = format!("bare fe2o3-amqp, {} in flight", self.in_flight);
        speed(&library, &self.baseline);
        speed("twincast run, every outcome durable", &self.twincast);
        if let Some(script) = &self.script {
            speed("azure-iothub (Node), each send awaited", script);
        }
        println!();
        let ratio = |name: &str, ratio: &Rounds, goal: f64| {
            println!(
                "{name:<48} {:>7.2}   ({:.2} to {:.2}; the goal is {goal})",
                ratio.median, ratio.least, ratio.most
            );
        };
        ratio("twincast / baseline", &self.twincast_to_baseline, 0.8);
        if let Some(to_script) = &self.twincast_to_script {
            ratio("twincast / Node", to_script, 10.0);
        }
        println!();
        for (name, (sender, hub)) in [
            ("CPU of the baseline and of its hub", self.baseline_cpu_us),
            ("CPU of twincast and of its hub", self.twincast_cpu_us),
        ] {
            println!("{name:<48} {sender:>7.1} and {hub:.1} µs a message");
        }
        println!(
            "{:<48} {:>7.2} s before the first message, {:.2} s after the last",
            "twincast: start and planning, end", self.before_s.median, self.after_s.median
        );
        println!(
            "{:<48} {:>7.0} MiB",
            "twincast: most memory", self.peak_mib.median
        );
    }
}
