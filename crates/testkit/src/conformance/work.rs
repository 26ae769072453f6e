//! Conformance cases about leases, records, and their effects.

use std::time::Duration;

use twincast_core::batch::MAX_FAILED_LEASES;
use twincast_core::ids::{Attempt, BatchId, HubName, RolloutId, StageIndex};
use twincast_core::outcome::{Counts, Outcome};
use twincast_core::ports::{Clock, LeaseReply, Report, Skip, Store};
use twincast_core::rollout::{Adding, Attribution, Directive, Event, PlanId};

use super::Subject;
use crate::assert_refused;
use crate::build::{
    TTL, abort_requested, apply, batch, batch_on, hub, lease_request, leased, name,
    pause_requested, plan_completed, planning, report, running, stage_passed, staged,
};

const SECOND: Duration = Duration::from_secs(1);

async fn outcomes(store: &dyn Store, batch: u32) -> Vec<Outcome> {
    let work = store.load(&name("r"), BatchId(batch)).await.unwrap();
    work.outcomes.iter().collect()
}

async fn counts(store: &dyn Store) -> Counts {
    let mut sum = Counts::default();
    for tally in store.tallies(&name("r")).await.unwrap() {
        sum.add(&tally.counts);
    }
    sum
}

/// A batch has a single holder. Another worker gets the holder and the end of the lease. The holder
/// itself may lease again.
pub async fn one_holder_at_a_time(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 1), batch(1, 1)]).await;
    let first = leased(store, &name("r"), 0, "a").await;
    let reply = store.lease(&lease_request(&name("r"), 0, "b")).await;
    let LeaseReply::Held(held) = reply.unwrap() else {
        panic!("the batch has two holders");
    };
    assert_eq!(held.by, first.holder);
    assert_eq!(held.until, subject.clock.now().plus(TTL));
    let shown = store
        .open_batches(&name("r"), &hub("a"), crate::build::ALL_STAGES, 9)
        .await
        .unwrap();
    assert_eq!(shown[0].held.as_ref(), Some(&held));
    assert_eq!(shown[1].held, None);
    leased(store, &name("r"), 1, "b").await;

    let again = leased(store, &name("r"), 0, "a").await;
    assert!(again.epoch > first.epoch);
    assert_refused!(store.record(&first, &[], TTL).await, Superseded);
    assert_eq!(
        store.record(&again, &[], TTL).await.unwrap(),
        Directive::Continue
    );
}

/// A former holder cannot write after another worker has leased the batch.
pub async fn a_lapsed_holder_is_fenced_after_a_new_lease(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 2)]).await;
    let old = leased(store, &name("r"), 0, "a").await;
    subject.clock.advance(TTL);
    let new = leased(store, &name("r"), 0, "b").await;
    assert!(new.epoch > old.epoch);
    let late = [report(0, Outcome::Enqueued)];
    assert_refused!(store.record(&old, &late, TTL).await, Superseded);
    store.release(&old).await.unwrap();
    assert_eq!(outcomes(store, 0).await, [Outcome::Pending; 2]);
    assert_eq!(
        store.record(&new, &late, TTL).await.unwrap(),
        Directive::Continue
    );
}

/// A lapsed lease still records while no other worker has leased the batch: accepting the record
/// loses nothing.
pub async fn a_lapsed_lease_not_taken_over_still_records(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 2)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    subject.clock.advance(TTL * 10);
    let reports = [report(1, Outcome::Enqueued)];
    let directive = store.record(&lease, &reports, TTL).await.unwrap();
    assert_eq!(directive, Directive::Continue);
    assert_eq!(
        outcomes(store, 0).await,
        [Outcome::Pending, Outcome::Enqueued]
    );
    let reply = store.lease(&lease_request(&name("r"), 0, "b")).await;
    assert!(matches!(reply.unwrap(), LeaseReply::Held(_)));
}

