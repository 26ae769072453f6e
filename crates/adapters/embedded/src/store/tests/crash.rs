//! A power cut at any instant: answered writes are present, unanswered writes are whole or absent,
//! and all sums are right.

use std::sync::Arc;

use twincast_core::batch::Lease;
use twincast_core::ids::BatchId;
use twincast_core::outcome::{Outcome, OutcomeList};
use twincast_core::plan::Batch;
use twincast_core::ports::{Batches as _, Report, Rollouts as _};
use twincast_core::rollout::{Adding, Event, PlanId, Rollout};
use twincast_testkit::ManualClock;
use twincast_testkit::build::{TTL, accepted, after, batch, hub, leased, name, plan_of};
use twincast_testkit::conformance::run;

use super::sim::{Dice, SimDisk};
use crate::EmbeddedStore;

const BATCHES: u32 = 3;
const DEVICES: u32 = 300;
const SEEDS: u64 = 200;

/// The knowledge of the caller.
#[derive(Default)]
struct Known {
    /// The newest stored record.
    record: Option<Rollout>,
    /// The last requested change.
    change: Option<Rollout>,
    /// The number of stored batches.
    added: u32,
    /// The outcomes of each batch, before and after the last record.
    outcomes: Vec<(OutcomeList, OutcomeList)>,
}

impl Known {
    async fn set(&mut self, store: &EmbeddedStore, next: Rollout) -> Option<Rollout> {
        self.change = Some(next.clone());
        let done = match self.record.as_ref().map(Rollout::revision) {
            None => store.create(&next).await.map(|_| ()),
            Some(from) => store.save(&next, from).await,
        };
        done.ok()?;
        self.record = Some(next.clone());
        Some(next)
    }

    /// Plans twice, and works on the batches. `None` after a power cut.
    async fn work(&mut self, store: &EmbeddedStore, dice: &mut Dice) -> Option<()> {
        let first = self.set(store, accepted("r")).await?;
        let first = self
            .set(store, after(&first, Event::PlanningStarted))
            .await?;
        let given_up = vec![batch(0, 900), batch(7, 30)];
        store
            .add_batches(&name("r"), Adding::Plan(PlanId(1)), given_up)
            .await
            .ok()?;
        let second = self
            .set(store, after(&first, Event::PlanningStarted))
            .await?;
        for id in 0..BATCHES {
            let added = vec![batch(id, DEVICES)];
            store
                .add_batches(&name("r"), Adding::Plan(PlanId(2)), added)
                .await
                .ok()?;
            self.added += 1;
            let pending = OutcomeList::pending(DEVICES as usize);
            self.outcomes.push((pending.clone(), pending));
        }
        let planned = all_batches();
        self.set(store, after(&second, plan_of(&planned))).await?;
        let mut leases = Vec::new();
        for id in 0..BATCHES {
            leases.push(leased(store, &name("r"), id, "w").await);
        }
        let workers = leases.iter().zip(&mut self.outcomes).map(|(lease, known)| {
            let dice = Dice(dice.below(u64::MAX));
            record(store, lease, known, dice)
        });
        let mut all = Some(());
        for worked in futures::future::join_all(workers).await {
            all = all.and(worked);
        }
        all
    }
}

fn all_batches() -> Vec<Batch> {
    (0..BATCHES).map(|id| batch(id, DEVICES)).collect()
}

async fn record(
    store: &EmbeddedStore,
    lease: &Lease,
    (known, requested): &mut (OutcomeList, OutcomeList),
    mut dice: Dice,
) -> Option<()> {
    for _ in 0..8 {
        let reports: Vec<_> = (0..=dice.below(60))
            .map(|_| Report {
                index: dice.below(DEVICES.into()) as u32,
                outcome: Outcome::ALL[dice.below(14) as usize],
                code: 1,
            })
            .collect();
        for report in &reports {
            requested.merge(report.index as usize, report.outcome);
        }
        store.record(lease, &reports, TTL).await.ok()?;
        known.clone_from(requested);
    }
    Some(())
}

async fn check(store: &EmbeddedStore, known: &Known) {
    let r = name("r");
    let record = store.rollout(&r).await.unwrap();
    let allowed = [&known.record, &known.change];
    assert!(allowed.contains(&&record), "{record:?} of {allowed:?}");
    if record.is_none() {
        return;
    }
    store.verify(&r).await.unwrap();
    for id in 0..known.added {
        let work = store.load(&r, BatchId(id)).await.unwrap();
        assert_eq!(work.batch, batch(id, DEVICES));
        let (sure, requested) = &known.outcomes[id as usize];
        assert!(
            [sure, requested].contains(&&work.outcomes),
            "batch {id} has neither the acknowledged nor the requested outcomes"
        );
    }
}

/// Continues after the interruption, with the same calls.
async fn finish(store: &EmbeddedStore) {
    let r = name("r");
    let mut rollout = match store.rollout(&r).await.unwrap() {
        Some(rollout) => rollout,
        None => {
            store.create(&accepted("r")).await.unwrap();
            accepted("r")
        }
    };
    if rollout.plan.is_none() {
        let from = rollout.revision();
        rollout = after(&rollout, Event::PlanningStarted);
        store.save(&rollout, from).await.unwrap();
        for id in 0..BATCHES {
            let added = vec![batch(id, DEVICES)];
            let added = store
                .add_batches(&r, Adding::Plan(rollout.plan_id), added)
                .await;
            added.unwrap();
        }
        let planned = after(&rollout, plan_of(&all_batches()));
        store.save(&planned, rollout.revision()).await.unwrap();
    }
    for status in store
        .open_batches(&r, &hub("a"), twincast_testkit::build::ALL_STAGES, 9)
        .await
        .unwrap()
    {
        let lease = leased(store, &r, status.header.id.0, "w2").await;
        let reports: Vec<_> = (0..DEVICES)
            .map(|index| twincast_testkit::build::report(index, Outcome::Enqueued))
            .collect();
        store.record(&lease, &reports, TTL).await.unwrap();
    }
    store.verify(&r).await.unwrap();
    let tallies = store.tallies(&r).await.unwrap();
    assert_eq!(tallies[0].counts.settled(), u64::from(BATCHES * DEVICES));
}

#[test]
fn power_cut_loses_no_answered_write() {
    let clock = Arc::new(ManualClock::default());
    let disk = SimDisk::default();
    drop(disk.open(clock.clone()).unwrap());
    let created = disk.operations();
    run(async {
        let store = disk.open(clock.clone()).unwrap();
        let worked = Known::default().work(&store, &mut Dice(0)).await;
        worked.expect("all operations succeed without a power cut");
    });
    let operations = disk.operations() - created;
    assert!(
        operations > 100,
        "{operations} operations are too few to cut"
    );

    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let disk = SimDisk::default();
        // A new state gets the final name only when complete, so the creation is not tested with a
        // power cut.
        drop(disk.open(clock.clone()).unwrap());
        disk.set_fuse(dice.below(operations));
        run(async {
            let mut known = Known::default();
            if let Ok(store) = disk.open(clock.clone()) {
                known.work(&store, &mut dice).await;
            }
            disk.power_on(&mut dice);
            let store = disk.open(clock.clone());
            let store = store.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            check(&store, &known).await;
            finish(&store).await;
        });
    }
}
