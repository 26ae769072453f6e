//! Conformance cases about rollouts, records and plans.

use twincast_core::account::Activity;
use twincast_core::ids::{BatchId, Revision, RolloutName, StageIndex};
use twincast_core::outcome::{Counts, Outcome, OutcomeList};
use twincast_core::plan::{Batch, Checksum, SortKey, TagGroup};
use twincast_core::ports::{Clock as _, Created, Skip, Store};
use twincast_core::rollout::{Adding, Attribution, Directive, Event, Phase, PlanId};

use super::Subject;
use crate::assert_refused;
use crate::build::{
    TTL, abort_requested, accepted, after, apply, batch, batch_on, hub, lease_request, leased,
    name, pause_requested, plan_completed, planning, report, running,
};

async fn ids(store: &dyn Store, after: Option<u32>, limit: usize) -> Vec<u32> {
    let page = store
        .batches(&name("r"), after.map(BatchId), limit)
        .await
        .unwrap();
    page.into_iter().map(|status| status.header.id.0).collect()
}

async fn open(store: &dyn Store, on: &str, limit: usize) -> Vec<u32> {
    let page = store
        .open_batches(&name("r"), &hub(on), crate::build::ALL_STAGES, limit)
        .await;
    let ids = page.unwrap().into_iter().map(|status| status.header.id.0);
    ids.collect()
}

/// A second rollout with the same name is not stored; the caller gets the first rollout.
pub async fn creating_twice_keeps_the_first(subject: Subject) {
    let store = &*subject.store;
    let first = accepted("r");
    assert_eq!(store.create(&first).await.unwrap(), Created::New);
    let running = apply(store, &first, Event::PlanningStarted).await;
    let mut second = accepted("r");
    second.spec.description = Some("another".into());
    assert_eq!(
        store.create(&second).await.unwrap(),
        Created::Existing(Box::new(running.clone()))
    );
    let revision = store.revision(&name("r")).await.unwrap();
    assert_eq!(revision, Some(running.revision()));
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(running));
}

/// Reading a missing rollout gives `None`; working on a missing rollout or batch gives `NotFound`.
pub async fn missing_records_are_reported(subject: Subject) {
    let store = &*subject.store;
    let nobody = name("nobody");
    assert_eq!(store.rollout(&nobody).await.unwrap(), None);
    assert!(store.rollouts().await.unwrap().is_empty());
    assert_refused!(
        store.save(&accepted("nobody"), Revision::default()).await,
        NotFound
    );
    assert_refused!(
        store
            .add_batches(&nobody, Adding::Plan(PlanId(0)), vec![])
            .await,
        NotFound
    );
    assert_refused!(store.batches(&nobody, None, 10).await, NotFound);
    assert_refused!(store.lease(&lease_request(&nobody, 0, "w")).await, NotFound);
    assert_refused!(
        store
            .open_batches(&nobody, &hub("a"), crate::build::ALL_STAGES, 1)
            .await,
        NotFound
    );
    assert_eq!(store.revision(&nobody).await.unwrap(), None);
    assert_refused!(store.load(&nobody, BatchId(0)).await, NotFound);
    assert_refused!(store.tallies(&nobody).await, NotFound);
    assert_refused!(
        store.skip(&nobody, BatchId(0), &Skip::Remaining).await,
        NotFound
    );

    running(store, "r", vec![batch(0, 1)]).await;
    let there = name("r");
    assert_refused!(store.lease(&lease_request(&there, 1, "w")).await, NotFound);
    assert_refused!(store.load(&there, BatchId(1)).await, NotFound);
}

/// All names are listed in ascending order.
pub async fn names_ascend(subject: Subject) {
    for text in ["m", "b", "b-2", "B", "b.1"] {
        subject.store.create(&accepted(text)).await.unwrap();
    }
    let names = subject.store.rollouts().await.unwrap();
    let texts: Vec<_> = names.iter().map(RolloutName::as_str).collect();
    assert_eq!(texts, ["B", "b", "b-2", "b.1", "m"]);
}

/// A record based on an older version is refused.
pub async fn a_save_is_a_compare_and_swap(subject: Subject) {
    let store = &*subject.store;
    let first = planning(store, "r").await;
    let running = apply(store, &first, plan_completed(1)).await;
    let late = after(&first, abort_requested());
    assert_refused!(store.save(&late, first.revision()).await, Superseded);
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(running));
}

