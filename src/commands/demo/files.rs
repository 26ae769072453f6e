//! Builds of the firmware, signed, and the file server that devices fetch them from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_agent::envelope::{self, SecretKey};
use twincast_agent::manifest::{Artifact, Manifest, SCHEMA};

/// Bytes of a build, about.
const SIZE: usize = 200_000;

/// A build: a script that its device's health check runs.
pub(super) fn script(version: &str, works: bool) -> String {
    let check = match works {
        true => "echo compressor and door sensor answer",
        false => "echo the door sensor does not answer\nexit 1",
    };
    let filling = "# what else a firmware has\n".repeat(SIZE / 27);
    format!("#!/bin/sh\n# fridge firmware {version}\n{check}\nexit 0\n{filling}")
}

/// What the file server has, by name.
type Files = Arc<BTreeMap<String, Bytes>>;

/// A file server on this machine.
pub(super) struct FileServer {
    address: SocketAddr,
    files: Files,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl FileServer {
    /// Serves these builds: versions, and whether they work.
    pub(super) async fn start(builds: &[(&str, bool)]) -> anyhow::Result<Self> {
        let files = builds.iter().map(|(version, works)| {
            let build = script(version, *works);
            ((*version).to_owned(), Bytes::from(build))
        });
        let files: Files = Arc::new(files.collect());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.context("cannot start a file server")?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/{version}", get(file))
            .with_state(Arc::clone(&files));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            let server =
                axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
            if let Err(error) = server.await {
                tracing::warn!(error = %error, "the file server has ended");
            }
        });
        Ok(Self {
            address,
            files,
            stop,
            serving,
        })
    }

    /// The message of an update to a version, signed.
    pub(super) fn signed(&self, version: &str, key: &SecretKey) -> anyhow::Result<Value> {
        let build = self.files.get(version).context("there is no such build")?;
        let manifest = Manifest {
            schema: SCHEMA,
            name: "fridge-firmware".to_owned(),
            version: version.to_owned(),
            hardware: Some(vec!["fridge-a".to_owned()]),
            artifact: Artifact {
                url: format!("http://{}/{version}", self.address),
                size: build.len() as u64,
                sha256: twincast_agent::sha256(&mut &build[..])?,
            },
            expires: None,
            force: false,
        };
        let payload = serde_json::to_vec(&manifest)?;
        let sealed = envelope::seal(&payload, std::slice::from_ref(key));
        Ok(serde_json::to_value(sealed)?)
    }

    /// Ends the server.
    pub(super) async fn end(self) {
        self.stop.cancel();
        _ = self.serving.await;
    }
}

async fn file(
    State(files): State<Files>,
    Path(version): Path<String>,
) -> Result<Bytes, StatusCode> {
    files.get(&version).cloned().ok_or(StatusCode::NOT_FOUND)
}
