//! A machine clock different from the hub's: messages and tokens expire by the hub's clock.

use std::sync::Arc;
use std::time::Duration;

use twincast_emulator::{Faults, HubConfig, RunningHub};
use twincast_iothub::{
    C2dSender, C2dTemplate, Client, ConnectionFailure, Endpoint, Expiry, MAX_TTL, SendOutcome,
};

use crate::common::{client, client_with, config, message, options};

const HOUR: Duration = Duration::from_secs(3_600);

/// A hub with its clock ahead or behind.
async fn hub(ahead: Duration, behind: Duration) -> RunningHub {
    let config = HubConfig {
        clock_ahead: ahead,
        clock_behind: behind,
        ..config(10, Faults::default())
    };
    twincast_emulator::start(config).await.unwrap()
}

/// Connects with new clients until one knows the hub's time: on a busy machine, the request for the
/// time may take too long.
async fn connect(new_client: impl Fn() -> Client) -> Result<C2dSender, ConnectionFailure> {
    loop {
        let client = new_client();
        let sender = C2dSender::connect(&client).await;
        if client.clock_offset().is_some() {
            return sender;
        }
    }
}

fn living(ttl: Duration) -> Arc<C2dTemplate> {
    let template = C2dTemplate::builder("hello").expiry(Expiry::After(ttl));
    template.build().unwrap()
}

async fn send(sender: &C2dSender, template: &Arc<C2dTemplate>, id: u64) -> SendOutcome {
    sender.send(message(template, id % 10, id)).await
}

/// Waits until the hub is done with all accepted messages; returns the numbers of delivered and
/// expired messages.
async fn ends(hub: &RunningHub) -> (u64, u64) {
    loop {
        let summary = hub.hub().summary();
        if summary.pending == 0 {
            return (summary.delivered, summary.expired);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_tokens_expire_by_the_hubs_clock() {
    let zero = Duration::ZERO;
    for (ahead, behind) in [
        (zero, zero),
        (Duration::from_secs(180), zero),
        (zero, Duration::from_secs(180)),
        (3 * HOUR, zero),
        (zero, 3 * HOUR),
        (Duration::from_millis(50), zero),
        (zero, Duration::from_millis(50)),
    ] {
        let hub = hub(ahead, behind).await;
        let sender = connect(|| client(&hub)).await.unwrap();
        for (id, ttl) in [(1, Duration::from_secs(120)), (2, MAX_TTL)] {
            let outcome = send(&sender, &living(ttl), id).await;
            assert!(outcome.is_accepted(), "{ahead:?} {behind:?}: {outcome}");
        }
        assert_eq!(ends(&hub).await, (2, 0), "{ahead:?} {behind:?}");
        sender.close().await;
    }
}

/// Even the response to a rejected token carries the hub's time.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_succeeds_with_any_clock_offset() {
    for (ahead, behind) in [(3 * HOUR, Duration::ZERO), (Duration::ZERO, 3 * HOUR)] {
        let hub = hub(ahead, behind).await;
        let client = client(&hub);
        let mut pages = client.query("SELECT deviceId FROM devices", 100).unwrap();
        let page = pages.next_page().await.unwrap().unwrap();
        assert_eq!(page.items.len(), 10);
        let seen = client.clock_offset().unwrap().nearest();
        let meant = i64::try_from((ahead + behind).as_millis()).unwrap();
        let meant = if behind.is_zero() { meant } else { -meant };
        assert!((meant - seen).abs() < 30_000, "{seen}");
    }
}

/// A client of a hub, with the HTTPS port blocked.
fn without_https(hub: &RunningHub) -> Client {
    let mut options = options(hub);
    options.https = Endpoint {
        port: Some(1),
        ..Endpoint::default()
    };
    client_with(hub, options)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_offset_within_the_margin_is_harmless() {
    for ahead in [Duration::ZERO, Duration::from_secs(30)] {
        let hub = hub(ahead, Duration::from_secs(30).saturating_sub(ahead)).await;
        let client = without_https(&hub);
        let sender = C2dSender::connect(&client).await.unwrap();
        assert_eq!(client.clock_offset(), None);
        let outcome = send(&sender, &living(MAX_TTL), 1).await;
        assert!(outcome.is_accepted(), "{outcome}");
        sender.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_error_reports_the_clock_offset() {
    let hub = hub(3 * HOUR, Duration::ZERO).await;
    let connection = hub.connection_string();
    let (head, _) = connection.split_once("SharedAccessKey=").unwrap();
    let wrong = format!("{head}SharedAccessKey=c2VjcmV0").parse().unwrap();
    let refused = connect(|| Client::new(&wrong, options(&hub)).unwrap()).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("this machine's clock is 10"), "{error}");
    assert!(error.contains(" s behind the hub's"), "{error}");
}