/// A store that lost the last writes assigns their versions again. A record made before the loss
/// belongs to another history.
pub async fn a_record_of_another_history_is_refused(subject: Subject) {
    let store = &*subject.store;
    let first = planning(store, "r").await;
    let lost = after(&first, abort_requested());
    let running = apply(store, &first, plan_completed(1)).await;
    assert_eq!(lost.version, running.version);
    let counts = Counts::default();
    let late = after(&lost, Event::AllSettled { counts });
    assert_refused!(store.save(&late, lost.revision()).await, Superseded);
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(running));
}

/// A plan is completed only with exactly the planner's batches.
pub async fn a_plan_is_complete_with_exactly_the_planned_batches(subject: Subject) {
    let store = &*subject.store;
    let planning = planning(store, "r").await;
    let by = Adding::Plan(PlanId(1));
    let made = [batch(0, 2), batch(1, 3), batch(2, 1)];
    let r = &name("r");
    let mut held = Checksum::default();
    for batch in &made {
        held.add(batch);
        for _ in 0..2 {
            let found = store.add_batches(r, by, vec![batch.clone()]).await;
            assert_eq!(found.unwrap(), held);
        }
    }
    let completed = |batches: &[Batch]| {
        let mut event = plan_completed(6);
        if let Event::PlanCompleted { plan } = &mut event {
            plan.checksum = batches.iter().collect();
        }
        after(&planning, event)
    };
    let (mut other, mut more) = (made.clone(), made.to_vec());
    other[1] = batch_on(1, "a", 1, 3);
    more.push(batch(3, 1));
    for wrong in [&made[..2], &other[..], &more[..]] {
        let saved = store.save(&completed(wrong), planning.revision()).await;
        assert_refused!(saved, Regressed);
    }
    assert_eq!(store.rollout(r).await.unwrap(), Some(planning.clone()));
    let whole = completed(&made);
    store.save(&whole, planning.revision()).await.unwrap();
    assert_eq!(store.rollout(r).await.unwrap(), Some(whole));
}

/// A rollout cannot end while a device is unsettled.
pub async fn a_rollout_ends_when_all_is_settled(subject: Subject) {
    let store = &*subject.store;
    let rollout = running(store, "r", vec![batch(0, 1), batch(1, 1)]).await;
    let counts = Counts::default();
    let ended = after(&rollout, Event::AllSettled { counts });
    for id in 0..2 {
        let saved = store.save(&ended, rollout.revision()).await;
        assert_refused!(saved, Regressed);
        let lease = leased(store, &name("r"), id, "w").await;
        let reports = [report(0, Outcome::Enqueued)];
        store.record(&lease, &reports, TTL).await.unwrap();
    }
    store.save(&ended, rollout.revision()).await.unwrap();
}

/// A note is stored without a new version of the record. Notes are read back and fence no worker.
pub async fn notes_do_not_count_as_changes(subject: Subject) {
    let store = &*subject.store;
    let before = running(store, "r", vec![batch(0, 3)]).await;
    let lease = leased(store, &before.spec.name, 0, "w").await;
    let now = subject.clock.now();
    let noted = before
        .with_activity(Activity::Throttled, None, now)
        .expect("the activity changes");
    // Only the notes of the record are stored.
    let mut changed = noted.clone();
    changed.phase = Phase::Succeeded;
    store.save_notes(&changed).await.unwrap();
    assert_eq!(
        store.revision(&name("r")).await.unwrap(),
        Some(before.revision())
    );
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(noted));
    let directive = store.record(&lease, &[], TTL).await.unwrap();
    assert_eq!(directive, Directive::Continue);
    assert_eq!(ids(store, None, 10).await, [0]);

    let paused = apply(store, &before, pause_requested()).await;
    let late = before
        .with_activity(Activity::Baking, None, now)
        .expect("the activity changes");
    assert_refused!(store.save_notes(&late).await, Superseded);
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(paused));
}

/// A saved record is read back with all fields.
pub async fn records_are_read_back_with_all_fields(subject: Subject) {
    let store = &*subject.store;
    let mut rollout = running(store, "r", vec![batch(0, 3)]).await;
    for _ in 0..20 {
        rollout = apply(store, &rollout, pause_requested()).await;
        rollout = apply(
            store,
            &rollout,
            Event::ResumeRequested {
                attribution: Attribution::default(),
            },
        )
        .await;
    }
    assert_eq!(store.rollout(&name("r")).await.unwrap(), Some(rollout));
}

