//! The parts of the engine with work per device, measured alone: `cargo bench --bench core`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twincast_core::ids::{Attempt, BatchId, DeviceId, RolloutId, RolloutName, StageIndex};
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome, OutcomeList};
use twincast_core::permits::SendLimiter;
use twincast_core::plan::{BatchLimits, Batcher, DeviceList, TagGroup};
use twincast_core::time::Timestamp;

const DEVICES: usize = 10_000;
const WINDOW: usize = 256;

fn devices() -> Vec<DeviceId> {
    let id = |n| DeviceId::new(format!("fridge-{n:07}")).expect("a valid id");
    (0..DEVICES).map(id).collect()
}

fn planning(c: &mut Criterion) {
    let mut group = c.benchmark_group("planning");
    group.throughput(Throughput::Elements(DEVICES as u64));
    let ids = devices();
    // As in a rollout by region: the devices of four tag groups, mixed.
    let regions = ["eu-north", "eu-south", "us-east", "us-west"];
    let groups =
        regions.map(|region| TagGroup(vec![("region".to_owned(), Some(region.to_owned()))]));
    group.bench_function("batches of 10,000 devices in 4 groups", |b| {
        b.iter(|| {
            let mut batcher = Batcher::new(BatchLimits::for_rate(Some(5_000.0)));
            let mut filled = 0;
            for (group, id) in groups.iter().cycle().zip(&ids) {
                filled += batcher.push(StageIndex(0), group.clone(), id, None).len();
            }
            filled + batcher.finish().len()
        });
    });
    let list = ids.iter().fold(DeviceList::default(), |mut list, id| {
        list.push(id);
        list
    });
    group.bench_function("a stored manifest of 10,000 devices read", |b| {
        b.iter(|| DeviceList::from_text(black_box(list.as_text())));
    });
    group.finish();
}

fn outcomes(c: &mut Criterion) {
    let mut group = c.benchmark_group("outcomes");
    group.throughput(Throughput::Elements(WINDOW as u64));
    let stored = OutcomeList::pending(DEVICES);
    group.bench_function("a window of 256 recorded in a batch of 10,000", |b| {
        b.iter(|| {
            // The work of a record besides the disk: read the stored list, merge, count.
            let mut list = OutcomeList::from_bytes(black_box(stored.as_bytes()), DEVICES)
                .expect("it was just made");
            let mut counts = Counts::pending(DEVICES as u64);
            for index in 0..WINDOW {
                let (old, new) = list.merge(index * 39, Outcome::Enqueued);
                counts.shift(old, new);
            }
            (list, counts)
        });
    });
    group.finish();
}

fn one_send(c: &mut Criterion) {
    let mut group = c.benchmark_group("one send");
    group.throughput(Throughput::Elements(1));
    let id = MessageId {
        rollout: RolloutName::new("firmware-1.4.2").expect("a valid name"),
        id: RolloutId(1_234_567_890_123),
        stage: StageIndex(1),
        batch: BatchId(1_234),
        index: 5_678,
        attempt: Attempt(1),
    };
    group.bench_function("message id", |b| b.iter(|| black_box(&id).to_string()));
    let mut limiter = SendLimiter::default();
    let mut now = 1_700_000_000_000;
    group.bench_function("a block of permits", |b| {
        b.iter(|| {
            now += 100;
            limiter.take(Timestamp(now), 256, black_box(5_000.0))
        });
    });
    group.finish();
}

criterion_group!(benches, planning, outcomes, one_send);
criterion_main!(benches);
