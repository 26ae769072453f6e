//! Conformance cases about new attempts at a batch's devices, and about feedback on older attempts.

use twincast_core::batch::Reopened;
use twincast_core::ids::{Attempt, BatchId, RolloutId};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{LeaseReply, Report, Store, StoreError, Tally};
use twincast_core::rollout::{Attribution, Directive, Event, Rollout};

use super::Subject;
use crate::assert_refused;
use crate::build::{
    ALL_STAGES, TTL, apply, batch, hub, lease_request, leased, name, pause_requested, report,
    retry_of, running,
};

const FAILURES: [Outcome; 3] = [Outcome::Refused, Outcome::Rejected, Outcome::Expired];

async fn outcomes(store: &dyn Store, batch: u32) -> Vec<Outcome> {
    let work = store.load(&name("r"), BatchId(batch)).await.unwrap();
    work.outcomes.iter().collect()
}

async fn attempt(store: &dyn Store, batch: u32) -> Attempt {
    let work = store.load(&name("r"), BatchId(batch)).await.unwrap();
    work.attempt
}

async fn counts(store: &dyn Store) -> Counts {
    Tally::sum(&store.tallies(&name("r")).await.unwrap())
}

async fn reopen(
    store: &dyn Store,
    batch: u32,
    attempt: u16,
    outcomes: &[Outcome],
) -> Result<Reopened, StoreError> {
    let (batch, attempt) = (BatchId(batch), Attempt(attempt));
    store.reopen(&name("r"), batch, attempt, outcomes).await
}

async fn merge(store: &dyn Store, of: u16, index: u32, outcome: Outcome) -> Outcome {
    let reports = [report(index, outcome)];
    store
        .merge(
            &name("r"),
            RolloutId::default(),
            BatchId(0),
            Attempt(of),
            &reports,
        )
        .await
        .unwrap();
    outcomes(store, 0).await[index as usize]
}

/// Records `outcomes` for the devices of a batch, in order.
async fn recorded(store: &dyn Store, batch: u32, outcomes: &[Outcome]) {
    let lease = leased(store, &name("r"), batch, "a").await;
    let reports: Vec<_> = (0..)
        .zip(outcomes)
        .map(|(index, outcome)| Report {
            code: if *outcome == Outcome::Refused { 400 } else { 0 },
            ..report(index, *outcome)
        })
        .collect();
    store.record(&lease, &reports, TTL).await.unwrap();
    store.release(&lease).await.unwrap();
}

async fn open(store: &dyn Store) -> Vec<u32> {
    let (r, on) = (name("r"), hub("a"));
    let open = store.open_batches(&r, &on, ALL_STAGES, 9).await.unwrap();
    open.iter().map(|batch| batch.header.id.0).collect()
}

/// Creates a rollout with a batch of every kind of final outcome, and a delivered batch.
async fn ended(store: &dyn Store) -> Rollout {
    let rollout = running(store, "r", vec![batch(0, 7), batch(1, 2)]).await;
    let ends = [
        Outcome::Delivered,
        Outcome::Refused,
        Outcome::Enqueued,
        Outcome::Rejected,
        Outcome::NotFound,
        Outcome::Expired,
        Outcome::Refused,
    ];
    recorded(store, 0, &ends).await;
    recorded(store, 1, &[Outcome::Delivered; 2]).await;
    assert!(open(store).await.is_empty());
    rollout
}

