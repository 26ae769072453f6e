use super::*;
use crate::budget::{BudgetGroup, Limit};
use crate::ids::{
    BatchId, Holder, HubHost, HubName, Lineage, Revision, RolloutId, RolloutName, StageIndex,
    Version,
};
use crate::plan::TagGroup;
use Outcome as O;

const TTL: Duration = Duration::from_secs(10);

fn batch(devices: u32) -> Batch {
    let header = BatchHeader {
        id: BatchId(0),
        hub: HubName::new("a").unwrap(),
        host: HubHost::new("a").unwrap(),
        stage: StageIndex(1),
        group: TagGroup::default(),
        further_groups: Vec::new(),
        devices,
        sort_key: Default::default(),
        budgets: Vec::new(),
    };
    Batch::new(header, Timestamp(0))
}

fn budgeted(devices: u32) -> Batch {
    let mut batch = batch(devices);
    batch.header.budgets = vec![BudgetGroup {
        group: "site=1".into(),
        limit: Limit::Devices(5),
        silent_ms: 1_000,
    }];
    batch
}

/// A running rollout at the stage of the batch.
fn running() -> RolloutControl {
    RolloutControl {
        id: RolloutId(7),
        revision: Revision {
            version: Version(1),
            lineage: Lineage(1),
        },
        directive: Directive::Continue,
        stage: StageIndex(1),
        aborting: false,
        adding: None,
        preparing: None,
    }
}

fn request(by: &str) -> LeaseRequest {
    LeaseRequest {
        rollout: RolloutName::new("r").unwrap(),
        batch: BatchId(0),
        holder: Holder::new(by).unwrap(),
        ttl: TTL,
    }
}

fn context(rollout: &RolloutControl) -> LeaseContext<'_> {
    LeaseContext {
        rollout,
        budgets: &[],
        durable: true,
        now: Timestamp(1_000),
    }
}

