//! For whoever watches the process, over HTTP: `/livez` says that it runs, `/readyz` whether it can do
//! its work now and what stands in the way, `/metrics` what it counts, in Prometheus' text format.

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

use crate::exit::{ExitCode, Failure};
use crate::http::{Bounds, Server};

/// Connections at the most: there are few who watch.
const BOUNDS: Bounds = Bounds {
    most: 256,
    most_of_one: 192,
};
/// How long requests under way may take when the process is to stop: nobody is left to wait for half a request.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Asks one thing that the process needs; gives what is wrong with it.
pub(crate) type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What the process needs, each under its name.
pub(crate) type Checks = Vec<(&'static str, Check)>;

/// A server of probes and metrics, until `stop`.
pub(crate) struct Health {
    listener: TcpListener,
    watched: Arc<Watched>,
}

struct Watched {
    checks: Checks,
    registry: Registry,
    /// By check: 1 while nothing is wrong.
    up: IntGaugeVec,
}

impl Health {
    /// Listens; nothing is answered yet.
    pub(crate) async fn bind(
        address: SocketAddr,
        checks: Checks,
        registry: Registry,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (http.listen)"))
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        let up = of_the_process(&registry)
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

    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let router = axum::Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readiness))
            .route("/metrics", get(metrics))
            .with_state(self.watched);
        let server = Server {
            router,
            tls: None,
            bounds: BOUNDS,
            last_requests: LAST_REQUESTS,
        };
        server.serve(self.listener, stop).await;
    }
}

/// What every process exports: its resources, its version, and what it needs.
fn of_the_process(registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
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
            "1 while what the process needs can be used: rabbitmq, redis, and the process itself until it is stopping.",
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
    let troubles: serde_json::Map<String, Value> = watched
        .checks
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
