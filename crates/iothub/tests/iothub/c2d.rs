//! Sending over real sockets: every fault of the hub, and the promise of exactly one outcome per
//! send.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use tokio::time::timeout;
use twincast_emulator::{Chance, Cut, Faults, Fleet};
use twincast_iothub::{
    Ack, C2dMessage, C2dSender, C2dTemplate, C2dTemplateBuilder, Client, ConnectError,
    ConnectionFailure, Disposition, Expiry, HubUnavailableReason, LinkState, NotSent, Roots,
    SendOutcome,
};

use crate::common::{
    Tally, client, client_with, config, hub, message, options, template, until_opened,
};

/// Longer than any test here takes; turns a hang into a failure.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

async fn send_all(sender: &C2dSender, count: u64, in_flight: usize) -> Tally {
    let template = template();
    let sends = stream::iter(0..count)
        .map(|i| sender.send(message(&template, i % 100, i)))
        .buffer_unordered(in_flight);
    let all = sends.fold(Tally::default(), |mut tally, outcome| async move {
        tally.add(&outcome);
        tally
    });
    timeout(TEST_TIMEOUT, all).await.expect("the sends end")
}

/// On a busy machine, a sender with a short time limit may fail more often than planned.
async fn send_until_accepted(sender: &C2dSender) {
    let template = template();
    let accepted = async {
        let mut id = 1_000;
        while !sender.send(message(&template, 1, id)).await.is_accepted() {
            id += 1;
        }
    };
    timeout(TEST_TIMEOUT, accepted)
        .await
        .expect("a message is accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_accepted_by_a_healthy_hub() {
    let hub = hub(100, Faults::default()).await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let tally = send_all(&sender, 5_000, 256).await;
    assert_eq!(
        tally,
        Tally {
            accepted: 5_000,
            ..Tally::default()
        }
    );
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.accepted, summary.repeats_by_message_id),
        (5_000, 0)
    );
    timeout(TEST_TIMEOUT, sender.close()).await.unwrap();
}

