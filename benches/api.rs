//! The effect of the HTTP API on the send rate: a large rollout is sent, alternately with and
//! without load on the API.
//!
//! ```text
//! cargo bench --bench api -- [--devices 1000000] [--rate 50000/min] [--pairs 10] [--turn-s 10] [--workers 2] [--json]
//! ```
//!
//! Without `--rate`, the rollout is sent as fast as the machine allows: the devices must last for
//! all turns, and all processes compete for the cores. The load is a set of concurrent, repeated
//! requests: a list of rollouts (a hundred small rollouts beside the large rollout), the large
//! rollout in full, and all its devices as CSV. Turns with and without load are taken in pairs, in
//! reverse order in every second pair. A ratio of 1 means no loss.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use common::engine::{ALL_DEVICES, BY_REGION, Engine, Services};
use common::turns::{self, Comparison, pause};
use common::{Hub, Machine};

/// The interval between two requests of an open page; [`PAGES`] pages are open.
const PAGE_ASKS_EVERY: Duration = Duration::from_secs(1);
const PAGES: usize = 5;
/// The number of ended rollouts in the list.
const OTHERS: usize = 100;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 1_000_000)]
    devices: usize,
    /// The rollout's rate.
    #[arg(long)]
    rate: Option<String>,
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 10)]
    turn_s: u64,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    test: bool,
}

/// The numbers of answered requests.
#[derive(Debug, Default)]
struct RequestCounts {
    pages: AtomicU64,
    exported: AtomicU64,
}

#[derive(Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    sends: Comparison,
    /// Per second, during the turns with load.
    pages: f64,
    exported_devices: f64,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        args.devices = 20_000;
        (args.pairs, args.turn_s) = (1, 1);
        args.rate = Some("100000/min".to_owned());
    }
    let machine = Machine::probe(common::folder()?.path())?;
    let figures = measure(&args)?;
    if args.json {
        println!("{}", json!({ "machine": machine, "figures": figures }));
        return Ok(());
    }
    let rate = args.rate.as_deref().unwrap_or("no limit");
    println!(
        "{} cores ({}), {} workers, {} devices, {rate}, {} pairs of {} s\n",
        machine.cores, machine.cpu, args.workers, args.devices, args.pairs, args.turn_s
    );
    figures.sends.print("asked");
    println!("{:<32} {:>12.1}", "pages a second", figures.pages);
    println!(
        "{:<32} {:>12.0}",
        "devices exported a second", figures.exported_devices
    );
    Ok(())
}

fn measure(args: &Args) -> Result<Figures> {
    let folder = common::folder()?;
    let services = Services::start(folder.path())?;
    let hub = Hub::start(folder.path(), args.devices)?;
    let engine = Engine {
        hub: &hub,
        services: &services,
        folder: folder.path(),
    };
    let (_orchestrator, api) = engine.start_with_api()?;
    let _workers: Vec<_> = (0..args.workers)
        .map(|n| engine.start("worker", n))
        .collect::<Result<_>>()?;
    for n in 0..OTHERS {
        let name = format!("other-{n}");
        let device = format!("devices: [{}]", common::device_id(n));
        engine.submit(&name, &device, BY_REGION)?;
        engine.until(&name, |phase| phase == "succeeded")?;
    }
    let rate = args.rate.as_ref();
    let rate = rate.map_or_else(String::new, |rate| format!("rate: {rate}"));
    engine.submit("bench", ALL_DEVICES, &format!("{BY_REGION}\n{rate}"))?;
    engine.until("bench", |phase| phase != "accepted" && phase != "planning")?;

    let mut counter = hub.counter()?;
    let asking = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let request_counts = RequestCounts::default();
    let turn = Duration::from_secs(args.turn_s);
    std::thread::scope(|scope| {
        let visitors: Vec<_> = (0..=PAGES)
            .map(|n| {
                let (api, asking, over, request_counts) = (&api, &asking, &over, &request_counts);
                scope.spawn(move || visit(n == PAGES, api, asking, over, request_counts))
            })
            .collect();
        let measured = turns::compare(args.pairs, turn, &mut counter, &asking);
        over.store(true, Ordering::Relaxed);
        for visitor in visitors {
            visitor.join().expect("a visitor")?;
        }
        let seconds = turn.as_secs_f64() * args.pairs as f64;
        let per_second = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / seconds;
        Ok(Figures {
            sends: measured?,
            pages: per_second(&request_counts.pages),
            exported_devices: per_second(&request_counts.exported),
        })
    })
}

/// Sends requests repeatedly while `asking` is set: an export right after the end of the previous
/// export, the requests of a page once a second.
fn visit(
    exports: bool,
    api: &str,
    asking: &AtomicBool,
    over: &AtomicBool,
    request_counts: &RequestCounts,
) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        if !asking.load(Ordering::Relaxed) {
            pause(Duration::from_millis(10));
        } else if exports {
            let goes_on = || asking.load(Ordering::Relaxed);
            let lines = get(api, "/api/v1/rollouts/bench/export?format=csv", goes_on)?;
            request_counts.exported.fetch_add(lines, Ordering::Relaxed);
        } else {
            get(api, "/api/v1/rollouts?limit=100", || true)?;
            get(api, "/api/v1/rollouts/bench", || true)?;
            request_counts.pages.fetch_add(1, Ordering::Relaxed);
            pause(PAGE_ASKS_EVERY);
        }
    }
    Ok(())
}

/// Reads an answer while `goes_on` returns true. Returns the number of lines read.
fn get(api: &str, path: &str, goes_on: impl Fn() -> bool) -> Result<u64> {
    let mut stream = TcpStream::connect(api)?;
    // Without tokens, an API answers only this machine, addressed by a local name.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = BufReader::with_capacity(1 << 16, stream);
    let mut first = String::new();
    answer.read_line(&mut first)?;
    ensure!(first.contains(" 200 "), "{path}: {first}");
    let mut lines = 0;
    let mut piece = vec![0; 1 << 16];
    while goes_on() {
        let read = answer.read(&mut piece)?;
        if read == 0 {
            break;
        }
        lines += piece[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    Ok(lines)
}
