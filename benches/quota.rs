//! The part of a hub's quota used by `twincast run`.
//!
//! ```text
//! cargo bench --bench quota -- [--seconds 60] [--rounds 3]
//! ```
//!
//! Every turn has a fresh emulator with a quota, in a separate process, and is measured from the
//! first to the last message accepted by the hub. One per cent of the quota is left for the jitter
//! of the network (ADR 1).

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod common;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use common::{Hub, Rounds};

/// The interval between two readings of the hub's counter.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Tier, units, and the allowed messages per minute.
const QUOTAS: [(&str, &str, f64); 3] = [
    ("S1", "1", 100.0),
    ("S3", "1", 5_000.0),
    ("S3", "10", 50_000.0),
];

#[derive(Debug, Parser)]
struct Args {
    /// For how long each turn sends.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// How often each has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    test: bool,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        (args.seconds, args.rounds) = (2.0, 1);
    }
    for (tier, units, allowed) in QUOTAS {
        let messages = (allowed * args.seconds / 60.0).max(2.0) as usize;
        let used = (0..args.rounds.clamp(1, 50))
            .map(|_| used(tier, units, allowed, messages))
            .collect::<Result<Vec<_>>>()?;
        let used = Rounds::of(used);
        println!(
            "{tier} with {units} units, {allowed} a minute: {:.2} % used ({:.2} to {:.2})",
            used.median, used.least, used.most
        );
    }
    Ok(())
}

/// Returns the used part of the quota, in per cent.
fn used(tier: &str, units: &str, allowed: f64, messages: usize) -> Result<f64> {
    let folder = common::folder()?;
    let limits = ["--tier", tier, "--units", units];
    let hub = Hub::start_with(folder.path(), messages, &limits)?;
    let state = folder.path().join("state");
    let measurement = common::run_twincast(&hub, &state, messages, &[], POLL_INTERVAL)?;
    Ok((messages - 1) as f64 / measurement.sending.as_secs_f64() * 60.0 / allowed * 100.0)
}
