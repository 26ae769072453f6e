//! Faults through the socket.

use std::time::Duration;

use fe2o3_amqp_types::messaging::Outcome;
use futures::future::join_all;
use twincast_emulator::{Chance, Cut, Faults};

use crate::client::{Cbs, Client, FAR_FUTURE_S, message, plain_hub, rejection, token};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn answers_can_be_other_than_accepted() {
    let hub = plain_hub(10).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    hub.hub().set_faults(Faults {
        released: Chance::next(1),
        modified: Chance::next(1),
        internal_error: Chance::next(1),
        timeout: Chance::next(1),
        throttled: Chance::next(1),
        ..Faults::default()
    });
    let mut outcomes = Vec::new();
    for n in 0..6 {
        outcomes.push(
            sender
                .send(message(&format!("d{n}"), "1", "none"))
                .await
                .unwrap(),
        );
    }
    assert!(matches!(outcomes[0], Outcome::Released(_)), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Modified(_)), "{outcomes:?}");
    assert_eq!(rejection(&outcomes[2]).1, 500_001);
    assert_eq!(rejection(&outcomes[3]).1, 429_001);
    assert_eq!(rejection(&outcomes[4]).1, 408_000);
    assert!(matches!(outcomes[5], Outcome::Accepted(_)), "{outcomes:?}");
    // The timed-out message is enqueued nevertheless.
    let summary = hub.hub().summary();
    assert_eq!(
        (summary.accepted, summary.released, summary.modified),
        (2, 1, 1),
        "{summary:?}"
    );
    assert_eq!(hub.hub().messages("d4").unwrap().len(), 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_lost_answer_leaves_the_message_enqueued() {
    let hub = plain_hub(2).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    hub.hub().set_faults(Faults {
        lost_disposition: Chance::next(1),
        ..Faults::default()
    });
    let lost = sender
        .send_batchable(message("d0", "1", "none"))
        .await
        .unwrap();
    let outcome = sender.send(message("d1", "1", "none")).await.unwrap();
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    assert!(futures::FutureExt::now_or_never(lost).is_none());
    let summary = hub.hub().summary();
    assert_eq!((summary.accepted, summary.lost_dispositions), (2, 1));
    hub.shutdown().await;
}

#[tokio::test]
async fn links_and_connections_end_after_a_set_transfer_count() {
    let cases: [(&str, Faults, u64); 3] = [
        (
            "detach",
            Faults {
                detach_after_transfers: Some(5),
                ..Faults::default()
            },
            5,
        ),
        (
            "close",
            Faults {
                close_after_transfers: Some(5),
                ..Faults::default()
            },
            5,
        ),
        (
            "drop",
            Faults {
                drop_after_transfers: Some(5),
                ..Faults::default()
            },
            5,
        ),
    ];
    for (name, faults, accepted) in cases {
        let hub = plain_hub(100).await;
        let mut client = Client::authorised(&hub).await.unwrap();
        let mut sender = client.commands().await.unwrap();
        hub.hub().set_faults(faults);
        let mut sends = Vec::new();
        for n in 0..20 {
            match sender
                .send_batchable(message(&format!("d{n}"), "1", "none"))
                .await
            {
                Ok(send) => sends.push(send),
                Err(_) => break,
            }
        }
        // The client library never completes sends after the end of the connection, so the test
        // waits for the detach.
        tokio::time::timeout(SOON, sender.on_detach())
            .await
            .expect(name);
        drop(sends);
        let summary = hub.hub().summary();
        assert_eq!(summary.accepted, accepted, "{name}: {summary:?}");
        assert_eq!(
            summary.cut_links + summary.cut_connections,
            1,
            "{name}: {summary:?}"
        );
        if name == "detach" {
            // The connection survives, and accepts a new link.
            let mut sender = client.sender("/messages/deviceBound").await.unwrap();
            let outcome = sender.send(message("d50", "1", "none")).await.unwrap();
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        }
        hub.shutdown().await;
    }
}

#[tokio::test]
async fn all_connections_can_be_cut_at_once() {
    for cut in [Cut::Detach, Cut::Close, Cut::Drop] {
        let hub = plain_hub(1).await;
        let mut client = Client::authorised(&hub).await.unwrap();
        let mut sender = client.commands().await.unwrap();
        hub.hub().cut_connections(cut);
        let ended = tokio::time::timeout(SOON, sender.on_detach())
            .await
            .unwrap();
        if cut == Cut::Detach {
            assert!(format!("{ended:?}").contains("DetachForced"), "{ended:?}");
        }
        let outcome = tokio::time::timeout(SOON, sender.send(message("d0", "1", "none")))
            .await
            .unwrap();
        assert!(outcome.is_err(), "{cut:?}: {outcome:?}");
        hub.shutdown().await;
    }
}

#[tokio::test]
async fn connections_and_tokens_can_be_refused() {
    let hub = plain_hub(1).await;
    hub.hub().set_faults(Faults {
        refuse_connections: true,
        ..Faults::default()
    });
    assert!(Client::connect(&hub).await.is_err());
    hub.hub().set_faults(Faults {
        refuse_cbs: true,
        ..Faults::default()
    });
    let mut client = Client::connect(&hub).await.unwrap();
    let mut cbs = Cbs::attach(&mut client).await.unwrap();
    assert_eq!(
        cbs.put(&token(&hub, "service", FAR_FUTURE_S))
            .await
            .unwrap(),
        401
    );
    hub.hub().set_faults(Faults {
        quota_exhausted: true,
        ..Faults::default()
    });
    assert_eq!(
        cbs.put(&token(&hub, "service", FAR_FUTURE_S))
            .await
            .unwrap(),
        200
    );
    let mut sender = client.commands().await.unwrap();
    let outcome = sender.send(message("d0", "1", "none")).await.unwrap();
    assert_eq!(
        rejection(&outcome),
        ("com.microsoft:quota-exceeded".to_owned(), 403_002)
    );
    hub.shutdown().await;
}

#[tokio::test]
async fn answers_can_be_slow_and_still_complete() {
    let hub = plain_hub(400).await;
    let mut client = Client::authorised(&hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    hub.hub().set_faults(Faults {
        disposition_delay_ms: 300,
        ..Faults::default()
    });
    let started = std::time::Instant::now();
    let mut sends = Vec::new();
    for n in 0..400 {
        sends.push(
            sender
                .send_batchable(message(&format!("d{n}"), "1", "none"))
                .await
                .unwrap(),
        );
    }
    let outcomes = tokio::time::timeout(SOON, join_all(sends)).await.unwrap();
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Ok(Outcome::Accepted(_))))
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(hub.hub().summary().accepted, 400);
    hub.shutdown().await;
}
