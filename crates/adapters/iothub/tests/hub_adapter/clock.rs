//! The port against a hub with a clock different from this machine's.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twincast_core::message::{Ack, Content, Outbound};
use twincast_core::ports::{Hub, HubTrouble, SendResult};
use twincast_core::time::Timestamp;
use twincast_emulator::{Fleet, HubConfig, RunningHub};
use twincast_hub_adapter::IotHub;
use twincast_iothub::{ClientOptions, ConnectionString, Credentials, Endpoint, Roots};
use twincast_testkit::build;

const DAY: Duration = Duration::from_secs(86_400);
const QUARTER: Duration = Duration::from_secs(900);

async fn emulated(ahead: Duration, behind: Duration) -> RunningHub {
    let config = HubConfig {
        unlimited: true,
        control_port: None,
        feedback_interval: Duration::from_millis(20),
        clock_ahead: ahead,
        clock_behind: behind,
        ..HubConfig::with_fleet(Fleet::plain(10, "d-{index}").unwrap())
    };
    twincast_emulator::start(config).await.unwrap()
}

fn port(running: &RunningHub, change: impl FnOnce(&mut ClientOptions)) -> IotHub {
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(running.ca_pem().to_owned());
    change(&mut options);
    let connection: ConnectionString = running.connection_string().parse().unwrap();
    IotHub::new(
        connection.address(),
        Credentials::SharedAccess(connection.clone().into()),
        options,
        None,
    )
    .unwrap()
}

async fn send(hub: &IotHub, ttl: Duration) -> SendResult {
    let content = Content {
        body: "hello".into(),
        content_type: None,
        content_encoding: None,
        properties: vec![],
        ttl: Some(ttl),
        ack: Ack::Full,
    };
    let message = Outbound {
        device: build::device("d-1"),
        id: "r.0.0.1".into(),
        content: Arc::new(content),
    };
    hub.send(message).await
}

/// The maximum time to live, a hub with its clock behind, and no known offset: no device counts as
/// failed.
#[tokio::test(flavor = "multi_thread")]
async fn refused_expiry_reports_hub_unavailable() {
    let running = emulated(Duration::ZERO, QUARTER).await;
    let hub = port(&running, |options| {
        options.https = Endpoint {
            port: Some(1),
            ..Endpoint::default()
        };
    });
    let held = send(&hub, 2 * DAY).await;
    let SendResult::HubUnavailable {
        reason, trouble, ..
    } = held
    else {
        panic!("{held:?}");
    };
    assert_eq!(trouble, HubTrouble::Clock);
    assert!(reason.contains("403009"), "{reason}");
    assert!(
        reason.ends_with("read over port 443 of the hub"),
        "{reason}"
    );
    assert_eq!(hub.clock_ahead_ms(), None);
    assert_eq!(send(&hub, DAY).await, SendResult::Enqueued);
}

/// Feedback never counts as newer than it is, for any offset of the hub's clock.
#[tokio::test(flavor = "multi_thread")]
async fn feedback_times_use_the_local_clock() {
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Timestamp(u64::try_from(since.as_millis()).unwrap())
    };
    for (ahead, behind) in [(QUARTER, Duration::ZERO), (Duration::ZERO, QUARTER)] {
        let running = emulated(ahead, behind).await;
        let before = now();
        // On a busy machine, the request for the hub's time may take too long.
        let hub = loop {
            let hub = port(&running, |_| {});
            let sent = send(&hub, DAY).await;
            if hub.clock_ahead_ms().is_some() {
                assert_eq!(sent, SendResult::Enqueued);
                break hub;
            }
        };
        let mut feedback = hub.feedback().unwrap();
        let batch = feedback.next(Duration::from_secs(60)).await.unwrap();
        let enqueued = batch.unwrap().enqueued_at.unwrap();
        assert!(enqueued <= now(), "{ahead:?}");
        let earliest = before.minus(Duration::from_secs(30));
        assert!(enqueued >= earliest, "{ahead:?} {enqueued} {before}");
        let seen = hub.clock_ahead_ms().unwrap().unsigned_abs();
        assert!((870_000..=930_000).contains(&seen), "{seen}");
    }
}
