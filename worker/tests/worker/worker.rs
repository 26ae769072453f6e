//! The worker on test doubles with paused time: which messages are sent, how often, and which
//! outcomes are recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ids::BatchId;
use twincast_core::link::{LinkObstacle, LinkState, LinkStatus, REPORTED_EVERY};
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Batches as _, Clock as _, HubTrouble, LeaseReply, NotSent, Presence as _, Queue, SendResult,
    Skip, Tally,
};
use twincast_core::rollout::{Attribution, Event};
use twincast_core::spec::{Delivery, Rate, RolloutSpec};
use twincast_testkit::{Condition, RuntimeClock, build};
use twincast_worker::HubState;

use crate::bench::{Bench, map};

#[tokio::test(start_paused = true)]
async fn every_device_is_sent_once_and_recorded() {
    let bench = Bench::new(&[1_000, 1, 700]).await;
    let worker = bench.start();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(map(&counts), BTreeMap::from([("enqueued", 1_701)]));
    assert_eq!(bench.hub.sends(), 1_701);
    assert_eq!(bench.hub.sends_by_device().len(), 1_701);
    assert!(
        bench.hub.sends_by_id().contains_key("r.0.0.0.rr.1"),
        "batch 0, index 999, attempt 1"
    );
    assert_eq!(
        bench.queue.depth(&build::hub("a")).await.unwrap().waiting,
        0,
        "every dispatch was answered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_planned_for_another_host_is_released() {
    let mut bench = Bench::new(&[30]).await;
    bench.host = build::host("production");
    let worker = bench.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    worker.stopped().await;
    assert_eq!(bench.hub.sends(), 0);
    // The lease was released, so a worker with the right hub need not wait.
    bench.host = build::host("a");
    bench.dispatch(0).await;
    let worker = bench.start();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(map(&counts), BTreeMap::from([("enqueued", 30)]));
}

#[tokio::test(start_paused = true)]
async fn a_crash_repeats_one_window_a_batch_at_most_with_the_same_ids() {
    let mut bench = Bench::new(&[500, 500]).await;
    bench.config.window = 50;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(100).await;
    // Exactly two windows are under way. Some of the sends are answered and recorded.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.hub.sends(), 100);
    bench.hub.release(60);
    let before = bench
        .until("60 recorded", |c| c.get(Outcome::Enqueued) == 60)
        .await;
    bench.hub.arrived(160).await;
    bench.crash(worker, 2).await;

    bench.hub.release_all();
    let worker = bench.start();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(map(&counts), BTreeMap::from([("enqueued", 1_000)]));
    let repeated = bench.hub.sends() - 1_000;
    assert_eq!(
        repeated, 100,
        "sends in flight at the crash are repeated; recorded: {before:?}"
    );
    assert_eq!(
        bench.hub.sends_by_id().len(),
        1_000,
        "a repeated send has the same id"
    );
}

#[tokio::test(start_paused = true)]
async fn at_most_once_never_repeats() {
    let mut bench = Bench::with(&[300], |rollout| {
        rollout.spec.delivery = Delivery::AtMostOnce;
    })
    .await;
    bench.config.window = 50;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(50).await;
    bench.crash(worker, 1).await;
    bench.hub.release_all();
    let worker = bench.start();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(
        map(&counts),
        BTreeMap::from([("enqueued", 250), ("unknown", 50)])
    );
    assert_eq!(bench.hub.sends(), 300);
    assert!(
        bench
            .hub
            .sends_by_device()
            .values()
            .all(|sends| *sends == 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_pause_under_at_most_once_loses_no_device() {
    let mut bench = Bench::with(&[300], |rollout| {
        rollout.spec.delivery = Delivery::AtMostOnce;
    })
    .await;
    bench.config.window = 50;
    bench.hub.set_delay(Duration::from_millis(300));
    let worker = bench.start();
    bench.hub.arrived(120).await;
    bench.event(build::pause_requested()).await;
    worker.stopped().await;
    bench
        .event(Event::ResumeRequested {
            attribution: Attribution::default(),
        })
        .await;
    bench.dispatch(0).await;
    let worker = bench.start();
    let counts = bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(map(&counts), BTreeMap::from([("enqueued", 300)]));
}

#[tokio::test(start_paused = true)]
async fn a_pause_takes_effect_within_a_second_and_resume_continues() {
    let mut bench = Bench::new(&[5_000]).await;
    bench.limits.sends_per_minute = Some(6_000.0);
    let worker = bench.start();
    bench.hub.arrived(1_000).await;
    bench.event(build::pause_requested()).await;
    let paused_at = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let sent = bench.hub.sent();
    let last = sent.last().unwrap().at;
    assert!(
        last.saturating_duration_since(paused_at) < Duration::from_secs(1),
        "sent {:?} after the pause",
        last - paused_at
    );
    let counts = bench.counts().await;
    assert_eq!(
        counts.get(Outcome::Enqueued),
        sent.len() as u64,
        "sends in flight are recorded"
    );
    let status = bench
        .store
        .open_batches(&bench.rollout, &build::hub("a"), build::ALL_STAGES, 1)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(status.held, None, "the lease is released");

    bench
        .event(Event::ResumeRequested {
            attribution: Attribution::default(),
        })
        .await;
    bench.dispatch(0).await;
    bench.until_settled().await;
    worker.stopped().await;
    assert_eq!(bench.hub.sends(), 5_000, "no repeated sends");
}

/// Without an answer of the store, the worker cannot know whether the rollout was paused, or the
/// batch was taken over.
#[tokio::test(start_paused = true)]
async fn no_message_is_sent_without_a_current_store_directive() {
    for condition in [Condition::Broken, Condition::Silent] {
        let mut bench = Bench::new(&[20]).await;
        bench.config.tries = u8::MAX;
        bench.hub.answer_next(vec![
            SendResult::NotSent {
                cause: NotSent::NoConnection,
                retry_after: None,
                detail: "not yet".into(),
            };
            1_000
        ]);
        let worker = bench.start();
        bench.hub.arrived(200).await;
        bench.faulty_store.set(condition);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sends = bench.hub.sends();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(bench.hub.sends(), sends);
        bench.faulty_store.set(Condition::Open);
        bench.until_settled().await;
        worker.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_pace_is_kept_and_used() {
    for (per_minute, batches) in [
        (100.0, [100; 4].as_slice()),
        (50_000.0, [6_000; 10].as_slice()),
    ] {
        let mut bench = Bench::new(batches).await;
        bench.limits.sends_per_minute = Some(per_minute);
        bench.hub.set_delay(Duration::from_millis(40));
        let worker = bench.start();
        bench.until_settled().await;
        worker.stopped().await;
        let at: Vec<_> = bench.hub.sent().iter().map(|sent| sent.at).collect();
        let minute = Duration::from_secs(60);
        let most = (0..at.len())
            .map(|i| at[i..].partition_point(|other| *other < at[i] + minute))
            .max()
            .unwrap();
        assert!(
            most as f64 <= per_minute,
            "{most} in a minute of {per_minute}"
        );
        let used =
            (at.len() - 1) as f64 / (at[at.len() - 1] - at[0]).as_secs_f64() * 60.0 / per_minute;
        assert!(used > 0.98, "{used} of the quota used");
    }
}

#[tokio::test(start_paused = true)]
async fn permits_do_not_pile_up_behind_a_broken_connection() {
    let mut bench = Bench::new(&[300]).await;
    bench.limits.sends_per_minute = Some(100.0);
    bench.hub.set_ready(false);
    let worker = bench.start();
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(bench.hub.sends(), 0);
    bench.hub.set_ready(true);
    let back = Instant::now();
    bench.until_settled().await;
    worker.stopped().await;
    let at: Vec<_> = bench.hub.sent().iter().map(|sent| sent.at).collect();
    assert!(at[0] - back < Duration::from_secs(2), "prompt resumption");
    let minute = Duration::from_secs(60);
    let most = (0..at.len())
        .map(|i| at[i..].partition_point(|other| *other < at[i] + minute))
        .max();
    assert!(most <= Some(100), "{most:?} in a minute of 100");
}

#[tokio::test(start_paused = true)]
async fn a_rollouts_own_rate_is_kept() {
    let rate: Rate = "120/min".parse().unwrap();
    let mut bench = Bench::with(&[400], |rollout| rollout.spec.rate = Some(rate)).await;
    bench.limits.sends_per_minute = Some(6_000.0);
    let started = Instant::now();
    let worker = bench.start();
    bench.until_settled().await;
    worker.stopped().await;
    let took = started.elapsed().as_secs_f64();
    assert!(
        (199.0..203.0).contains(&took),
        "400 devices at 120 a minute took {took} s"
    );
}

/// Returns the number of sends in the minute that begins with send number `from`.
fn in_a_minute(at: &[Instant], from: usize) -> usize {
    let end = at[from] + Duration::from_secs(60);
    at.partition_point(|other| *other < end) - from
}

/// Two workers, of which the first crashes midway. The position of the ramp is read from the store:
/// the ramp neither begins anew nor runs ahead, and depends on nothing else.
#[tokio::test(start_paused = true)]
async fn a_ramp_rises_only_with_recorded_sends() {
    let spec = "{name: r, target: {all: true}, message: {body: {text: hi}}, rate: 400/min, \
                ramp: {base: 60/min, factor: 2, every: 100}}";
    let spec = RolloutSpec::read("test", spec).unwrap();
    let mut bench = Bench::with(&[250; 4], |rollout| rollout.spec = spec).await;
    bench.limits.sends_per_minute = Some(6_000.0);
    let started = Instant::now();
    let (first, second) = (bench.start(), bench.start());
    bench
        .until("150 sent", |c| c.get(Outcome::Enqueued) >= 150)
        .await;
    bench.crash(first, 4).await;
    bench.until_settled().await;
    second.stopped().await;
    let took = started.elapsed().as_secs_f64();

    let mut at: Vec<_> = bench.hub.sent().iter().map(|sent| sent.at).collect();
    at.sort_unstable();
    // Unrecorded sends of the first worker do not count, and are repeated.
    let repeated = at.len() - 1_000;
    assert!(repeated <= 10, "{repeated}");
    // 100 at 60, 100 at 120, 100 at 240, the rest at 400 a minute, each a little less.
    let least = 60.0 * (100.0 / 60.0 + 100.0 / 120.0 + 100.0 / 240.0 + 700.0 / 400.0);
    assert!(
        (least..least * 1.02 + 8.0).contains(&took),
        "{took} s instead of {least}"
    );
    for (up_to, most) in [(100, 60), (200, 120), (300, 240), (1_000, 400)] {
        for from in (0..at.len()).take_while(|from| from + in_a_minute(&at, *from) <= up_to) {
            let sent = in_a_minute(&at, from);
            assert!(sent <= most, "{sent} in a minute from {from} on, of {most}");
        }
    }
}

/// The schedule window ends in the middle of the batch. The sends are recorded, and the batch is
/// released.
#[tokio::test(start_paused = true)]
async fn no_message_is_sent_outside_the_schedule_windows() {
    let now = RuntimeClock::default().now();
    let text = now.to_string();
    let (minute, second) = (&text[11..16], &text[17..19]);
    let spec = format!(
        "{{name: r, target: {{all: true}}, message: {{body: {{text: hi}}}}, rate: 120/min, \
         schedule: {{windows: [{{from: \"{minute}\", for: 2m}}]}}}}"
    );
    let spec = RolloutSpec::read("test", &spec).unwrap();
    let open_for = 120 - second.parse::<u64>().unwrap();
    let bench = Bench::with(&[400], |rollout| rollout.spec = spec).await;
    let worker = bench.start();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let sent = |tallies: Vec<Tally>| Tally::sum(&tallies).get(Outcome::Enqueued);
    let first = sent(bench.store.tallies(&bench.rollout).await.unwrap());
    assert!(
        (2 * open_for - 8..=2 * open_for).contains(&first),
        "{first} sent in {open_for} s"
    );
    let hub = build::hub("a");
    let open = bench
        .store
        .open_batches(&bench.rollout, &hub, build::ALL_STAGES, 1)
        .await;
    assert_eq!(open.unwrap()[0].held, None);
    // A batch dispatched outside the window is released at once.
    bench.dispatch(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    worker.stopped().await;
    assert_eq!(
        sent(bench.store.tallies(&bench.rollout).await.unwrap()),
        first
    );
}

#[tokio::test(start_paused = true)]
async fn a_throttle_pauses_all_sends_and_loses_no_device() {
    let mut bench = Bench::new(&[2_000]).await;
    bench.limits.sends_per_minute = Some(60_000.0);
    let throttled = SendResult::NotSent {
        cause: NotSent::Throttled,
        retry_after: None,
        detail: "slow down".into(),
    };
    bench.hub.answer_next(vec![throttled; 20]);
    let worker = bench.start();
    let counts = bench.until_settled().await;
    let status = Arc::clone(&worker.status);
    worker.stopped().await;
    assert_eq!(map(&counts), BTreeMap::from([("enqueued", 2_000)]));
    assert_eq!(
        status.hubs().next().unwrap().1.metrics().throttled.get(),
        20
    );
    let sent = bench.hub.sent();
    let pause = sent
        .windows(2)
        .map(|pair| pair[1].at - pair[0].at)
        .max()
        .unwrap();
    assert!(
        pause >= Duration::from_secs(9),
        "the longest silence was {pause:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_become_outcomes() {
    let bench = Bench::new(&[8]).await;
    let device = |index: u32| build::device(&format!("device-0-{index:06}"));
    let fin = |outcome, code| SendResult::Final {
        outcome,
        code,
        detail: "no".into(),
    };
    let busy = SendResult::NotSent {
        cause: NotSent::Refused(500_001),
        retry_after: None,
        detail: "busy".into(),
    };
    let unknown = SendResult::Unknown {
        detail: "lost".into(),
    };
    let cut = SendResult::NotSent {
        cause: NotSent::NoConnection,
        retry_after: None,
        detail: "no line".into(),
    };
    bench
        .hub
        .answer_device(&device(0), [fin(Outcome::NotFound, 0)]);
    bench
        .hub
        .answer_device(&device(1), [fin(Outcome::QueueFull, 0)]);
    bench
        .hub
        .answer_device(&device(2), [fin(Outcome::Refused, 413_001)]);
    bench.hub.answer_device_always(&device(3), busy.clone());
    bench.hub.answer_device_always(&device(4), unknown.clone());
    bench
        .hub
        .answer_device(&device(5), [busy, unknown, cut.clone()]);
    // Without a connection the result says nothing about the message, and such results may go on
    // without limit.
    bench.hub.answer_device(&device(6), vec![cut; 40]);
    let worker = bench.start();
    bench.until_settled().await;
    worker.stopped().await;
    let work = bench.store.load(&bench.rollout, BatchId(0)).await.unwrap();
    let outcomes: Vec<_> = work.outcomes.iter().map(Outcome::as_str).collect();
    assert_eq!(
        outcomes,
        [
            "not_found",
            "queue_full",
            "refused",
            "refused",
            "unknown",
            "enqueued",
            "enqueued",
            "enqueued"
        ]
    );
    assert_eq!(work.codes, [(2, 413_001), (3, 500_001)]);
    let sends = bench.hub.sends_by_device();
    assert_eq!(sends[&device(3)], usize::from(bench.config.tries));
    assert_eq!((sends[&device(5)], sends[&device(6)]), (4, 41));
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_hub_is_retried_after_the_requested_wait() {
    let bench = Bench::new(&[50]).await;
    let unavailable = SendResult::HubUnavailable {
        retry_after: Some(Duration::from_secs(600)),
        reason: "daily quota used up".into(),
        trouble: HubTrouble::Unavailable,
    };
    bench.hub.answer_next([unavailable]);
    let worker = bench.start();
    bench
        .until("49 sent", |c| c.get(Outcome::Enqueued) == 49)
        .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (_, status) = worker.status.hubs().next().unwrap();
    assert!(matches!(
        status.state(),
        HubState::Unavailable {
            trouble: HubTrouble::Unavailable,
            ..
        }
    ));
    let before = Instant::now();
    // The driver redispatches a batch without a holder.
    bench.dispatch(0).await;
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(bench.hub.sends(), 50, "no sends to an unavailable hub");
    bench.until_settled().await;
    assert!(before.elapsed() < Duration::from_secs(620));
    let (_, status) = worker.status.hubs().next().unwrap();
    assert_eq!(status.state(), HubState::Serving);
    worker.stopped().await;
    assert_eq!(bench.hub.sends(), 51);
}

/// Returns the only link report of the worker, and the link's metric.
async fn link(bench: &Bench, metrics: &prometheus::Registry) -> (LinkStatus, Option<f64>) {
    let mut links = bench.store.links(&build::hub("a")).await.unwrap();
    assert_eq!(links.len(), 1, "{links:?}");
    let families = metrics.gather();
    let mut families = families.iter();
    let family = families.find(|family| family.name() == "twincast_hub_link_up");
    let up = family.map(|family| family.get_metric()[0].get_gauge().get_value());
    (links.remove(0), up)
}

#[tokio::test(start_paused = true)]
async fn the_link_state_of_a_hub_is_reported() {
    let mut bench = Bench::new(&[1]).await;
    bench.limits.sends_per_minute = Some(100.0);
    bench.hub.set_ready(false);
    let worker = bench.start();
    let metrics = prometheus::Registry::new();
    worker.status.register(&metrics).unwrap();
    tokio::time::sleep(Duration::from_millis(90_500)).await;
    let (first, up) = link(&bench, &metrics).await;
    let away = LinkState::hindered(HubTrouble::Unreachable, "no route");
    assert_eq!((first.state.clone(), up), (away, Some(0.0)));
    assert_eq!(first.lasting.as_secs(), 90);
    assert!(first.reported_ago <= REPORTED_EVERY + Duration::from_secs(1));
    assert!(LinkObstacle::of(&[first]).is_some());

    bench.hub.set_ready(true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (second, up) = link(&bench, &metrics).await;
    assert_eq!((second.state, up), (LinkState::Open, Some(1.0)));
    bench.until_settled().await;

    worker.stopped().await;
    let (last, _) = link(&bench, &metrics).await;
    assert_eq!(last.state, LinkState::Unused, "the worker has ended");
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_hub_is_reported() {
    let bench = Bench::new(&[1]).await;
    let refusal = SendResult::HubUnavailable {
        retry_after: None,
        reason: "403002".into(),
        trouble: HubTrouble::QuotaUsedUp,
    };
    bench.hub.answer_next([refusal]);
    let worker = bench.start();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let links = bench.store.links(&build::hub("a")).await.unwrap();
    let obstacle = LinkObstacle::of(&links).unwrap();
    assert_eq!(
        obstacle.to_string(),
        "has used up its daily quota, until midnight (UTC): 403002"
    );
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_dispatch_of_a_batch_has_no_effect() {
    let bench = Bench::new(&[400]).await;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(256).await;
    bench.dispatch_all(1).await;
    bench.dispatch_all(1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.hub.release_all();
    bench.until_settled().await;
    bench.dispatch_all(1).await;
    worker.stopped().await;
    assert_eq!(bench.hub.sends(), 400);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_worker_stops_sending_and_recording() {
    let bench = Bench::new(&[400]).await;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(256).await;
    // The same holder may request the lease again at once, which fences the earlier lease.
    let hub = build::hub("a");
    let open = bench
        .store
        .open_batches(&bench.rollout, &hub, build::ALL_STAGES, 1)
        .await;
    let held = open.unwrap().remove(0).held.unwrap();
    let request = build::lease_request(&bench.rollout, 0, held.by.as_str());
    let LeaseReply::Granted(lease) = bench.store.lease(&request).await.unwrap() else {
        panic!("the lease is not granted")
    };
    bench.hub.release_all();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        bench.counts().await.settled(),
        0,
        "nothing is recorded under the old lease"
    );
    assert_eq!(bench.hub.sends(), 256, "no further sends");
    assert!(
        bench
            .store
            .record(&lease, &[], Duration::from_secs(30))
            .await
            .is_ok(),
        "the new lease is still valid"
    );
    worker.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_records_answered_sends_within_the_drain_time() {
    let bench = Bench::new(&[400]).await;
    bench.hub.hold();
    let worker = bench.start();
    bench.hub.arrived(256).await;
    bench.hub.release(100);
    let started = Instant::now();
    worker.stopped().await;
    assert!(started.elapsed() <= bench.config.drain + Duration::from_secs(1));
    assert_eq!(
        map(&bench.counts().await),
        BTreeMap::from([("pending", 300), ("enqueued", 100)])
    );
    assert_eq!(
        bench.queue.depth(&build::hub("a")).await.unwrap().waiting,
        1,
        "the dispatch is requeued"
    );
}

#[tokio::test(start_paused = true)]
async fn batches_of_an_aborted_rollout_are_released() {
    let bench = Bench::new(&[2_000]).await;
    bench.hub.set_delay(Duration::from_secs(1));
    let worker = bench.start();
    bench.hub.arrived(256).await;
    bench.event(build::abort_requested()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sent = bench.hub.sends();
    assert!(sent < 2_000);
    assert_eq!(
        bench
            .store
            .skip(&bench.rollout, BatchId(0), &Skip::Remaining)
            .await
            .unwrap(),
        None,
        "no worker holds the batch"
    );
    let counts = bench.counts().await;
    assert_eq!(
        map(&counts),
        BTreeMap::from([("enqueued", sent as u64), ("skipped", 2_000 - sent as u64)])
    );
    worker.stopped().await;
}
