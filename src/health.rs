//! Probes over HTTP: `/livez` says that the process runs, `/readyz` whether it can do its work
//! now, and what stands in the way.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::exit::{ExitCode, Failure};

/// Asks one thing that the process needs; gives what is wrong with it.
pub(crate) type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What the process needs, each under its name.
pub(crate) type Checks = Vec<(&'static str, Check)>;

/// A server of probes, until `stop`.
pub(crate) struct Health {
    listener: TcpListener,
    checks: Arc<Checks>,
}

impl Health {
    /// Listens; nothing is answered yet.
    pub(crate) async fn bind(address: SocketAddr, checks: Checks) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (http.listen)"))
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        Ok(Self {
            listener,
            checks: Arc::new(checks),
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`.
    pub(crate) async fn serve(self, stop: CancellationToken) -> std::io::Result<()> {
        let router = axum::Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readiness))
            .with_state(self.checks);
        axum::serve(self.listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}

async fn readiness(State(checks): State<Arc<Checks>>) -> (StatusCode, Json<Value>) {
    let troubles: serde_json::Map<String, Value> = checks
        .iter()
        .filter_map(|(name, check)| Some(((*name).to_owned(), check()?.into())))
        .collect();
    if troubles.is_empty() {
        (StatusCode::OK, Json(json!({"ready": true})))
    } else {
        let answer = json!({"ready": false, "waiting_for": troubles});
        (StatusCode::SERVICE_UNAVAILABLE, Json(answer))
    }
}