/// After [`MAX_FAILED_LEASES`] failed leases, a batch is quarantined until the rollout's record
/// changes. A recorded outcome or a release resets the count.
pub async fn repeated_failed_leases_quarantine_a_batch(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 9)]).await;
    let vanish = async |holders: std::ops::Range<u32>| {
        let mut last = None;
        for n in holders {
            last = Some(leased(store, &name("r"), 0, &format!("w{n}")).await);
            subject.clock.advance(TTL);
        }
        last.expect("a holder")
    };
    let last = vanish(0..MAX_FAILED_LEASES).await;
    let reports = [report(0, Outcome::Enqueued)];
    store.record(&last, &reports, TTL).await.unwrap();
    subject.clock.advance(TTL);
    let last = vanish(10..10 + MAX_FAILED_LEASES - 1).await;
    store.release(&last).await.unwrap();
    vanish(20..20 + MAX_FAILED_LEASES).await;

    for _ in 0..2 {
        let reply = store.lease(&lease_request(&name("r"), 0, "x")).await;
        assert_eq!(reply.unwrap(), LeaseReply::Quarantined);
    }
    let shown = store
        .open_batches(&name("r"), &hub("a"), crate::build::ALL_STAGES, 9)
        .await
        .unwrap();
    assert!(shown[0].quarantined && shown[0].held.is_none());
    assert!(!shown[0].lapsed, "a quarantined batch is not lapsed");

    let rollout = apply(store, &rollout, pause_requested()).await;
    apply(
        store,
        &rollout,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    )
    .await;
    let shown = store
        .open_batches(&name("r"), &hub("a"), crate::build::ALL_STAGES, 9)
        .await
        .unwrap();
    assert!(!shown[0].quarantined);
    leased(store, &name("r"), 0, "y").await;
}

/// Only the holder can release a lease, and the release is permanent.
pub async fn a_released_batch_is_free(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 1)]).await;
    let first = leased(store, &name("r"), 0, "a").await;
    store.release(&first).await.unwrap();
    store.release(&first).await.unwrap();
    let late = [report(0, Outcome::Enqueued)];
    assert_refused!(store.record(&first, &late, TTL).await, Superseded);
    let second = leased(store, &name("r"), 0, "b").await;
    store.release(&first).await.unwrap();
    store.record(&second, &[], TTL).await.unwrap();
    assert_eq!(outcomes(store, 0).await, [Outcome::Pending]);
}

/// Batches are leased only while the rollout runs.
pub async fn leases_are_granted_only_to_a_running_rollout(subject: Subject) {
    let store = &*subject.store;
    let rollout = planning(store, "r").await;
    let added = store
        .add_batches(&name("r"), Adding::Plan(PlanId(1)), vec![batch(0, 1)])
        .await;
    added.unwrap();
    let ask = async || store.lease(&lease_request(&name("r"), 0, "a")).await;
    assert_eq!(ask().await.unwrap(), LeaseReply::NotWanted);
    let rollout = apply(store, &rollout, plan_completed(1)).await;
    assert!(matches!(ask().await.unwrap(), LeaseReply::Granted(_)));
    let rollout = apply(store, &rollout, pause_requested()).await;
    assert_eq!(ask().await.unwrap(), LeaseReply::NotWanted);
    let rollout = apply(
        store,
        &rollout,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    )
    .await;
    assert!(matches!(ask().await.unwrap(), LeaseReply::Granted(_)));
    apply(store, &rollout, abort_requested()).await;
    assert_eq!(ask().await.unwrap(), LeaseReply::NotWanted);
}

/// A finished batch is done, in any phase and with any holder.
pub async fn a_finished_batch_is_done(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 2), batch(1, 1)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let reports = [report(0, Outcome::Enqueued), report(1, Outcome::QueueFull)];
    store.record(&lease, &reports, TTL).await.unwrap();
    let ask = async || store.lease(&lease_request(&name("r"), 0, "b")).await;
    assert_eq!(ask().await.unwrap(), LeaseReply::Done);
    store.release(&lease).await.unwrap();
    assert_eq!(ask().await.unwrap(), LeaseReply::Done);
    apply(store, &rollout, pause_requested()).await;
    assert_eq!(ask().await.unwrap(), LeaseReply::Done);
}

