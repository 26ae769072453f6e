//! Signed builds of the firmware, and a file server for devices.

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

/// The approximate size of a build, in bytes.
const SIZE: usize = 200_000;

/// Returns a build: a script, run by the device's health check.
pub(super) fn script(version: &str, works: bool) -> String {
    let check = match works {
        true => "echo compressor and door sensor answer",
        false => "echo the door sensor does not answer\nexit 1",
    };
    let filling = "# what else a firmware has\n".repeat(SIZE / 27);
    format!("#!/bin/sh\n# fridge firmware {version}\n{check}\nexit 0\n{filling}")
}

/// Served files by name.
type Files = Arc<BTreeMap<String, Bytes>>;

/// A file server on this machine.
pub(super) struct FileServer {
    address: SocketAddr,
    files: Files,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl FileServer {
    /// Serves the given builds: each a version, and whether the build works.
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

    /// Returns the signed message of an update to a version.
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
