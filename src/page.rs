//! The live page and the HTTP API of an engine in this process, for whoever is on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_orchestrator::http::auth::Door;
use twincast_orchestrator::http::{Api, TIME};

use crate::config::Settings;
use crate::engine::Engine;
use crate::exit::Failure;
use crate::http::{Bounds, Server};

/// Connections at the most.
const BOUNDS: Bounds = Bounds {
    most: 64,
    most_of_one: 64,
};
/// How long requests under way may take at the end.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// A page that is served.
pub(crate) struct Page {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Page {
    /// Serves the rollouts of an engine's store on a free port of the loopback interface.
    pub(crate) async fn open(engine: &Engine, settings: &Settings) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("cannot listen for the page")?;
        let address = listener.local_addr()?;
        let hubs = &engine.driver.hubs;
        let api = Api {
            store: Arc::clone(&engine.store) as _,
            queue: Some(Arc::clone(&engine.driver.queue)),
            limits: hubs
                .iter()
                .map(|(name, hub)| (name.clone(), hub.limits))
                .collect(),
            hubs: hubs.clone(),
            intake: Arc::new(engine.intake(settings)),
            letters: None,
            door: Arc::new(Door::Open),
            status: Arc::default(),
            time: TIME,
        };
        let server = Server {
            router: api.router(),
            tls: None,
            bounds: BOUNDS,
            last_requests: LAST_REQUESTS,
        };
        let stop = CancellationToken::new();
        Ok(Self {
            address,
            serving: tokio::spawn(server.serve(listener, stop.clone())),
            stop,
        })
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes no more requests, and lets those under way end.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        _ = self.serving.await;
    }
}