/// Records made twice, late, all at once or separately merge to the same outcomes and the same
/// counts.
pub async fn records_merge_in_any_order(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 5), batch(1, 5)]).await;
    let reports = [
        report(0, Outcome::Enqueued),
        report(0, Outcome::Delivered),
        report(1, Outcome::Attempting),
        report(2, Outcome::Unknown),
        report(4, Outcome::NotFound),
        report(4, Outcome::Enqueued),
        report(0, Outcome::Enqueued),
    ];
    let lease = leased(store, &name("r"), 0, "a").await;
    store.record(&lease, &reports, TTL).await.unwrap();
    store.record(&lease, &reports, TTL).await.unwrap();
    let lease = leased(store, &name("r"), 1, "a").await;
    for report in reports.iter().rev() {
        store.record(&lease, &[*report], TTL).await.unwrap();
    }
    let expected = [
        Outcome::Delivered,
        Outcome::Attempting,
        Outcome::Unknown,
        Outcome::Pending,
        Outcome::Enqueued,
    ];
    assert_eq!(outcomes(store, 0).await, expected);
    assert_eq!(outcomes(store, 1).await, expected);
    let counts = counts(store).await;
    assert_eq!(counts.total(), 10);
    assert!(expected.iter().all(|outcome| counts.get(*outcome) == 2));
}

/// The answer to a record has the directive (continue, stop): a worker learns of a pause or an
/// abort this way.
pub async fn a_record_returns_the_directive(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 9)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let record = async |index| {
        let reports = [report(index, Outcome::Enqueued)];
        let recorded = store.record(&lease, &reports, TTL).await.unwrap();
        let beat = store.record(&lease, &[], TTL).await.unwrap();
        assert_eq!(recorded, beat);
        recorded
    };
    assert_eq!(record(0).await, Directive::Continue);
    let rollout = apply(store, &rollout, pause_requested()).await;
    assert_eq!(record(1).await, Directive::Stop);
    let rollout = apply(
        store,
        &rollout,
        Event::ResumeRequested {
            attribution: Attribution::default(),
        },
    )
    .await;
    assert_eq!(record(2).await, Directive::Continue);
    apply(store, &rollout, abort_requested()).await;
    assert_eq!(record(3).await, Directive::Stop);
    assert_eq!(counts(store).await.get(Outcome::Enqueued), 4);
}

/// A record renews the lease, with and without reports.
pub async fn a_record_renews_the_lease(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 2)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    for reports in [vec![], vec![report(0, Outcome::Enqueued)], vec![]] {
        subject.clock.advance(TTL - SECOND);
        store.record(&lease, &reports, TTL).await.unwrap();
        let reply = store.lease(&lease_request(&name("r"), 0, "b")).await;
        let LeaseReply::Held(held) = reply.unwrap() else {
            panic!("the lease was not renewed");
        };
        assert_eq!(held.until, subject.clock.now().plus(TTL));
    }
    store.record(&lease, &[], SECOND).await.unwrap();
    subject.clock.advance(SECOND);
    leased(store, &name("r"), 0, "b").await;
}

/// A refused record writes nothing, not even the valid reports.
pub async fn a_refused_record_has_no_effect(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let reports = [report(0, Outcome::Enqueued), report(3, Outcome::Enqueued)];
    assert_refused!(store.record(&lease, &reports, TTL).await, NotFound);
    let mut other = lease.clone();
    other.batch = BatchId(1);
    assert_refused!(store.record(&other, &reports, TTL).await, Superseded);
    other.rollout = name("nobody");
    assert_refused!(store.record(&other, &reports, TTL).await, Superseded);
    store.release(&other).await.unwrap();
    assert_eq!(outcomes(store, 0).await, [Outcome::Pending; 3]);
    assert_eq!(counts(store).await, Counts::pending(3));
    store.record(&lease, &[], TTL).await.unwrap();
}

/// A lease of a discarded plan cannot write to the batch with the same number in the new plan.
pub async fn a_lease_of_an_older_planning_attempt_is_fenced(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 2)]).await;
    let old = leased(store, &name("r"), 0, "a").await;
    let mut anew = rollout.clone();
    anew.version.0 += 1;
    anew.plan_id = PlanId(2);
    anew.plan = None;
    anew.precondition = None;
    anew.phase = twincast_core::rollout::Phase::Planning;
    store.save(&anew, rollout.revision()).await.unwrap();
    let reports = [report(0, Outcome::Enqueued)];
    assert_refused!(store.record(&old, &reports, TTL).await, Superseded);

    let added = store
        .add_batches(&name("r"), Adding::Plan(PlanId(2)), vec![batch(0, 2)])
        .await;
    added.unwrap();
    apply(store, &anew, plan_completed(2)).await;
    let new = leased(store, &name("r"), 0, "b").await;
    assert_refused!(store.record(&old, &reports, TTL).await, Superseded);
    store.release(&old).await.unwrap();
    assert_eq!(outcomes(store, 0).await, [Outcome::Pending; 2]);
    store.record(&new, &reports, TTL).await.unwrap();
}