/// Exactly the devices with the chosen outcomes become pending. The batch can be leased again after
/// the preparation of all batches.
pub async fn a_retry_makes_the_chosen_devices_pending(subject: Subject) {
    let store = &*subject.store;
    let rollout = ended(store).await;
    let rollout = apply(store, &rollout, retry_of(&FAILURES)).await;
    let reopened = reopen(store, 0, 2, &FAILURES).await.unwrap();
    assert_eq!(reopened, Reopened::Devices(4));
    let expected = [
        Outcome::Delivered,
        Outcome::Pending,
        Outcome::Enqueued,
        Outcome::Pending,
        Outcome::NotFound,
        Outcome::Pending,
        Outcome::Pending,
    ];
    assert_eq!(outcomes(store, 0).await, expected);
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    assert_eq!((work.attempt, work.codes), (Attempt(2), vec![]));
    let sum = counts(store).await;
    assert_eq!((sum.total(), sum.unsettled()), (9, 4));
    assert_eq!(sum.get(Outcome::Refused) + sum.get(Outcome::Rejected), 0);
    assert_eq!(open(store).await, [0]);

    let none = reopen(store, 1, 2, &FAILURES).await.unwrap();
    assert_eq!(none, Reopened::Devices(0));
    assert_eq!(
        attempt(store, 1).await,
        Attempt(1),
        "the batch keeps its attempt"
    );

    let lease = store.lease(&lease_request(&name("r"), 0, "a")).await;
    assert_eq!(
        lease.unwrap(),
        LeaseReply::NotWanted,
        "the retry is not prepared"
    );
    apply(store, &rollout, Event::RetryPrepared).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let refused = [Report {
        code: 500,
        ..report(1, Outcome::Refused)
    }];
    let sent = [3, 5, 6].map(|index| report(index, Outcome::Enqueued));
    store.record(&lease, &refused, TTL).await.unwrap();
    let directive = store.record(&lease, &sent, TTL).await.unwrap();
    assert_eq!(directive, Directive::Continue);
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    assert_eq!(work.codes, [(1, 500)], "the new attempt's code");
    assert!(open(store).await.is_empty());
    assert_eq!(counts(store).await.get(Outcome::Enqueued), 4);
}

/// A driver that repeats the preparation after a crash changes nothing.
pub async fn a_repeated_retry_preparation_has_no_effect(subject: Subject) {
    let store = &*subject.store;
    let rollout = ended(store).await;
    let rollout = apply(store, &rollout, retry_of(&FAILURES)).await;
    for expected in [4, 0, 0] {
        let reopened = reopen(store, 0, 2, &FAILURES).await.unwrap();
        assert_eq!(reopened, Reopened::Devices(expected));
    }
    let rollout = apply(store, &rollout, Event::RetryPrepared).await;
    recorded(store, 0, &[Outcome::Rejected; 7]).await;
    apply(store, &rollout, retry_of(&FAILURES)).await;
    let again = reopen(store, 0, 3, &FAILURES).await.unwrap();
    // The delivered device stays delivered, whatever is reported later.
    assert_eq!(again, Reopened::Devices(6));
    assert_eq!(attempt(store, 0).await, Attempt(3));
}

/// Devices delivered, skipped or not yet sent are never lowered, even if their outcomes are named.
pub async fn only_retriable_outcomes_are_reopened(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 5)]).await;
    let ends = [
        Outcome::Delivered,
        Outcome::Applied,
        Outcome::Skipped,
        Outcome::Attempting,
    ];
    recorded(store, 0, &ends).await;
    apply(store, &rollout, retry_of(&FAILURES)).await;
    let reopened = reopen(store, 0, 2, &Outcome::ALL).await.unwrap();
    assert_eq!(reopened, Reopened::Devices(0));
    assert_eq!(outcomes(store, 0).await[..4], ends);
    assert_eq!(attempt(store, 0).await, Attempt(1));
}

/// Outcomes are lowered only for a rollout preparing exactly this attempt.
pub async fn only_a_rollout_preparing_a_retry_is_reopened(subject: Subject) {
    let store = &*subject.store;
    let rollout = ended(store).await;
    let mut expected = outcomes(store, 0).await;
    assert_refused!(reopen(store, 0, 2, &FAILURES).await, Superseded);
    let rollout = apply(store, &rollout, retry_of(&FAILURES)).await;
    assert_refused!(reopen(store, 0, 1, &FAILURES).await, Superseded);
    assert_refused!(reopen(store, 0, 3, &FAILURES).await, Superseded);
    assert_refused!(reopen(store, 9, 2, &FAILURES).await, NotFound);
    let nobody = name("s");
    let refused = store.reopen(&nobody, BatchId(0), Attempt(2), &FAILURES);
    assert_refused!(refused.await, NotFound);
    let rollout = apply(store, &rollout, pause_requested()).await;
    assert_refused!(reopen(store, 0, 2, &FAILURES).await, Superseded);
    assert_eq!(outcomes(store, 0).await, expected);

    let rollout = apply(
        store,
        &rollout,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    )
    .await;
    let reopened = reopen(store, 0, 2, &FAILURES).await.unwrap();
    assert_eq!(reopened, Reopened::Devices(4));
    apply(store, &rollout, Event::RetryPrepared).await;
    expected = outcomes(store, 0).await;
    assert_refused!(reopen(store, 0, 2, &FAILURES).await, Superseded);
    assert_eq!(outcomes(store, 0).await, expected);
}

