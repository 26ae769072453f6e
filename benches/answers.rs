//! The cost of counting the answers of a whole fleet, and of reading the answers of failed devices:
//! queries, and seconds within the query quota of a small and a large hub.
//!
//! ```text
//! cargo bench --bench answers -- [--devices 1000000] [--json]
//! ```
//!
//! First, a fleet with a failure rate of 0.1 % answers a rollout of `twincast run`, on a hub
//! without limits. Then the benchmark repeats the queries of an orchestrator, each time within the
//! quota of another hub.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::ports::Hub as _;
use twincast_core::query::PropertyName;
use twincast_emulator::{Fleet, HubConfig, RunningHub};
use twincast_hub_adapter::IotHub;
use twincast_iothub::{ClientOptions, ConnectionString, Credentials, Roots};

use common::Machine;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 1_000_000)]
    devices: u32,
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
    hub: String,
    applied: u64,
    failed: u64,
    /// Queries, and seconds, to count all answers.
    counting: (u64, f64),
    /// Queries, and seconds, to read the answers of the failed devices.
    reading: (u64, f64),
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        args.devices = 2_000;
    }
    let folder = common::folder()?;
    let machine = Machine::probe(folder.path())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let hub = runtime.block_on(start(args.devices))?;
    let rollout = roll_out(&hub, folder.path())?;
    let mut all = Vec::new();
    for (tier, units) in [(Tier::S1, 1), (Tier::S3, 10)] {
        let limits = HubLimits::of(tier, units, 1.0);
        let figures = ask(&hub, limits.queries_per_minute);
        all.push(Figures {
            hub: format!("{tier} with {units} units"),
            ..runtime.block_on(figures)?
        });
    }
    if args.json {
        println!(
            "{}",
            json!({ "machine": machine, "rollout": rollout, "hubs": all })
        );
        return Ok(());
    }
    println!(
        "{} cores ({}), {} devices; the rollout itself asked {} queries\n",
        machine.cores, machine.cpu, args.devices, rollout
    );
    println!(
        "{:<20} {:>10} {:>8} {:>9} {:>10} {:>9} {:>10}",
        "hub", "applied", "failed", "counting", "s", "reading", "s"
    );
    for Figures {
        hub,
        applied,
        failed,
        counting,
        reading,
    } in all
    {
        println!(
            "{hub:<20} {applied:>10} {failed:>8} {:>9} {:>10.2} {:>9} {:>10.2}",
            counting.0, counting.1, reading.0, reading.1
        );
    }
    Ok(())
}

async fn start(devices: u32) -> Result<RunningHub> {
    let fleet = format!(
        "groups: [{{count: {devices}, id: 'fridge-{{index:07}}', tags: {{type: fridge}}, \
         behaviour: {{latency: 1ms..50ms, answers: {{after: 10ms..2s, fails: 0.1%, error: 'disk_full: 3 MB are missing'}}}}}}]"
    );
    let config = HubConfig {
        unlimited: true,
        ..HubConfig::with_fleet(Fleet::from_yaml(&fleet)?)
    };
    Ok(twincast_emulator::start(config).await?)
}

/// Rolls out to all devices. Returns the number of queries, including the queries of the plan.
fn roll_out(hub: &RunningHub, folder: &Path) -> Result<u64> {
    fs::write(folder.join("ca.pem"), hub.ca_pem())?;
    fs::write(folder.join("string"), hub.connection_string())?;
    let config = format!(
        "[hubs.emulator]\nconnection_string_file = \"string\"\nca_file = \"ca.pem\"\nunlimited = true\nquery_lag = \"0s\"\n\
         address = \"127.0.0.1\"\namqp_port = {}\nhttps_port = {}\n",
        hub.amqp_addr().port(),
        hub.https_addr().port()
    );
    fs::write(folder.join("twincast.toml"), config)?;
    let spec = "{name: answers, target: {all: true}, message: {body: {text: x}, properties: {kind: update}, ttl: 5m}}";
    fs::write(folder.join("spec.yaml"), spec)?;
    let ran = Command::new(env!("CARGO_BIN_EXE_twincast"))
        .current_dir(folder)
        .args(["--config", "twincast.toml", "--json", "run", "spec.yaml"])
        .output()
        .context("cannot run the rollout")?;
    let summary: Value = serde_json::from_slice(&ran.stdout)
        .with_context(|| String::from_utf8_lossy(&ran.stderr).into_owned())?;
    ensure!(
        summary["by_class"]["silent"] == 0,
        "not all have answered: {}",
        summary["by_class"]
    );
    Ok(hub.hub().summary().query_pages)
}

async fn ask(hub: &RunningHub, queries_per_minute: Option<f64>) -> Result<Figures> {
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.amqp.port = Some(hub.amqp_addr().port());
    options.https.port = Some(hub.https_addr().port());
    let connection: ConnectionString = hub.connection_string().parse()?;
    let client = IotHub::new(
        connection.address(),
        Credentials::SharedAccess(connection.clone().into()),
        options,
        queries_per_minute,
    )?;
    let property = PropertyName::default();
    let pages = || hub.hub().summary().query_pages;

    let (began, before) = (Instant::now(), pages());
    let counted = client
        .count_states(&property.answers("answers."), &property)
        .await?;
    let counting = (pages() - before, began.elapsed().as_secs_f64());
    let counted: BTreeMap<_, _> = counted.into_iter().collect();
    let of = |state: &str| counted.get(state).copied().unwrap_or(0);

    let (began, before) = (Instant::now(), pages());
    let condition = property.answers_in("answers.", &["failed"]);
    let mut failures = client.answers(&condition, &property);
    let mut read = 0;
    while let Some(page) = failures.next().await {
        read += page?.len() as u64;
    }
    ensure!(read == of("failed"), "{read} failures were read");
    Ok(Figures {
        hub: String::new(),
        applied: of("applied"),
        failed: read,
        counting,
        reading: (pages() - before, began.elapsed().as_secs_f64()),
    })
}