/// The size computed before a send is never below the hub's count, and hardly above.
#[tokio::test(flavor = "multi_thread")]
async fn only_messages_up_to_the_size_limit_are_sent() {
    let config = twincast_emulator::HubConfig {
        fleet: Fleet::plain(1, "d%-{index}").unwrap(),
        ..config(1, Faults::default())
    };
    let hub = twincast_emulator::start(config).await.unwrap();
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    type Made = fn(Vec<u8>) -> C2dTemplateBuilder;
    let kinds: [Made; 4] = [
        |body| C2dTemplate::builder(body),
        |body| {
            C2dTemplate::builder(body)
                .ack(Ack::Positive)
                .expiry(Expiry::After(TEST_TIMEOUT))
        },
        |body| {
            let made = C2dTemplate::builder(body).content_type("application/json");
            made.content_encoding("utf-8")
                .correlation_id("c".repeat(300))
        },
        |body| {
            let made = (0..40).fold(C2dTemplate::builder(body), |made, n| {
                made.property(format!("name-{n}"), "v".repeat(n * 20))
            });
            made.ack(Ack::Full)
        },
    ];
    for (n, kind) in kinds.iter().enumerate() {
        let made = |bytes: usize| {
            let template = kind(vec![b'x'; bytes]).build().ok()?;
            C2dMessage::new("d%-0", format!("r.{n}.zz.1"), template).ok()
        };
        let fits = |bytes: &usize| made(*bytes).is_some();
        let largest = (40_000..65_536).rev().find(fits).unwrap();
        let outcome = sender.send(made(largest).unwrap()).await;
        assert!(outcome.is_accepted(), "{n}: {largest}: {outcome}");
        assert_eq!(made(largest + 1), None);
    }
    assert_eq!(hub.hub().summary().refused_other, 0);
    sender.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_frames_without_next_incoming_id_do_not_stall_the_session() {
    let faults = Faults {
        flow_without_next_incoming_id: true,
        ..Faults::default()
    };
    let hub = hub(100, faults).await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let tally = send_all(&sender, 21_000, 256).await;
    assert_eq!(
        tally,
        Tally {
            accepted: 21_000,
            ..Tally::default()
        }
    );
    assert_eq!(hub.hub().summary().accepted, 21_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_link_or_connection_affects_only_sends_in_flight() {
    let after = Some(700);
    for faults in [
        Faults {
            detach_after_transfers: after,
            ..Faults::default()
        },
        Faults {
            close_after_transfers: after,
            ..Faults::default()
        },
        Faults {
            drop_after_transfers: after,
            ..Faults::default()
        },
    ] {
        let hub = hub(100, faults.clone()).await;
        let sender = C2dSender::connect(&client(&hub)).await.unwrap();
        let tally = send_all(&sender, 3_000, 64).await;
        assert_eq!(tally.sum(), 3_000, "{faults:?}");
        assert_eq!(
            tally.accepted + tally.unknown,
            3_000,
            "{tally:?} {faults:?}"
        );
        // At least three losses; each leaves at most the deliveries in flight unknown.
        assert!(tally.unknown <= 6 * 64, "{tally:?} {faults:?}");
        let summary = hub.hub().summary();
        assert!(summary.accepted >= tally.accepted, "{faults:?}");
        assert!(
            summary.accepted <= tally.accepted + tally.unknown,
            "{faults:?}"
        );
        assert_eq!(
            summary.repeats_by_message_id, 0,
            "a message was sent twice: {faults:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_reconnects_after_an_inactivity_close() {
    let hub = hub(100, Faults::default()).await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    hub.hub().set_faults(Faults {
        idle_close_ms: Some(150),
        ..Faults::default()
    });
    let mut state = sender.state();
    let lost = |s: &LinkState| {
        matches!(
            s,
            LinkState::Reconnecting {
                last_error: Some(_),
                ..
            }
        )
    };
    timeout(TEST_TIMEOUT, state.wait_for(lost))
        .await
        .unwrap()
        .unwrap();
    hub.hub().set_faults(Faults::default());
    let tally = send_all(&sender, 200, 16).await;
    assert_eq!(tally.accepted + tally.unknown, 200);
    assert!(tally.accepted > 0);
}

/// Delays doubling over so many losses would far exceed the test's time-out.
#[tokio::test(flavor = "multi_thread")]
async fn reconnect_delays_do_not_grow_after_served_connections() {
    let losses = 16;
    let hub = hub(100, Faults::default()).await;
    let mut options = options(&hub);
    let (first, longest) = (Duration::from_millis(100), Duration::from_secs(3600));
    options.reconnect = twincast_retry::Policy::new(first, longest).unwrap();
    let sender = C2dSender::connect(&client_with(&hub, options))
        .await
        .unwrap();
    let template = template();
    let again_and_again = async {
        for loss in 0..losses {
            // The link is used for longer than the longest first delay.
            let mut began = None;
            while began.is_none_or(|began: Instant| began.elapsed() < first) {
                let accepted = sender.send(message(&template, 1, loss)).await.is_accepted();
                assert!(accepted, "{loss}");
                began.get_or_insert_with(Instant::now);
            }
            let opened = hub.hub().summary().link_opens;
            hub.hub().cut_connections(Cut::Drop);
            until_opened(&hub, opened + 1).await;
        }
    };
    timeout(TEST_TIMEOUT, again_and_again)
        .await
        .expect("the waits stay short");
    assert_eq!(hub.hub().summary().link_opens, losses + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn released_and_temporarily_refused_messages_are_retriable() {
    let share = || Chance::share(0.25);
    let faults = Faults {
        released: share(),
        modified: share(),
        internal_error: share(),
        ..Faults::default()
    };
    let hub = hub(100, faults).await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let tally = send_all(&sender, 1_000, 64).await;
    assert_eq!(tally.accepted, hub.hub().summary().accepted);
    assert_eq!(tally.accepted + tally.retry, 1_000, "{tally:?}");
    assert!(tally.retry > 300, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_slows_down_and_a_timeout_of_the_hub_leaves_unknown() {
    let hub = hub(
        100,
        Faults {
            throttled: Chance::next(1),
            timeout: Chance::default(),
            ..Faults::default()
        },
    )
    .await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let outcome = sender.send(message(&template(), 1, 1)).await;
    let slow = Disposition::SlowHubDown {
        retry_after: Duration::from_secs(10),
    };
    assert_eq!(outcome.disposition(), slow, "{outcome}");
    hub.hub().set_faults(Faults {
        timeout: Chance::next(1),
        ..Faults::default()
    });
    let outcome = sender.send(message(&template(), 1, 2)).await;
    assert_eq!(outcome.disposition(), Disposition::Unknown, "{outcome}");
    hub.hub().set_faults(Faults {
        quota_exhausted: true,
        ..Faults::default()
    });
    let outcome = sender.send(message(&template(), 1, 3)).await;
    let Disposition::HubUnavailable { reason, until } = outcome.disposition() else {
        panic!("{outcome}")
    };
    assert_eq!(reason, HubUnavailableReason::DailyQuota);
    assert!(until.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_device_is_permanent() {
    let hub = hub(10, Faults::default()).await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let outcome = sender.send(message(&template(), 9_999, 1)).await;
    let expected = Disposition::PermanentForDevice(twincast_iothub::DeviceReason::NotFound);
    assert_eq!(outcome.disposition(), expected, "{outcome}");
}

async fn with_lost_answers(send_timeout: Duration) -> Tally {
    let hub = hub(
        100,
        Faults {
            lost_disposition: Chance::next(20),
            ..Faults::default()
        },
    )
    .await;
    let mut options = options(&hub);
    options.send_timeout = send_timeout;
    options.max_in_flight = 64;
    let sender = C2dSender::connect(&client_with(&hub, options))
        .await
        .unwrap();
    send_all(&sender, 1_000, 64).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_end_as_unknown_and_do_not_hold_slots() {
    let expected = Tally {
        accepted: 980,
        unknown: 20,
        ..Tally::default()
    };
    // On a busy machine, other answers may also be too late.
    if with_lost_answers(Duration::from_millis(1_500)).await != expected {
        assert_eq!(with_lost_answers(Duration::from_secs(20)).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_disconnects_from_a_silent_hub() {
    let hub = hub(
        100,
        Faults {
            lost_disposition: Chance::share(1.0),
            ..Faults::default()
        },
    )
    .await;
    let mut options = options(&hub);
    options.stall_timeout = Duration::from_millis(300);
    let sender = C2dSender::connect(&client_with(&hub, options))
        .await
        .unwrap();
    let outcome = timeout(TEST_TIMEOUT, sender.send(message(&template(), 1, 1)))
        .await
        .unwrap();
    let SendOutcome::Unknown(twincast_iothub::UnknownCause::Disconnected(failure)) = outcome else {
        panic!("{outcome}");
    };
    assert!(
        matches!(*failure, ConnectionFailure::Stalled(_)),
        "{failure}"
    );
    hub.hub().set_faults(Faults::default());
    send_until_accepted(&sender).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_reported_and_retried() {
    let hub = hub(100, Faults::default()).await;
    let mut options = options(&hub);
    options.leave_timeout = Duration::from_millis(500);
    let sender = C2dSender::connect(&client_with(&hub, options))
        .await
        .unwrap();
    hub.hub().set_faults(Faults {
        refuse_connections: true,
        ..Faults::default()
    });
    hub.hub().cut_connections(Cut::Drop);
    let mut state = sender.state();
    let trying = |s: &LinkState| matches!(s, LinkState::Reconnecting { attempts: 2.., .. });
    timeout(TEST_TIMEOUT, state.wait_for(trying))
        .await
        .unwrap()
        .unwrap();
    let outcome = timeout(TEST_TIMEOUT, sender.send(message(&template(), 1, 1)))
        .await
        .unwrap();
    assert!(
        matches!(
            outcome,
            SendOutcome::NotSent(NotSent::Timeout {
                connection: Some(_)
            })
        ),
        "{outcome}"
    );
    hub.hub().set_faults(Faults::default());
    assert!(
        timeout(
            TEST_TIMEOUT,
            state.wait_for(|s| matches!(s, LinkState::Connected))
        )
        .await
        .is_ok()
    );
    send_until_accepted(&sender).await;
    assert_eq!(
        hub.hub().summary().accepted,
        1,
        "a message that was not sent arrived"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_not_tried_again() {
    let hub = hub(
        10,
        Faults {
            refuse_cbs: true,
            ..Faults::default()
        },
    )
    .await;
    let error = C2dSender::connect(&client(&hub)).await.unwrap_err();
    assert!(
        matches!(error, ConnectionFailure::Unauthorised { status: 401, .. }),
        "{error}"
    );
    let sender = C2dSender::start(&client(&hub));
    let outcome = timeout(TEST_TIMEOUT, sender.send(message(&template(), 1, 1)))
        .await
        .unwrap();
    let unavailable = Disposition::HubUnavailable {
        reason: HubUnavailableReason::Unauthorised,
        until: None,
    };
    assert_eq!(outcome.disposition(), unavailable, "{outcome}");
    assert!(matches!(*sender.state().borrow(), LinkState::Failed(_)));
    let outcome = sender.send(message(&template(), 1, 2)).await;
    assert_eq!(outcome.disposition(), unavailable, "{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_port_and_name_errors_are_distinguished() {
    let hub = hub(10, Faults::default()).await;
    let connect = async |client: Client| match C2dSender::connect(&client).await.unwrap_err() {
        ConnectionFailure::Connect(error) => error,
        other => panic!("{other}"),
    };
    let made = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
    let mut foreign = options(&hub);
    foreign.roots = Roots::Only(made.cert.pem());
    let error = connect(client_with(&hub, foreign)).await;
    assert!(
        matches!(error, ConnectError::UnknownIssuer { .. }),
        "{error:?}"
    );

    let mut refused = options(&hub);
    refused.amqp.port = Some(1);
    refused.transport = twincast_iothub::Transport::Amqp;
    let error = connect(client_with(&hub, refused)).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");

    let key = twincast_iothub::Secret::new("c2VjcmV0");
    let elsewhere =
        twincast_iothub::ConnectionString::new("other.example.net", "service", key).unwrap();
    let mut named = options(&hub);
    named.amqp.host = Some("127.0.0.1".into());
    named.amqp.port = Some(hub.amqp_addr().port());
    let error = connect(Client::new(&elsewhere, named.clone()).unwrap()).await;
    assert!(matches!(error, ConnectError::WrongName { .. }), "{error:?}");

    named.amqp.host = Some("no-such-host.invalid".into());
    let error = connect(Client::new(&elsewhere, named).unwrap()).await;
    assert!(matches!(error, ConnectError::Dns { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_for_deliveries_in_flight() {
    let delay = Duration::from_millis(300);
    let hub = hub(
        100,
        Faults {
            disposition_delay_ms: 300,
            ..Faults::default()
        },
    )
    .await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let template = template();
    let sends = || stream::iter(0..50).map(|i| sender.send(message(&template, i, i)));
    let outcomes: Vec<_> = sends().buffer_unordered(50).collect().await;
    for outcome in outcomes {
        assert!(outcome.is_accepted(), "{outcome}");
    }
    let began = Instant::now();
    let all_arrived = async {
        while hub.hub().summary().accepted < 100 {
            tokio::task::yield_now().await;
        }
    };
    // The callers go away while the hub has not answered.
    tokio::select! {
        () = all_arrived => {}
        answered = sends().buffer_unordered(50).count() => assert_eq!(answered, 50),
    }
    timeout(TEST_TIMEOUT, sender.close()).await.unwrap();
    assert!(
        began.elapsed() >= delay,
        "the sender closed before the hub's answers"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_span_frames() {
    let hub = hub(
        100,
        Faults {
            flow_without_next_incoming_id: true,
            ..Faults::default()
        },
    )
    .await;
    let sender = C2dSender::connect(&client(&hub)).await.unwrap();
    let template = twincast_iothub::C2dTemplate::builder(vec![7; 65_000])
        .build()
        .unwrap();
    let sends = stream::iter(0..500)
        .map(|i| sender.send(message(&template, i % 100, i)))
        .buffer_unordered(32);
    let accepted = sends
        .filter(|o| std::future::ready(o.is_accepted()))
        .count();
    assert_eq!(timeout(TEST_TIMEOUT, accepted).await.unwrap(), 500);
}
