//! The adapter on a real RabbitMQ, shared by all tests that do not disrupt the broker.

mod addresses;
mod broker;
mod commands;
mod conformance;
mod connecting;
mod counting;
mod dead_letters;
mod dispatches;
mod events;
mod losing;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use twincast_amqp::{Amqp, ConnectError, Settings, State};
use twincast_core::error::describe;
use twincast_core::ids::{BatchId, HubName, RolloutName};
use twincast_core::ports::{Deliveries, Delivery, Dispatch};
use twincast_retry::Policy;
use twincast_secret::SecretSource;
use twincast_testkit::services::RabbitMq;

/// The time limit of every wait. No test waits for the limit to pass.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The time limit of a single operation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns settings with unique names, for a broker that is running or about to run.
fn settings(url: &str) -> Settings {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let reconnect = Policy::new(Duration::from_millis(20), Duration::from_millis(500));
    Settings {
        prefix: format!("test{number}"),
        connection_name: format!("test {number}"),
        reconnect: reconnect.expect("the delays ascend"),
        connect_timeout: PATIENCE,
        publish_timeout: PATIENCE,
        ..Settings::new(SecretSource::Fixed(url.into()))
    }
}

/// Opens a connection to the shared broker with unique names, and returns the prefix.
async fn amqp() -> (Amqp, String) {
    let settings = settings(&RabbitMq::shared().await.url());
    let prefix = settings.prefix.clone();
    (connect(settings).await, prefix)
}

async fn connect(settings: Settings) -> Amqp {
    Amqp::connect(settings)
        .await
        .expect("the broker is reachable")
}

async fn refused(settings: Settings) -> ConnectError {
    in_time(Amqp::connect(settings))
        .await
        .expect_err("the connection is refused")
}

/// Returns an error with all causes, and all other visible representations of the error.
fn shown(error: &ConnectError) -> String {
    format!("{} {error:?} {error:#?}", describe(error))
}

async fn in_time<T>(happens: impl Future<Output = T>) -> T {
    let happens = tokio::time::timeout(TIMEOUT, happens).await;
    happens.expect("the future resolves in time")
}

async fn until(amqp: &Amqp, is: impl FnMut(&State) -> bool) {
    let mut state = amqp.state();
    in_time(state.wait_for(is))
        .await
        .expect("the state is still reported");
}

async fn until_connected(amqp: &Amqp) {
    until(amqp, |state| *state == State::Connected).await;
}

async fn until_lost(amqp: &Amqp) {
    until(amqp, |state| matches!(state, State::Reconnecting { .. })).await;
}

fn hub() -> HubName {
    HubName::new("eu").expect("a name")
}

fn dispatch(batch: u32) -> Dispatch {
    Dispatch {
        rollout: RolloutName::new("r").expect("a name"),
        batch: BatchId(batch),
        hub: hub(),
    }
}

async fn next(consumer: &mut Box<dyn Deliveries>) -> Delivery {
    in_time(consumer.next()).await.expect("a dispatch")
}
