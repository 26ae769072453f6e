//! The memory freed by deleting rollouts, and the effect on the send rate: a large rollout is sent,
//! alternately with and without deletions of other rollouts.
//!
//! ```text
//! cargo bench --bench retention -- [--old 200] [--old-devices 10000] [--devices 1000000] [--rate 100000/min] [--pairs 9]
//! ```
//!
//! The old rollouts are sent, and end. A tenth of the old rollouts is deleted at rest, to measure
//! the freed memory of Redis; the rest is deleted during the turns, evenly. A ratio of 1 means no
//! loss.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use common::engine::{ALL_DEVICES, BY_REGION, Engine, Services, post};
use common::turns::{self, Comparison, pause};
use common::{Hub, Machine};

/// The number of concurrent submissions: each submission waits until it is durable.
const AT_ONCE: usize = 8;
/// The time for Redis to free removed data in the background.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 200)]
    old: usize,
    #[arg(long, default_value_t = 10_000)]
    old_devices: usize,
    #[arg(long, default_value_t = 1_000_000)]
    devices: usize,
    /// The large rollout's rate.
    #[arg(long, default_value = "100000/min")]
    rate: String,
    #[arg(long, default_value_t = 9)]
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

#[derive(Debug, Serialize)]
struct Figures {
    /// Bytes of Redis taken by a rollout, and freed by the rollout's deletion.
    taken: i64,
    given_back: i64,
    deleted_in_turns: usize,
    #[serde(flatten)]
    sends: Comparison,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if common::is_smoke_test() {
        (args.old, args.old_devices, args.devices) = (10, 100, 20_000);
        (args.pairs, args.turn_s) = (1, 1);
    }
    let machine = Machine::probe(common::folder()?.path())?;
    let figures = measure(&args)?;
    if args.json {
        println!("{}", json!({ "machine": machine, "figures": figures }));
        return Ok(());
    }
    println!(
        "{} cores ({}), {} workers, {} rollouts of {} devices, {} pairs of {} s\n",
        machine.cores,
        machine.cpu,
        args.workers,
        args.old,
        args.old_devices,
        args.pairs,
        args.turn_s
    );
    let bytes = |name: &str, bytes: i64| println!("{name:<32} {bytes:>12}");
    bytes("bytes of Redis a rollout", figures.taken);
    bytes("given back by its deletion", figures.given_back);
    println!(
        "{:<32} {:>12}",
        "deleted in the turns", figures.deleted_in_turns
    );
    figures.sends.print("deleting");
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
    let mut redis = services.redis()?;
    let empty = redis.memory()?;
    make_old(&engine, args.old, args.old_devices)?;
    pause(SETTLED_AFTER);
    let full = redis.memory()?;
    let next = AtomicUsize::new(0);
    let at_rest = (args.old / 10).max(1);
    while next.load(Ordering::Relaxed) < at_rest {
        delete(&api, next.fetch_add(1, Ordering::Relaxed))?;
    }
    pause(SETTLED_AFTER);
    let given_back = (full - redis.memory()?) / at_rest as i64;

    engine.submit(
        "bench",
        ALL_DEVICES,
        &format!("{BY_REGION}\nrate: {}", args.rate),
    )?;
    engine.until("bench", |phase| phase != "accepted" && phase != "planning")?;
    let mut counter = hub.counter()?;
    let (deleting, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let turn = Duration::from_secs(args.turn_s);
    let a_turn = ((args.old - at_rest) / args.pairs).max(1);
    let beat = turn / a_turn as u32;
    let sends = std::thread::scope(|scope| {
        let deleter = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let left = next.load(Ordering::Relaxed) < args.old;
                if left && deleting.load(Ordering::Relaxed) {
                    let (api, number) = (&api, next.fetch_add(1, Ordering::Relaxed));
                    // The answer comes when the deletion is durable.
                    scope.spawn(move || {
                        if let Err(error) = delete(api, number) {
                            eprintln!("{error:#}");
                        }
                    });
                    pause(beat);
                } else {
                    pause(Duration::from_millis(10));
                }
            }
            Ok(())
        });
        let measured = turns::compare(args.pairs, turn, &mut counter, &deleting);
        over.store(true, Ordering::Relaxed);
        deleter.join().expect("the deleter")?;
        measured
    })?;
    Ok(Figures {
        taken: (full - empty) / args.old as i64,
        given_back,
        deleted_in_turns: next.load(Ordering::Relaxed) - at_rest,
        sends,
    })
}

fn old(number: usize) -> String {
    format!("old-{number}")
}

/// Rolls out to the first `devices` devices, `many` times, and waits until all these rollouts have
/// ended.
fn make_old(engine: &Engine<'_>, many: usize, devices: usize) -> Result<()> {
    let target = format!("where: \"deviceId < '{}'\"", common::device_id(devices));
    let (next, target) = (AtomicUsize::new(0), &target);
    std::thread::scope(|scope| {
        let submitting: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= many {
                            return Ok(());
                        }
                        let name = old(number);
                        engine.submit(&name, target, BY_REGION)?;
                        // Offline devices have full queues after fifty messages.
                        engine.until(&name, |phase| {
                            ["succeeded", "finished_with_failures"].contains(&phase)
                        })?;
                    }
                })
            })
            .collect();
        for thread in submitting {
            thread.join().expect("a thread that submits")?;
        }
        Ok(())
    })
}

/// Deletes an old rollout, as soon as the rollout's end is published.
fn delete(api: &str, number: usize) -> Result<()> {
    let path = format!("/api/v1/rollouts/{}/delete", old(number));
    post(api, &path, &json!({ "reason": "a benchmark" }))
}
