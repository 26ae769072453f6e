//! Monitoring over HTTP: `/livez` shows that the process runs, `/readyz` whether the process can
//! work now and the current obstacles, and `/metrics` the metrics in Prometheus' text format.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::{ExitCode, Failure};
use crate::http::{ConnectionLimits, Server};

/// Limits on connections: monitoring has few clients.
const CONNECTION_LIMITS: ConnectionLimits = ConnectionLimits {
    total: 256,
    per_peer: 192,
};
/// Time limit for running requests once the process is asked to stop. Short: a half-received
/// request is not worth a longer wait.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Checks a dependency of the process; returns the obstacle, if any.
pub(crate) type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// The dependencies of the process, by name.
pub(crate) type Checks = Vec<(&'static str, Check)>;

/// A server of probes and metrics.
pub(crate) struct Health {
    listener: TcpListener,
    watched: Arc<Watched>,
}

struct Watched {
    checks: Checks,
    registry: Registry,
    /// Per check: 1 while the check passes.
    up: IntGaugeVec,
}

impl Health {
    /// Binds the listener. Answers no request yet.
    pub(crate) async fn bind(
        address: SocketAddr,
        checks: Checks,
        registry: Registry,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (http.listen)"))
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        let up = process_metrics(&registry)
            .context("cannot export metrics")
            .map_err(|error| Failure::new(ExitCode::Unexpected, error))?;
        let watched = Watched {
            checks,
            registry,
            up,
        };
        Ok(Self {
            listener,
            watched: Arc::new(watched),
        })
    }

    /// Returns the listening address.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let router = axum::Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readiness))
            .route("/metrics", get(metrics))
            .with_state(self.watched);
        let server = Server {
            router,
            tls: None,
            limits: CONNECTION_LIMITS,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
        };
        server.serve(self.listener, stop).await;
    }
}

/// Registers the metrics of every process: resources, version, and the state of the dependencies.
fn process_metrics(registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
    let resources = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(resources))?;
    let info = Opts::new("twincast_build_info", "1, with the version as a label.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let info = IntGauge::with_opts(info)?;
    info.set(1);
    registry.register(Box::new(info))?;
    let up = IntGaugeVec::new(
        Opts::new(
            "twincast_up",
            "1 while a dependency of the process can be used: rabbitmq, redis, and the process \
             itself until it is stopping.",
        ),
        &["service"],
    )?;
    registry.register(Box::new(up.clone()))?;
    Ok(up)
}

async fn metrics(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    for (name, check) in &watched.checks {
        let up = watched.up.with_label_values(&[name]);
        up.set(i64::from(check().is_none()));
    }
    let text = TextEncoder::new().encode_to_string(&watched.registry.gather());
    let format = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    match text {
        Ok(text) => Ok((format, text)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn readiness(State(watched): State<Arc<Watched>>) -> (StatusCode, Json<Value>) {
    let obstacles: serde_json::Map<String, Value> = watched
        .checks
        .iter()
        .filter_map(|(name, check)| Some(((*name).to_owned(), check()?.into())))
        .collect();
    if obstacles.is_empty() {
        (StatusCode::OK, Json(json!({"ready": true})))
    } else {
        let answer = json!({"ready": false, "waiting_for": obstacles});
        (StatusCode::SERVICE_UNAVAILABLE, Json(answer))
    }
}