/// A code is kept only for a refused device, and the first code stays.
pub async fn the_first_refusal_code_is_kept(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 5)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let refused = |index, code| Report {
        index,
        outcome: Outcome::Refused,
        code,
    };
    let first = [
        refused(3, 7),
        refused(1, 400_004),
        refused(1, 5),
        refused(0, 0),
    ];
    store.record(&lease, &first, TTL).await.unwrap();
    let later = [
        refused(3, 8),
        refused(2, 9),
        report(2, Outcome::Enqueued),
        report(4, Outcome::Delivered),
        refused(4, 10),
    ];
    store.record(&lease, &later, TTL).await.unwrap();
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    assert_eq!(work.codes, [(1, 400_004), (3, 7)]);
}

/// A batch of a later stage is neither listed nor leased before the stage starts.
pub async fn a_stage_waits_for_the_preceding_stage(subject: Subject) {
    let store = &*subject.store;
    let batches = vec![
        batch_on(0, "a", 2, 1),
        batch_on(1, "a", 1, 1),
        batch_on(2, "a", 0, 1),
        batch_on(3, "b", 1, 1),
        batch_on(10, "a", 1, 1),
    ];
    let rollout = staged(store, "r", batches).await;
    let open = |through: u16, limit: usize| async move {
        let page = store
            .open_batches(&name("r"), &hub("a"), StageIndex(through), limit)
            .await;
        let page = page.unwrap().into_iter();
        page.map(|status| status.header.id.0).collect::<Vec<_>>()
    };
    assert_eq!(open(0, 9).await, [2]);
    assert_eq!(open(1, 9).await, [2, 1, 10]);
    assert_eq!(open(2, 9).await, [2, 1, 10, 0]);
    assert_eq!(open(2, 2).await, [2, 1]);
    let lease_of = |batch: u32| async move {
        let request = lease_request(&name("r"), batch, "w");
        store.lease(&request).await.unwrap()
    };
    assert_eq!(lease_of(1).await, LeaseReply::NotWanted);
    let lease = leased(store, &name("r"), 2, "w").await;
    let sent = [report(0, Outcome::Enqueued)];
    store.record(&lease, &sent, TTL).await.unwrap();
    assert_eq!(open(1, 9).await, [1, 10]);
    assert_eq!(lease_of(3).await, LeaseReply::NotWanted);

    let rollout = apply(store, &rollout, stage_passed("one")).await;
    assert!(matches!(lease_of(1).await, LeaseReply::Granted(_)));
    assert!(matches!(lease_of(3).await, LeaseReply::Granted(_)));
    assert_eq!(lease_of(0).await, LeaseReply::NotWanted);
    apply(store, &rollout, stage_passed("two")).await;
    assert!(matches!(lease_of(0).await, LeaseReply::Granted(_)));
}

/// Each batch counts for the batch's stage and hub, also before any send.
pub async fn tallies_are_by_stage_and_hub(subject: Subject) {
    let store = &*subject.store;
    let batches = vec![
        batch_on(0, "b", 0, 1),
        batch_on(1, "a", 1, 2),
        batch_on(2, "a", 0, 4),
        batch_on(3, "a", 0, 8),
    ];
    running(store, "r", batches).await;
    running(store, "other", vec![batch(0, 100)]).await;
    let lease = leased(store, &name("r"), 3, "w").await;
    let reports = [report(0, Outcome::Enqueued), report(5, Outcome::NotFound)];
    store.record(&lease, &reports, TTL).await.unwrap();
    let tallies = store.tallies(&name("r")).await.unwrap();
    let mut by_key: Vec<(StageIndex, HubName, u64, u64)> = tallies
        .into_iter()
        .map(|t| (t.stage, t.hub, t.counts.total(), t.counts.unsettled()))
        .collect();
    by_key.sort();
    let expected = [(0, "a", 12, 10), (0, "b", 1, 1), (1, "a", 2, 2)];
    let expected = expected.map(|(stage, hub, total, unsettled)| {
        (StageIndex(stage), crate::build::hub(hub), total, unsettled)
    });
    assert_eq!(by_key, expected);
}