fn leased(batch: &mut Batch, budgets: &[GroupProgress]) -> Lease {
    let rollout = running();
    let given = batch.lease(
        &request("w"),
        &LeaseContext {
            budgets,
            ..context(&rollout)
        },
    );
    match given {
        LeaseReply::Granted(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn report(index: u32, outcome: Outcome, code: u32) -> Report {
    Report {
        index,
        outcome,
        code,
    }
}

fn outcomes(batch: &Batch) -> Vec<Outcome> {
    batch.outcomes.iter().collect()
}

#[test]
fn lease_is_granted_when_all_conditions_hold() {
    let stopped = RolloutControl {
        directive: Directive::Stop,
        ..running()
    };
    let early = RolloutControl {
        stage: StageIndex(0),
        ..running()
    };
    let full = [GroupProgress {
        devices: 100,
        in_progress: 3,
        finished: Vec::new(),
    }];
    let free = [GroupProgress {
        devices: 100,
        in_progress: 2,
        finished: Vec::new(),
    }];
    let running = running();
    let not_durable = LeaseContext {
        durable: false,
        ..context(&running)
    };
    let with = |budgets| LeaseContext {
        budgets,
        ..context(&running)
    };
    for (why, mut batch, context, is_given) in [
        ("all is well", batch(3), context(&running), true),
        ("the rollout is stopped", batch(3), context(&stopped), false),
        ("its stage has not come", batch(3), context(&early), false),
        ("a crash may undo it", batch(3), not_durable, false),
        ("its group is full", budgeted(3), with(&full), false),
        ("its group has room", budgeted(3), with(&free), true),
    ] {
        let before = batch.clone();
        let given = batch.lease(&request("w"), &context);
        assert_eq!(matches!(given, LeaseReply::Granted(_)), is_given, "{why}");
        assert!(is_given || batch == before, "{why}");
        assert_eq!(
            batch.budget_usage.is_open,
            is_given && !batch.header.budgets.is_empty()
        );
    }
}

#[test]
fn counted_batch_is_leased_again_and_done_batch_is_not() {
    let mut batch = budgeted(2);
    let free = [GroupProgress {
        devices: 2,
        in_progress: 0,
        finished: Vec::new(),
    }];
    let lease = leased(&mut batch, &free);
    batch.release(&lease).unwrap();
    let lease = leased(&mut batch, &[]);
    let sent = [report(0, O::Enqueued, 0), report(1, O::QueueFull, 0)];
    batch.record(&lease, &sent, TTL, Timestamp(2_000)).unwrap();
    assert!(!batch.budget_usage.is_open);
    assert_eq!(batch.budget_usage.recorded_at, Timestamp(2_000));
    let rollout = running();
    assert_eq!(
        batch.lease(&request("x"), &context(&rollout)),
        LeaseReply::Done
    );
}

#[test]
fn first_code_of_refused_device_is_kept() {
    let mut batch = batch(5);
    let lease = leased(&mut batch, &[]);
    for reports in [
        vec![
            report(3, O::Refused, 7),
            report(1, O::Refused, 400_004),
            report(1, O::Refused, 5),
            report(0, O::Refused, 0),
            report(2, O::Refused, 6),
        ],
        vec![
            report(3, O::Refused, 8),
            report(2, O::Enqueued, 0),
            report(4, O::Delivered, 0),
            report(4, O::Refused, 10),
        ],
    ] {
        batch
            .record(&lease, &reports, TTL, Timestamp(2_000))
            .unwrap();
    }
    assert_eq!(batch.codes, BTreeMap::from([(1, 400_004), (3, 7)]));
}

#[test]
fn invalid_reports_and_released_leases_are_refused() {
    let mut batch = batch(2);
    let lease = leased(&mut batch, &[]);
    let beyond = [report(0, O::Enqueued, 0), report(2, O::Enqueued, 0)];
    let now = Timestamp(2_000);
    let recorded = batch.clone().record(&lease, &beyond, TTL, now);
    assert_eq!(recorded, Err(Refused::NoDevice(2)));
    let merged = batch.clone().merge(Attempt::FIRST, &beyond);
    assert_eq!(merged, 1, "feedback may be on an older plan");
    batch.release(&lease).unwrap();
    let recorded = batch.clone().record(&lease, &[], TTL, now);
    assert!(matches!(recorded, Err(Refused::Fenced(_))), "{recorded:?}");
}

#[test]
fn skip_spares_sent_devices_and_held_batches() {
    let mut batch = batch(4);
    let lease = leased(&mut batch, &[]);
    let sent = [report(0, O::Enqueued, 0), report(1, O::Attempting, 0)];
    let now = Timestamp(2_000);
    batch.record(&lease, &sent, TTL, now).unwrap();
    assert_eq!(batch.skip(&Skip::Remaining, now).unwrap().by, lease.holder);
    batch.release(&lease).unwrap();
    let left = Skip::Departed {
        scan: ScanId(1),
        devices: vec![0, 1, 3],
    };
    assert_eq!(batch.skip(&left, now), None);
    assert_eq!(
        outcomes(&batch),
        [O::Enqueued, O::Attempting, O::Pending, O::Skipped]
    );
    assert_eq!(batch.skip(&Skip::Remaining, now), None);
    assert_eq!(
        outcomes(&batch),
        [O::Enqueued, O::Unknown, O::Skipped, O::Skipped]
    );
}

#[test]
fn skip_is_allowed_only_in_matching_rollout_state() {
    let left = Skip::Departed {
        scan: ScanId(2),
        devices: vec![0],
    };
    let aborting = RolloutControl {
        aborting: true,
        ..running()
    };
    let scanning = |scan| RolloutControl {
        adding: Some(Adding::Scan(ScanId(scan))),
        ..running()
    };
    for (skip, rollout, is_allowed) in [
        (&Skip::Remaining, running(), false),
        (&Skip::Remaining, aborting, true),
        (&left, running(), false),
        (&left, scanning(1), false),
        (&left, scanning(2), true),
    ] {
        assert_eq!(skip.is_allowed(&rollout), is_allowed, "{skip:?}");
    }
}

#[test]
fn reopening_resets_chosen_outcomes_once_and_fences_holder() {
    let mut batch = batch(5);
    let lease = leased(&mut batch, &[]);
    let sent = [
        report(0, O::Refused, 7),
        report(1, O::Enqueued, 0),
        report(2, O::Delivered, 0),
        report(3, O::Expired, 0),
    ];
    let now = Timestamp(2_000);
    batch.record(&lease, &sent, TTL, now).unwrap();
    let outcomes_meant = [O::Refused, O::Delivered, O::Pending];
    let second = Attempt(2);
    let held = batch.reopen(second, &outcomes_meant, now);
    assert!(matches!(held, Reopened::Held(_)));
    let later = now.plus(TTL);
    assert_eq!(
        batch.reopen(second, &outcomes_meant, later),
        Reopened::Devices(1)
    );
    let expected = [
        O::Pending,
        O::Enqueued,
        O::Delivered,
        O::Expired,
        O::Pending,
    ];
    assert_eq!(outcomes(&batch), expected);
    assert_eq!(batch.codes, BTreeMap::new());
    assert!(batch.clone().record(&lease, &[], TTL, later).is_err());
    let again = batch.reopen(second, &[O::Expired], later);
    assert_eq!(again, Reopened::Devices(0), "already prepared");
    let none = batch.reopen(Attempt(3), &[O::Purged], later);
    assert_eq!(none, Reopened::Devices(0));
    assert_eq!(batch.attempts.newest, second, "no device was purged");
    // A failure of the first attempt no longer counts; its delivery does.
    let late = [report(0, O::Rejected, 0), report(1, O::Delivered, 0)];
    batch.merge(Attempt::FIRST, &late);
    let expected = [
        O::Pending,
        O::Delivered,
        O::Delivered,
        O::Expired,
        O::Pending,
    ];
    assert_eq!(outcomes(&batch), expected);
}