/// A crashed planning attempt leaves no batches to the next attempt.
pub async fn a_new_planning_attempt_discards_the_old_batches(subject: Subject) {
    let store = &*subject.store;
    let first = planning(store, "r").await;
    let old = (0..5).map(|id| batch_on(id, "old", 1, 700)).collect();
    store
        .add_batches(&name("r"), Adding::Plan(PlanId(1)), old)
        .await
        .unwrap();
    assert_eq!(ids(store, None, 10).await.len(), 5);

    let second = apply(store, &first, Event::PlanningStarted).await;
    assert!(ids(store, None, 10).await.is_empty());
    assert!(ids(store, None, 10).await.is_empty());
    assert_eq!(store.tallies(&name("r")).await.unwrap(), []);
    assert_refused!(store.load(&name("r"), BatchId(0)).await, NotFound);

    let new = batch(0, 2);
    let added = store
        .add_batches(&name("r"), Adding::Plan(PlanId(2)), vec![new.clone()])
        .await;
    added.unwrap();
    apply(store, &second, plan_completed(2)).await;
    let work = store.load(&name("r"), BatchId(0)).await.unwrap();
    assert_eq!((work.batch, work.outcomes), (new, OutcomeList::pending(2)));
    let tallies = store.tallies(&name("r")).await.unwrap();
    assert_eq!(tallies.len(), 1);
    assert_eq!(tallies[0].counts, Counts::pending(2));
}

/// Batches are refused for an older planning attempt, a later attempt, a complete plan, and an
/// aborted rollout.
pub async fn only_the_current_planning_attempt_adds_batches(subject: Subject) {
    let store = &*subject.store;
    let rollout = planning(store, "r").await;
    let rollout = apply(store, &rollout, Event::PlanningStarted).await;
    for wrong in [PlanId(1), PlanId(3)] {
        let added = store
            .add_batches(&name("r"), Adding::Plan(wrong), vec![batch(0, 1)])
            .await;
        assert_refused!(added, Superseded);
    }
    assert!(ids(store, None, 10).await.is_empty());
    let right = PlanId(2);
    let added = store
        .add_batches(&name("r"), Adding::Plan(right), vec![batch(0, 1)])
        .await;
    added.unwrap();
    apply(store, &rollout, plan_completed(1)).await;
    let added = store
        .add_batches(&name("r"), Adding::Plan(right), vec![batch(1, 1)])
        .await;
    assert_refused!(added, Superseded);

    let other = planning(store, "aborted").await;
    apply(store, &other, abort_requested()).await;
    let added = store
        .add_batches(&name("aborted"), Adding::Plan(PlanId(1)), vec![batch(0, 1)])
        .await;
    assert_refused!(added, Superseded);
}

/// A call repeated after a lost answer counts no batch twice.
pub async fn a_repeated_batch_has_no_effect(subject: Subject) {
    let store = &*subject.store;
    planning(store, "r").await;
    for batches in [
        vec![batch(0, 2)],
        vec![batch(0, 2), batch(1, 3)],
        vec![batch(1, 3), batch(1, 3)],
    ] {
        let added = store
            .add_batches(&name("r"), Adding::Plan(PlanId(1)), batches)
            .await;
        added.unwrap();
    }
    assert_eq!(ids(store, None, 10).await, [0, 1]);
    let tallies = store.tallies(&name("r")).await.unwrap();
    assert_eq!(tallies[0].counts, Counts::pending(5));
}

/// Batches are listed in the order of their numbers, whatever the order of the additions.
pub async fn batches_come_in_pages(subject: Subject) {
    let store = &*subject.store;
    let batches = [7, 3, 300, 0, 70_000].map(|id| batch(id, id % 5 + 1));
    running(store, "r", batches.to_vec()).await;
    running(store, "r-other", vec![batch(1, 1)]).await;
    assert_eq!(ids(store, None, 2).await, [0, 3]);
    assert_eq!(ids(store, Some(3), 2).await, [7, 300]);
    assert_eq!(ids(store, Some(4), 1).await, [7]);
    assert_eq!(ids(store, Some(300), 9).await, [70_000]);
    assert!(ids(store, Some(u32::MAX), 9).await.is_empty());
    assert!(ids(store, None, 0).await.is_empty());
    assert_eq!(open(store, "a", 9).await, [0, 3, 7, 300, 70_000]);
    let statuses = store.batches(&name("r"), None, 9).await.unwrap();
    assert!(statuses.iter().all(|status| status.held.is_none()));
    assert_eq!(statuses[1].header, batches[1].header);
    assert_eq!(statuses[1].counts, Counts::pending(4));
}

