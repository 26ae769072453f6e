//! Random sequences of calls, compared with [`MemoryStore`] step by step. Failing sequences are
//! shrunk.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use twincast_core::batch::Lease;
use twincast_core::ids::{Attempt, BatchId, RolloutId};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{LeaseReply, Report, Skip, Store, StoreError};
use twincast_core::rollout::{Adding, Attribution, Event, PlanId, ScanId};

use super::Subject;
use crate::MemoryStore;
use crate::build::{
    TTL, abort_requested, batch_on, continuous, hub, lease_request, name, pause_requested,
    plan_completed, retry_of, scan_completed, stored_checksum,
};

const BATCHES: u32 = 4;

/// A step of a sequence.
#[derive(Debug, Clone)]
enum Call {
    Create,
    Change(Change),
    Add {
        by: Adding,
        batches: Vec<u32>,
    },
    Lease {
        batch: u32,
        by: u8,
    },
    Record {
        lease: usize,
        reports: Vec<Report>,
    },
    Merge {
        batch: u32,
        attempt: u16,
        reports: Vec<Report>,
    },
    Reopen {
        batch: u32,
        attempt: u16,
        outcomes: Vec<Outcome>,
    },
    Release {
        lease: usize,
    },
    Skip {
        batch: u32,
        which: Skip,
    },
    Wait {
        seconds: u64,
    },
}

/// A change of the record. A stale change is saved with a wrong version.
#[derive(Debug, Clone)]
struct Change {
    event: Event,
    stale: bool,
}

fn call() -> impl Strategy<Value = Call> {
    let can: Vec<_> = Outcome::ALL
        .into_iter()
        .filter(|outcome| outcome.can_be_retried())
        .collect();
    let outcomes = prop::sample::subsequence(can.clone(), 0..=can.len());
    let event = prop_oneof![
        3 => Just(Event::PlanningStarted),
        4 => Just(plan_completed(9)),
        2 => Just(pause_requested()),
        3 => Just(Event::ResumeRequested { attribution: Attribution::default() }),
        1 => Just(abort_requested()),
        3 => outcomes.clone().prop_map(|outcomes| retry_of(&outcomes)),
        3 => Just(Event::RetryPrepared),
        1 => Just(Event::AllSettled { counts: Counts::default() }),
        2 => Just(Event::ScanStarted),
        1 => Just(scan_completed(0, 0)),
    ];
    let by = prop_oneof![
        3 => (1..4u32).prop_map(|plan| Adding::Plan(PlanId(plan))),
        1 => (1..4u32).prop_map(|scan| Adding::Scan(ScanId(scan))),
    ];
    let left = prop::sample::subsequence((0..12u32).collect::<Vec<_>>(), 0..=12);
    let skip = prop_oneof![
        Just(Skip::Remaining),
        (1..4u32, left).prop_map(|(scan, devices)| Skip::Departed {
            scan: ScanId(scan),
            devices
        }),
    ];
    let change =
        (event, prop::bool::weighted(0.1)).prop_map(|(event, stale)| Change { event, stale });
    let report = (
        0..12u32,
        prop::sample::select(Outcome::ALL.to_vec()),
        0..3u32,
    )
        .prop_map(|(index, outcome, code)| Report {
            index,
            outcome,
            code,
        });
    prop_oneof![
        1 => Just(Call::Create),
        8 => change.prop_map(Call::Change),
        6 => (by, prop::collection::vec(0..BATCHES, 0..4))
            .prop_map(|(by, batches)| Call::Add { by, batches }),
        6 => (0..BATCHES, 0..3u8).prop_map(|(batch, by)| Call::Lease { batch, by }),
        9 => (0..6usize, prop::collection::vec(report.clone(), 0..8))
            .prop_map(|(lease, reports)| Call::Record { lease, reports }),
        4 => (0..BATCHES, 1..4u16, prop::collection::vec(report, 0..8))
            .prop_map(|(batch, attempt, reports)| Call::Merge { batch, attempt, reports }),
        6 => (0..BATCHES, 2..4u16, outcomes)
            .prop_map(|(batch, attempt, outcomes)| Call::Reopen { batch, attempt, outcomes }),
        2 => (0..6usize).prop_map(|lease| Call::Release { lease }),
        3 => (0..BATCHES, skip).prop_map(|(batch, which)| Call::Skip { batch, which }),
        1 => (1..40u64).prop_map(|seconds| Call::Wait { seconds }),
    ]
}

/// A store, and the leases held by a caller.
struct Side {
    store: Arc<dyn Store>,
    leases: Vec<Lease>,
}

impl Side {
    /// Makes the call. Returns the answer as text, without details left to the store's choice.
    async fn make(&mut self, call: &Call) -> String {
        let store = &*self.store;
        match call {
            Call::Create => answer(store.create(&continuous("r")).await),
            Call::Change(change) => self.change(change).await,
            Call::Add { by, batches } => {
                let batches = batches.iter().map(|id| batch(*id)).collect();
                answer(store.add_batches(&name("r"), *by, batches).await)
            }
            Call::Lease { batch, by } => {
                let request = lease_request(&name("r"), *batch, &format!("w{by}"));
                let reply = store.lease(&request).await;
                if let Ok(LeaseReply::Granted(lease)) = reply {
                    self.leases.push(lease);
                    return "granted".into();
                }
                answer(reply)
            }
            Call::Record { lease, reports } => match self.lease(*lease) {
                Some(lease) => {
                    let devices = batch(lease.batch.0).header.devices;
                    let reports: Vec<_> = reports.iter().map(|r| within(*r, devices)).collect();
                    answer(store.record(lease, &reports, TTL).await)
                }
                None => String::new(),
            },
            Call::Merge {
                batch: id,
                attempt,
                reports,
            } => {
                let devices = batch(*id).header.devices;
                let reports: Vec<_> = reports.iter().map(|r| within(*r, devices)).collect();
                let (id, attempt) = (BatchId(*id), Attempt(*attempt));
                answer(
                    store
                        .merge(&name("r"), RolloutId::default(), id, attempt, &reports)
                        .await,
                )
            }
            Call::Release { lease } => match self.lease(*lease) {
                Some(lease) => answer(store.release(lease).await),
                None => String::new(),
            },
            Call::Skip { batch, which } => {
                answer(store.skip(&name("r"), BatchId(*batch), which).await)
            }
            Call::Reopen {
                batch,
                attempt,
                outcomes,
            } => {
                let (id, attempt) = (BatchId(*batch), Attempt(*attempt));
                answer(store.reopen(&name("r"), id, attempt, outcomes).await)
            }
            Call::Wait { .. } => String::new(),
        }
    }