/// The unsettled devices of an aborted batch are skipped once the batch has no holder. Settled
/// devices stay unchanged.
pub async fn the_rest_of_an_aborted_batch_is_skipped(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 4), batch(1, 1)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let reports = [
        report(1, Outcome::Attempting),
        report(2, Outcome::Enqueued),
        report(3, Outcome::NotFound),
    ];
    store.record(&lease, &reports, TTL).await.unwrap();
    apply(store, &rollout, abort_requested()).await;
    let skip = async || store.skip(&name("r"), BatchId(0), &Skip::Remaining).await;
    let held = skip().await.unwrap().expect("the batch has a holder");
    assert_eq!(held.by, lease.holder);
    assert_eq!(outcomes(store, 0).await[0], Outcome::Pending);

    subject.clock.advance(TTL);
    for _ in 0..2 {
        assert_eq!(skip().await.unwrap(), None);
    }
    let expected = [
        Outcome::Skipped,
        Outcome::Unknown,
        Outcome::Enqueued,
        Outcome::NotFound,
    ];
    assert_eq!(outcomes(store, 0).await, expected);
    let counts = counts(store).await;
    assert_eq!((counts.total(), counts.unsettled()), (5, 1));
    let open = store
        .open_batches(&name("r"), &hub("a"), crate::build::ALL_STAGES, 9)
        .await
        .unwrap();
    assert_eq!(open.len(), 1);

    let reports = [report(0, Outcome::Enqueued)];
    let late = store.record(&lease, &reports, TTL).await.unwrap();
    assert_eq!(late, Directive::Stop, "a late record is accepted");
    assert_eq!(outcomes(store, 0).await[0], Outcome::Enqueued);
}

/// Skipping is refused while the rollout may still continue.
pub async fn only_an_abort_skips(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 1)]).await;
    let skip = async |id| store.skip(&name("r"), BatchId(id), &Skip::Remaining).await;
    assert_refused!(skip(0).await, Superseded);
    let rollout = apply(store, &rollout, pause_requested()).await;
    assert_refused!(skip(0).await, Superseded);
    apply(store, &rollout, abort_requested()).await;
    assert_refused!(skip(1).await, NotFound);
    assert_eq!(skip(0).await.unwrap(), None);
    assert_eq!(outcomes(store, 0).await, [Outcome::Skipped]);
}

/// Feedback is merged without a lease, with any holder of the batch, and with the same counts.
pub async fn feedback_is_merged_without_a_lease(subject: Subject) {
    let store = &*subject.store;
    running(store, "r", vec![batch(0, 3)]).await;
    let lease = leased(store, &name("r"), 0, "a").await;
    let learned = [report(0, Outcome::Delivered), report(1, Outcome::Expired)];
    for _ in 0..2 {
        let merged = store
            .merge(
                &name("r"),
                RolloutId::default(),
                BatchId(0),
                Attempt::FIRST,
                &learned,
            )
            .await;
        merged.unwrap();
    }
    // Feedback has overtaken the records of the sends.
    let sent = [0, 1, 2].map(|index| report(index, Outcome::Enqueued));
    store.record(&lease, &sent, TTL).await.unwrap();
    let expected = [Outcome::Delivered, Outcome::Expired, Outcome::Enqueued];
    assert_eq!(outcomes(store, 0).await, expected);
    let counts = counts(store).await;
    assert_eq!(counts.get(Outcome::Delivered), 1);
    assert_eq!((counts.total(), counts.unsettled()), (3, 0));

    // A report beyond the batch, as from an older plan, does not affect the reports beside it.
    let beyond = [3, 2].map(|index| report(index, Outcome::Delivered));
    let merged = store
        .merge(
            &name("r"),
            RolloutId::default(),
            BatchId(0),
            Attempt::FIRST,
            &beyond,
        )
        .await;
    assert_eq!(merged.unwrap(), 1);
    assert_eq!(outcomes(store, 0).await[2], Outcome::Delivered);
    assert_refused!(
        store
            .merge(
                &name("r"),
                RolloutId::default(),
                BatchId(1),
                Attempt::FIRST,
                &learned
            )
            .await,
        NotFound
    );
    for (of, id) in [("s", RolloutId::default()), ("r", RolloutId(1))] {
        let of = name(of);
        let merged = store.merge(&of, id, BatchId(0), Attempt::FIRST, &learned);
        assert_refused!(merged.await, NotFound);
    }
}
