//! Measures how many outcomes a second the store records durably, and the disk space of a device.
//!
//! `cargo run --release -p twincast-embedded --example record_rate [devices] [workers] [window]`
//!
//! The budget: 40,000 outcomes a second from four workers in windows of 250, on less than a core.

use std::sync::Arc;
use std::time::{Duration, Instant};

use twincast_core::ids::{BatchId, DeviceId, Holder, HubHost, HubName, RolloutName, StageIndex};
use twincast_core::outcome::Outcome;
use twincast_core::plan::{Batch, BatchHeader, Checksum, DeviceList, PlanSummary, TagGroup};
use twincast_core::ports::{Batches as _, Clock as _, LeaseRequest, Part, Report, Rollouts as _};
use twincast_core::rollout::{Adding, Event, PlanId, Rollout};
use twincast_core::spec::RolloutSpec;
use twincast_core::time::Timestamp;
use twincast_embedded::{EmbeddedStore, SystemClock};

type Done = Result<(), Box<dyn std::error::Error + Send + Sync>>;

const BATCH: u32 = 10_000;
const TTL: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Done {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| -> Result<u32, std::num::ParseIntError> {
        arguments.next().map_or(Ok(default), |text| text.parse())
    };
    let (devices, workers, window) = (number(1_000_000)?, number(4)?, number(250)?);
    let dir = std::env::temp_dir().join(format!("twincast-record-rate-{}", std::process::id()));
    let result = measure(&dir, devices, workers, window).await;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn measure(dir: &std::path::Path, devices: u32, workers: u32, window: u32) -> Done {
    let store = Arc::new(EmbeddedStore::open(dir, Arc::new(SystemClock::start()))?);
    let name = RolloutName::new("bench")?;
    let file = dir.join("state.redb");

    let started_at = Instant::now();
    let batches = plan(&store, devices).await?;
    say(&format!(
        "planned {devices} devices in {batches} batches: {:.2?}, {:.1} bytes a device",
        started_at.elapsed(),
        bytes_each(&file, devices)?
    ));

    let (started_at, cpu) = (Instant::now(), cpu_seconds());
    let tasks: Vec<_> = (0..workers)
        .map(|worker| {
            let (store, name) = (Arc::clone(&store), name.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                for batch in (worker..batches).step_by(workers as usize) {
                    work(&store, &name, BatchId(batch), window, &mut times).await?;
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let elapsed = started_at.elapsed();
    times.sort_unstable();
    say(&format!(
        "recorded them in {} windows of {window} by {workers} workers: {elapsed:.2?}, \
         {:.0} outcomes/s, {:.0} records/s, half within {:.2?}, 99 % within {:.2?}, {:.1} s of CPU",
        times.len(),
        f64::from(devices) / elapsed.as_secs_f64(),
        times.len() as f64 / elapsed.as_secs_f64(),
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        cpu_seconds() - cpu,
    ));
    say(&format!(
        "the file then has {:.1} bytes a device",
        bytes_each(&file, devices)?
    ));

    let started_at = Instant::now();
    store.verify(&name).await?;
    say(&format!("recounted in {:.2?}", started_at.elapsed()));
    store.close().await;
    let started_at = Instant::now();
    drop(EmbeddedStore::open(dir, Arc::new(SystemClock::start()))?);
    say(&format!(
        "opened and checked in {:.2?}, {} KiB of memory at the most",
        started_at.elapsed(),
        peak_kib()
    ));
    Ok(())
}

async fn plan(
    store: &EmbeddedStore,
    devices: u32,
) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
    let text = "{name: bench, target: {all: true}, message: {body: {text: hi}}}";
    let spec = RolloutSpec::read("bench", text)?;
    let mut rollout = Rollout::accepted(spec, Default::default(), Timestamp(0));
    store.create(&rollout).await?;
    rollout = step(store, rollout, Event::PlanningStarted).await?;
    let batches = devices.div_ceil(BATCH);
    let mut checksum = Checksum::default();
    for batch in 0..batches {
        let first = batch * BATCH;
        let list = list(first..devices.min(first + BATCH))?;
        let batch = Batch {
            header: BatchHeader {
                id: BatchId(batch),
                hub: HubName::new("hub")?,
                host: HubHost::new("hub")?,
                stage: StageIndex(0),
                group: TagGroup::default(),
                further_groups: Vec::new(),
                devices: list.len() as u32,
                sort_key: Default::default(),
                budgets: Vec::new(),
            },
            devices: list,
        };
        checksum = store
            .add_batches(&rollout.spec.name, Adding::Plan(PlanId(1)), vec![batch])
            .await?;
    }
    let plan = PlanSummary {
        devices: devices.into(),
        batches,
        digest: String::new(),
        checksum,
        hubs: vec![],
        stages: vec![],
        excluded: vec![],
        repeated: 0,
        malformed_rows: Default::default(),
        unknown_zones: Default::default(),
    };
    step(store, rollout, Event::PlanCompleted { plan }).await?;
    Ok(batches)
}

/// Creates ids of 20 characters that do not compress better than real ids.
fn list(numbers: std::ops::Range<u32>) -> Result<DeviceList, twincast_core::ids::InvalidName> {
    let mut list = DeviceList::default();
    for number in numbers {
        let mixed = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        list.push(&DeviceId::new(format!("dev-{mixed:016x}"))?);
    }
    Ok(list)
}

async fn step(
    store: &EmbeddedStore,
    rollout: Rollout,
    event: Event,
) -> Result<Rollout, Box<dyn std::error::Error + Send + Sync>> {
    let next = rollout.after(event, Timestamp(1))?.ok_or("no change")?;
    store.save(&next, rollout.revision()).await?;
    Ok(next)
}

async fn work(
    store: &EmbeddedStore,
    name: &RolloutName,
    batch: BatchId,
    window: u32,
    times: &mut Vec<Duration>,
) -> Done {
    let request = LeaseRequest {
        rollout: name.clone(),
        batch,
        holder: Holder::new(format!("worker-{batch}"))?,
        ttl: TTL,
    };
    let clock = SystemClock::start();
    let Ok(mut leased) = store.lease_for_work(&request, Part::WithDevices).await? else {
        return Err("the batch is not free".into());
    };
    let devices = leased.header().devices;
    for first in (0..devices).step_by(window as usize) {
        let reports: Vec<_> = (first..devices.min(first + window))
            .map(|index| Report {
                index,
                outcome: Outcome::Enqueued,
                code: 0,
            })
            .collect();
        let started_at = Instant::now();
        store
            .record_leased(&mut leased, &reports, TTL, clock.now())
            .await?;
        times.push(started_at.elapsed());
    }
    store.release_leased(&mut leased, clock.now()).await?;
    Ok(())
}

fn bytes_each(file: &std::path::Path, devices: u32) -> std::io::Result<f64> {
    Ok(file.metadata()?.len() as f64 / f64::from(devices))
}

/// Returns the seconds of CPU used by this process, where the system provides the number.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    let ticks: f64 = fields
        .skip(12)
        .take(2)
        .filter_map(|n| n.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

/// Returns the peak memory of this process, where the system provides the number.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

#[expect(clippy::print_stdout, reason = "this is what the example is for")]
fn say(line: &str) {
    println!("{line}");
}