/// A retry waits for the holder of a batch, and fences a lapsed holder. Late records of a lapsed
/// holder do not count for the new attempt.
pub async fn a_retry_waits_for_the_holder_and_fences_a_lapsed_lease(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 3)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let reports = [report(0, Outcome::Rejected)];
    store.record(&lease, &reports, TTL).await.unwrap();
    let rollout = apply(store, &rollout, retry_of(&FAILURES)).await;
    let directive = store.record(&lease, &[], TTL).await.unwrap();
    assert_eq!(
        directive,
        Directive::Stop,
        "the holder must release the batch"
    );
    match reopen(store, 0, 2, &FAILURES).await.unwrap() {
        Reopened::Held(held) => assert_eq!(held.by, lease.holder),
        other => panic!("the batch is not held: {other:?}"),
    }
    assert_eq!(outcomes(store, 0).await[0], Outcome::Rejected);

    subject.clock.advance(TTL);
    let reopened = reopen(store, 0, 2, &FAILURES).await.unwrap();
    assert_eq!(reopened, Reopened::Devices(1));
    let late = [report(0, Outcome::Refused), report(1, Outcome::Enqueued)];
    assert_refused!(store.record(&lease, &late, TTL).await, Superseded);
    assert_eq!(outcomes(store, 0).await, [Outcome::Pending; 3]);
    apply(store, &rollout, Event::RetryPrepared).await;
    assert_refused!(store.record(&lease, &late, TTL).await, Superseded);
    leased(store, &name("r"), 0, "b").await;
}

/// A late failure of an older attempt does not count for the new attempt. A late delivery always
/// counts.
pub async fn late_failures_do_not_count_for_a_new_attempt(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 4)]).await;
    let ends = [
        Outcome::Rejected,
        Outcome::Rejected,
        Outcome::Enqueued,
        Outcome::Enqueued,
    ];
    recorded(store, 0, &ends).await;
    let rollout = apply(store, &rollout, retry_of(&FAILURES)).await;
    reopen(store, 0, 2, &FAILURES).await.unwrap();
    use Outcome as O;
    assert_eq!(merge(store, 1, 0, O::Rejected).await, O::Pending);
    assert_eq!(merge(store, 1, 1, O::Delivered).await, O::Delivered);
    assert_eq!(merge(store, 1, 2, O::Expired).await, O::Expired);
    assert_eq!(merge(store, 2, 0, O::Undeliverable).await, O::Undeliverable);
    let sum = counts(store).await;
    assert_eq!((sum.total(), sum.unsettled()), (4, 0));
    assert!(open(store).await.is_empty(), "nothing is left to send");

    let rollout = apply(store, &rollout, Event::RetryPrepared).await;
    let silent = [O::Enqueued];
    apply(store, &rollout, retry_of(&silent)).await;
    let reopened = reopen(store, 0, 3, &silent).await.unwrap();
    assert_eq!(reopened, Reopened::Devices(1));
    assert_eq!(merge(store, 3, 3, O::Enqueued).await, O::Enqueued);
    assert_eq!(merge(store, 1, 3, O::Expired).await, O::Enqueued);
    assert_eq!(merge(store, 3, 3, O::Expired).await, O::Expired);
    assert_eq!(merge(store, 1, 3, O::Delivered).await, O::Delivered);
}
