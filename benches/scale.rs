//! The cost of ten times the devices: time, memory and disk of `twincast run` on a small and a
//! large fleet.
//!
//! ```text
//! cargo bench --bench scale -- [--small 100000] [--large 1000000] [--json]
//! ```
//!
//! The program as shipped, and an emulator without limits in a separate process, share this
//! machine's cores. Memory must not grow with the fleet: the benchmark compares the peak memory of
//! `run`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use common::{Hub, Machine};

/// The interval between two readings. The hub counts all devices at every reading, so the interval
/// is not too short.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 100_000)]
    small: usize,
    #[arg(long, default_value_t = 1_000_000)]
    large: usize,
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
    devices: usize,
    /// The time from the start to the first message.
    planning_s: f64,
    sends_per_second: f64,
    total_s: f64,
    peak_mib: f64,
    store_bytes_per_device: f64,
    hub_peak_mib: f64,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        (args.small, args.large) = (100, 1_000);
    }
    let machine = Machine::probe(common::folder()?.path())?;
    let small = measure(args.small)?;
    let large = measure(args.large)?;
    let ratio = large.peak_mib / small.peak_mib;
    if args.json {
        println!(
            "{}",
            json!({ "machine": machine, "small": small, "large": large, "peak_ratio": ratio })
        );
        return Ok(());
    }
    println!(
        "{} cores ({}); making 4 KiB durable takes {:.2} ms\n",
        machine.cores, machine.cpu, machine.sync_ms
    );
    let line = |name: &str, figure: fn(&Figures) -> f64, digits: usize| {
        println!(
            "{name:<34} {:>12.digits$} {:>12.digits$}",
            figure(&small),
            figure(&large)
        );
    };
    line("devices", |f| f.devices as f64, 0);
    line("start and planning, s", |f| f.planning_s, 1);
    line("sends a second", |f| f.sends_per_second, 0);
    line("from start to end, s", |f| f.total_s, 1);
    line("most memory of run, MiB", |f| f.peak_mib, 1);
    line("store, bytes a device", |f| f.store_bytes_per_device, 1);
    line("most memory of the hub, MiB", |f| f.hub_peak_mib, 0);
    println!("\nmemory, large to small: {ratio:.2} (the goal is at most 1.5)");
    Ok(())
}

fn measure(devices: usize) -> Result<Figures> {
    eprintln!("{devices} devices");
    let folder = common::folder()?;
    let hub = Hub::start(folder.path(), devices)?;
    let state = folder.path().join("state");
    let measurement = common::run_twincast(&hub, &state, devices, &[], POLL_INTERVAL)?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(&state)? {
        bytes += entry?.metadata()?.len();
    }
    let sending = measurement.sending + measurement.after;
    let hub_peak = common::peak_kib_of(hub.process.id()).context("the hub's memory")?;
    Ok(Figures {
        devices,
        planning_s: measurement.before.as_secs_f64(),
        sends_per_second: devices as f64 / sending.as_secs_f64(),
        total_s: (measurement.before + sending).as_secs_f64(),
        peak_mib: measurement.peak_kib as f64 / 1024.0,
        store_bytes_per_device: bytes as f64 / devices as f64,
        hub_peak_mib: hub_peak as f64 / 1024.0,
    })
}
