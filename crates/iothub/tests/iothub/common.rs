//! A hub emulator on a loopback socket, and a client for the emulator.

pub(crate) mod entra;
pub(crate) mod proxy;

use std::sync::Arc;
use std::time::Duration;

use twincast_emulator::{Faults, Fleet, HubConfig, RunningHub};
use twincast_iothub::{
    C2dMessage, C2dTemplate, Client, ClientOptions, ConnectionString, Disposition, Roots,
    SendOutcome,
};

/// A hub with `devices` devices `d-0`, `d-1`, …, without quotas.
pub(crate) fn config(devices: u32, faults: Faults) -> HubConfig {
    HubConfig {
        unlimited: true,
        amqp_port: 0,
        https_port: 0,
        control_port: None,
        queue_depth: 1_000_000,
        faults,
        ..HubConfig::with_fleet(Fleet::plain(devices, "d-{index}").unwrap())
    }
}

pub(crate) async fn hub(devices: u32, faults: Faults) -> RunningHub {
    twincast_emulator::start(config(devices, faults))
        .await
        .unwrap()
}

/// Waits until the hub has opened this many links since its start.
pub(crate) async fn until_opened(hub: &RunningHub, links: u64) {
    while hub.hub().summary().link_opens < links {
        tokio::task::yield_now().await;
    }
}

/// Test options: the hub's certificate authority, and short reconnect delays.
pub(crate) fn options(hub: &RunningHub) -> ClientOptions {
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.reconnect =
        twincast_retry::Policy::new(Duration::from_millis(1), Duration::from_millis(20)).unwrap();
    options
}

pub(crate) fn client_with(hub: &RunningHub, options: ClientOptions) -> Client {
    let connection: ConnectionString = hub.connection_string().parse().unwrap();
    Client::new(&connection, options).unwrap()
}

pub(crate) fn client(hub: &RunningHub) -> Client {
    client_with(hub, options(hub))
}

pub(crate) fn template() -> Arc<C2dTemplate> {
    C2dTemplate::builder("hello")
        .property("colour", "red")
        .build()
        .unwrap()
}

pub(crate) fn message(template: &Arc<C2dTemplate>, device: u64, id: u64) -> C2dMessage {
    C2dMessage::new(
        format!("d-{device}"),
        format!("m-{id}"),
        Arc::clone(template),
    )
    .unwrap()
}

/// Number of outcomes by kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) accepted: u64,
    pub(crate) retry: u64,
    pub(crate) unknown: u64,
    pub(crate) permanent: u64,
    pub(crate) other: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: &SendOutcome) {
        match outcome.disposition() {
            Disposition::Accepted => self.accepted += 1,
            Disposition::Retry => self.retry += 1,
            Disposition::Unknown => self.unknown += 1,
            Disposition::PermanentForDevice(_) => self.permanent += 1,
            _ => self.other += 1,
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.accepted + self.retry + self.unknown + self.permanent + self.other
    }
}