    /// Returns a lease, counted back from the newest lease. The newest lease most likely still
    /// holds.
    fn lease(&self, back: usize) -> Option<&Lease> {
        self.leases.iter().rev().nth(back)
    }

    async fn change(&self, change: &Change) -> String {
        let Ok(Some(mut rollout)) = self.store.rollout(&name("r")).await else {
            return String::new();
        };
        let mut from = rollout.revision();
        if change.stale {
            from.version.0 += 1;
        }
        let mut event = change.event.clone();
        match &mut event {
            Event::PlanCompleted { plan } => {
                plan.checksum = stored_checksum(&*self.store, &rollout).await;
            }
            Event::ScanCompleted { found } => {
                found.checksum = stored_checksum(&*self.store, &rollout).await;
            }
            _ => {}
        }
        match rollout.after(event, rollout.changed_at) {
            Ok(Some(next)) => rollout = next,
            _ => return "not possible".into(),
        }
        answer(self.store.save(&rollout, from).await)
    }

    /// Returns everything readable as text.
    async fn seen(&self) -> String {
        let (store, r) = (&*self.store, name("r"));
        let mut text = answer(store.rollout(&r).await);
        text += &answer(store.revision(&r).await);
        let all = store.batches(&r, None, 9).await;
        for status in all.iter().flatten() {
            text += &answer(store.load(&r, status.header.id).await);
        }
        text += &answer(all);
        text += &answer(store.batches(&r, Some(BatchId(0)), 2).await);
        text += &answer(
            store
                .open_batches(&r, &hub("a"), crate::build::ALL_STAGES, 1)
                .await,
        );
        text += &answer(
            store
                .open_batches(&r, &hub("b"), crate::build::ALL_STAGES, 9)
                .await,
        );
        let mut tallies = store.tallies(&r).await;
        if let Ok(tallies) = &mut tallies {
            tallies.sort_by_key(|tally| (tally.stage, tally.hub.clone()));
        }
        text += &answer(tallies);
        text
    }
}

/// Moves half of the reports to devices of the batch, and the other half beyond the batch.
fn within(mut report: Report, devices: u32) -> Report {
    if report.index > 5 {
        report.index %= devices;
    } else {
        report.index += devices;
    }
    report
}

fn batch(id: u32) -> twincast_core::plan::Batch {
    batch_on(id, ["a", "b"][id as usize % 2], (id / 2) as u16, id * 3 + 1)
}

fn answer<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Ok(value) => format!("{value:?}\n"),
        Err(StoreError::Superseded { .. }) => "superseded\n".into(),
        Err(StoreError::NotFound { .. }) => "not found\n".into(),
        Err(StoreError::Regressed { .. }) => "regressed\n".into(),
        Err(error) => format!("{error:?}\n"),
    }
}

/// Makes the same calls on the store and on the model. Every answer, and everything readable after
/// every call, must be equal.
///
/// # Panics
/// On a difference, with the shortest failing sequence of calls.
pub fn agrees_with_the_model(make: impl AsyncFn() -> Subject) {
    let config = Config {
        cases: 60,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let sequences = (
        prop::bool::weighted(0.7),
        prop::collection::vec(call(), 1..60),
    );
    let checked = TestRunner::new(config).run(&sequences, |(runs, calls)| {
        let mut difference = None;
        super::run(async { difference = differ(make().await, runs, &calls).await });
        match difference {
            None => Ok(()),
            Some(difference) => Err(TestCaseError::fail(difference)),
        }
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

async fn differ(subject: Subject, runs: bool, calls: &[Call]) -> Option<String> {
    let model = MemoryStore::new(Arc::new(subject.clock.clone()));
    let mut sides = [
        Arc::clone(&subject.store),
        Arc::new(model) as Arc<dyn Store>,
    ]
    .map(|store| Side {
        store,
        leases: Vec::new(),
    });
    let change = |event| {
        Call::Change(Change {
            event,
            stale: false,
        })
    };
    let mut begin = vec![Call::Create, change(Event::PlanningStarted)];
    if runs {
        begin.push(Call::Add {
            by: Adding::Plan(PlanId(1)),
            batches: (0..BATCHES).collect(),
        });
        begin.push(change(plan_completed(9)));
    }
    for call in begin.iter().chain(calls) {
        if let Call::Wait { seconds } = call {
            subject.clock.advance(Duration::from_secs(*seconds));
        }
        let [store, model] = &mut sides;
        let (got, expected) = (store.make(call).await, model.make(call).await);
        if got != expected {
            return Some(format!("{call:?} gave\n{got}instead of\n{expected}"));
        }
        let (got, expected) = (store.seen().await, model.seen().await);
        if got != expected {
            return Some(format!(
                "after {call:?} there is\n{got}instead of\n{expected}"
            ));
        }
    }
    None
}
