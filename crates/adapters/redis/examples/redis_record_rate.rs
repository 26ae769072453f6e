//! Measures how many outcomes a second Redis accepts, and for how long each kind of call occupies
//! Redis.
//!
//! `cargo run --release -p twincast-redis --example redis_record_rate [devices] [workers] [window]
//! [url]`
//!
//! Without a URL the example starts a Redis of its own, with an append-only file synced every
//! second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use twincast_core::ids::{Attempt, BatchId, RolloutId};
use twincast_core::outcome::Outcome;
use twincast_core::permits::PermitRequest;
use twincast_core::plan::Batch;
use twincast_core::ports::{Batches as _, Clock as _, Limiter as _, Part, Skip, Store};
use twincast_core::rollout::{Adding, PlanId};
use twincast_redis::{RedisStore, Settings};
use twincast_testkit::RuntimeClock;
use twincast_testkit::build::{
    TTL, abort_requested, apply, batch, device, hub, lease_request, name, plan_completed, planning,
    report,
};
use twincast_testkit::services::Redis;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const BATCH: u32 = 10_000;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| -> Result<u32, std::num::ParseIntError> {
        arguments.next().map_or(Ok(default), |text| text.parse())
    };
    let (devices, workers, window) = (number(1_000_000)?, number(4)?, number(250)?);
    let url = match arguments.next() {
        Some(url) => url,
        None => Redis::shared().await.url(),
    };
    let settings = Settings {
        prefix: format!("record-rate-{}:", std::process::id()),
        ..Settings::new(url)
    };
    let store = Arc::new(RedisStore::connect(&settings).await?);

    let started_at = Instant::now();
    let rollout = planning(&*store, "r").await;
    let batches = devices.div_ceil(BATCH);
    for id in 0..batches {
        let batch = random_batch(id, BATCH.min(devices - id * BATCH));
        store
            .add_batches(&name("r"), Adding::Plan(PlanId(1)), vec![batch])
            .await?;
    }
    let rollout = apply(&*store, &rollout, plan_completed(devices.into())).await;
    say(&format!(
        "planned {devices} devices: {:.2?}",
        started_at.elapsed()
    ));

    // The last batch is kept, to be skipped.
    let tasks = (0..workers).map(|worker| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut times = Vec::new();
            for id in (worker..batches - 1).step_by(workers as usize) {
                work(&*store, BatchId(id), window, &mut times).await?;
            }
            Ok::<_, Failure>(times)
        })
    });
    let started_at = Instant::now();
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await??);
    }
    rate(
        &format!("records of {window} by {workers} workers"),
        &mut times,
        started_at,
    );

    let mut times = Vec::new();
    let started_at = Instant::now();
    for round in 0..2_000u32 {
        let reports: Vec<_> = (0..100)
            .map(|n| report((round * 7919 + n * 97) % BATCH, Outcome::Delivered))
            .collect();
        let sent_at = Instant::now();
        store
            .merge(
                &name("r"),
                RolloutId::default(),
                BatchId(round % (batches - 1)),
                Attempt::FIRST,
                &reports,
            )
            .await?;
        times.push(sent_at.elapsed());
    }
    rate("merges of 100 scattered reports", &mut times, started_at);

    let mut times = Vec::new();
    let permits = PermitRequest {
        hub: hub("a"),
        max_permits: 82,
        per_minute: 49_500.0,
        rollout: name("r"),
        weight: 1,
        limit: None,
    };
    let started_at = Instant::now();
    for _ in 0..5_000 {
        let sent_at = Instant::now();
        store.take_permits(&permits).await?;
        times.push(sent_at.elapsed());
    }
    rate("blocks of permits", &mut times, started_at);

    let started_at = Instant::now();
    store.load(&name("r"), BatchId(batches - 1)).await?;
    say(&format!(
        "loaded a batch of {BATCH}: {:.2?}",
        started_at.elapsed()
    ));
    apply(&*store, &rollout, abort_requested()).await;
    let started_at = Instant::now();
    store
        .skip(&name("r"), BatchId(batches - 1), &Skip::Remaining)
        .await?;
    say(&format!(
        "skipped a batch of {BATCH}: {:.2?}",
        started_at.elapsed()
    ));
    Ok(())
}

async fn work(
    store: &dyn Store,
    id: BatchId,
    window: u32,
    times: &mut Vec<Duration>,
) -> Result<(), Failure> {
    let clock = RuntimeClock::default();
    let request = lease_request(&name("r"), id.0, &format!("w{id}"));
    let taken = store.lease_for_work(&request, Part::WithDevices).await?;
    let mut leased = taken.map_err(|reply| format!("batch {id}: {reply:?}"))?;
    let devices = leased.header().devices;
    for first in (0..devices).step_by(window as usize) {
        let window = first..devices.min(first + window);
        let reports: Vec<_> = window.map(|i| report(i, Outcome::Enqueued)).collect();
        let sent_at = Instant::now();
        store
            .record_leased(&mut leased, &reports, TTL, clock.now())
            .await?;
        times.push(sent_at.elapsed());
    }
    store.release_leased(&mut leased, clock.now()).await?;
    Ok(())
}

/// Creates a batch with ids of 20 characters that do not compress better than real ids.
fn random_batch(id: u32, devices: u32) -> Batch {
    let mut batch = batch(id, 0);
    for index in 0..devices {
        let mixed = u64::from(id * BATCH + index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        batch.devices.push(&device(&format!("dev-{mixed:016x}")));
    }
    batch.header.devices = devices;
    batch
}

fn rate(what: &str, times: &mut [Duration], started_at: Instant) {
    let elapsed = started_at.elapsed();
    times.sort_unstable();
    let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let each = times.len() as f64 / elapsed.as_secs_f64();
    say(&format!(
        "{what}: {each:.0}/s, half within {half:.2?}, 99 % within {most:.2?}"
    ));
}

#[expect(clippy::print_stdout, reason = "this is what the example is for")]
fn say(line: &str) {
    println!("{line}");
}
