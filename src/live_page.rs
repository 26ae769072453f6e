//! The live page and the HTTP API of an engine in this process, for users of this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_orchestrator::http::auth::Access;
use twincast_orchestrator::http::{Api, REQUEST_TIMEOUT};

use crate::config::Settings;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::http::{ConnectionLimits, Server};

/// Limits on connections.
const CONNECTION_LIMITS: ConnectionLimits = ConnectionLimits {
    total: 64,
    per_peer: 64,
};
/// Time limit for running requests at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A served page.
pub(crate) struct LivePage {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl LivePage {
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
            executor: Arc::new(engine.command_executor(settings)),
            dead_letters: None,
            access: Arc::new(Access::Anonymous),
            status: Arc::default(),
            request_timeout: REQUEST_TIMEOUT,
        };
        let server = Server {
            router: api.router(),
            tls: None,
            limits: CONNECTION_LIMITS,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
        };
        let stop = CancellationToken::new();
        Ok(Self {
            address,
            serving: tokio::spawn(server.serve(listener, stop.clone())),
            stop,
        })
    }

    /// Returns the URL of the page.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops taking requests, and lets running requests finish.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        _ = self.serving.await;
    }
}