/// Open batches exclude settled batches, and the batches of other hubs.
pub async fn finished_batches_are_not_open(subject: Subject) {
    let store = &*subject.store;
    let mut batches: Vec<_> = (0..4).map(|id| batch(id, 2)).collect();
    batches.push(batch_on(4, "b", 0, 1));
    running(store, "r", batches).await;
    for (id, second) in [(1, Outcome::NotFound), (2, Outcome::Attempting)] {
        let lease = leased(store, &name("r"), id, "w").await;
        let reports = [report(0, Outcome::Enqueued), report(1, second)];
        store.record(&lease, &reports, TTL).await.unwrap();
    }
    assert_eq!(open(store, "a", 9).await, [0, 2, 3]);
    assert_eq!(open(store, "a", 2).await, [0, 2]);
    assert_eq!(open(store, "b", 2).await, [4]);
    assert!(open(store, "c", 2).await.is_empty());
    assert_eq!(ids(store, None, 9).await, [0, 1, 2, 3, 4]);
    let statuses = store
        .open_batches(&name("r"), &hub("a"), crate::build::ALL_STAGES, 9)
        .await
        .unwrap();
    let held: Vec<_> = statuses.iter().map(|s| s.held.is_some()).collect();
    assert_eq!(held, [false, true, false]);
}

/// Open batches are ordered by stage, then by sort key, then by number, also after some batches are
/// done.
pub async fn open_batches_are_ordered_by_stage_and_sort_key(subject: Subject) {
    let store = &*subject.store;
    let made = [
        (0, 1, Some("9")),
        (1, 0, None),
        (2, 0, Some("b")),
        (3, 0, Some("10")),
        (4, 0, Some("a")),
        (5, 0, Some("9")),
        (6, 1, Some("-1")),
        (7, 0, Some("aa")),
        (8, 0, Some("9")),
    ];
    let made = made.map(|(id, stage, value)| {
        let mut batch = batch_on(id, "a", stage, 1);
        batch.header.sort_key = SortKey::of_value(value);
        batch
    });
    running(store, "r", made.to_vec()).await;
    let expected = [5, 8, 3, 4, 7, 2, 1, 6, 0];
    assert_eq!(open(store, "a", 99).await, expected);
    assert_eq!(open(store, "a", 4).await, expected[..4]);
    for id in [8, 7] {
        let lease = leased(store, &name("r"), id, "w").await;
        let sent = [report(0, Outcome::Enqueued)];
        store.record(&lease, &sent, TTL).await.unwrap();
    }
    assert_eq!(open(store, "a", 99).await, [5, 3, 4, 2, 1, 6, 0]);
    let first = store
        .open_batches(&name("r"), &hub("a"), StageIndex(0), 99)
        .await;
    let first = first.unwrap().into_iter().map(|status| status.header.id.0);
    assert_eq!(first.collect::<Vec<_>>(), [5, 3, 4, 2, 1]);
    let planned = store.batches(&name("r"), None, 99).await.unwrap();
    assert_eq!(planned[2].header, made[2].header);
}

/// A loaded batch has the header, the tag groups, and the devices in order, for batches of any
/// size.
pub async fn added_batches_are_loaded(subject: Subject) {
    let store = &*subject.store;
    let mut batches: Vec<Batch> = [1, 2, 3, 999, 10_000]
        .into_iter()
        .zip(0..)
        .map(|(devices, id)| batch_on(id, "a", 3, devices))
        .collect();
    batches[2].header.group = TagGroup(vec![
        ("region".into(), Some("\u{e9}u, \"1\"".into())),
        ("site".into(), None),
    ]);
    running(store, "r", batches.clone()).await;
    for batch in batches {
        let id = batch.header.id;
        let work = store.load(&name("r"), id).await.unwrap();
        assert_eq!(work.outcomes, OutcomeList::pending(batch.devices.len()));
        assert_eq!((work.batch, work.codes), (batch, vec![]));
    }
}
