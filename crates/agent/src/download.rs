//! Downloads of artefacts: resumable, bounded in size, disk space, speed and time, and accepted
//! only with the right SHA-256.
//!
//! Downloaded bytes stay across retries and restarts. A download resumes only if the server
//! confirms an unchanged file (`If-Range` with the `ETag` or date of the file). Without a validator
//! from the server, the SHA-256 decides at the end; on a mismatch, the whole file is downloaded
//! once more.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use url::Url;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{self, to_std};
use crate::manifest::Artifact;
use crate::report::Reason;
use crate::store;

#[cfg(feature = "ftp")]
mod ftp;
mod http;

/// The longest wait between two tries.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(600);

/// Fetches artefacts into a folder.
#[derive(Debug, Clone)]
pub(crate) struct Downloader {
    pub(crate) http: reqwest::Client,
    pub(crate) settings: config::Download,
    pub(crate) folder: PathBuf,
    pub(crate) clock: Clock,
}

/// The identity of a partial download, stored as `part.json` beside the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PartialDownload {
    sha256: String,
    /// The server's validator of the file: an `ETag` or a date.
    validator: Option<String>,
}

/// The failure of a download attempt.
#[derive(Debug)]
enum Failed {
    /// A transient failure: the next attempt may succeed.
    Transient(String),
    /// A permanent failure: no further attempt follows.
    Permanent(Reason),
}

/// The source of the bytes.
enum Body {
    Http(reqwest::Response),
    #[cfg(feature = "ftp")]
    Ftp(ftp::Transfer),
}

impl Downloader {
    /// Returns the path of the downloaded artefact.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("artifact")
    }

    /// Downloads an artefact; the time limit counts from `since`. On success, the file is complete,
    /// verified, and synced to the disk. Cancel safe: downloaded bytes stay.
    pub(crate) async fn fetch(&self, artifact: &Artifact, since: Timestamp) -> Result<(), Reason> {
        let limit = to_std(self.settings.within);
        let spent = Duration::try_from(self.clock.now().duration_since(since)).unwrap_or_default();
        let mut last = "no data received".to_owned();
        match tokio::time::timeout(
            limit.saturating_sub(spent),
            self.try_until_done(artifact, &mut last),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => {
                let text = format!("not complete within {limit:?}: {last}");
                Err(Reason::new("download", text))
            }
        }
    }

    async fn try_until_done(&self, artifact: &Artifact, last: &mut String) -> Result<(), Reason> {
        let mut backoff = Backoff::new(to_std(self.settings.retry_wait), RETRY_WAIT_MAX);
        let mut is_second_time = false;
        loop {
            let (offset, partial) = self.partial(artifact).await.map_err(|error| disk(&error))?;
            match self.attempt(artifact, offset, partial).await {
                Ok(()) if verify(&self.path(), artifact).await? => return Ok(()),
                // A resumed file may be a mix of two versions of the server's file.
                Ok(()) if offset > 0 && !is_second_time => {
                    is_second_time = true;
                    store::clear(&self.folder).map_err(|error| disk(&error))?;
                    tracing::warn!(
                        "SHA-256 of the resumed download does not match the manifest; downloading the whole artefact again"
                    );
                    continue;
                }
                Ok(()) => {
                    let text = "the artefact's SHA-256 does not match the manifest";
                    return Err(Reason::new("sha256", text));
                }
                Err(Failed::Permanent(reason)) => return Err(reason),
                Err(Failed::Transient(why)) => *last = why,
            }
            let (now, _) = self.partial(artifact).await.map_err(|error| disk(&error))?;
            if now > offset {
                backoff.reset();
            }
            let wait = backoff.next();
            tracing::warn!(
                error = *last,
                have_bytes = now,
                wait_ms = wait.as_millis(),
                "download interrupted; retrying"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// Returns the number of bytes already downloaded, and the identity of the partial download.
    /// Removes the bytes of any other artefact.
    async fn partial(&self, artifact: &Artifact) -> std::io::Result<(u64, PartialDownload)> {
        let partial: Option<PartialDownload> =
            store::read(&self.folder.join("part.json")).unwrap_or_default();
        let length = tokio::fs::metadata(self.path())
            .await
            .map_or(0, |metadata| metadata.len());
        match partial {
            Some(partial) if partial.sha256 == artifact.sha256 && length <= artifact.size => {
                Ok((length, partial))
            }
            _ => {
                store::clear(&self.folder)?;
                Ok((
                    0,
                    PartialDownload {
                        sha256: artifact.sha256.clone(),
                        validator: None,
                    },
                ))
            }
        }
    }

    async fn attempt(
        &self,
        artifact: &Artifact,
        offset: u64,
        partial: PartialDownload,
    ) -> Result<(), Failed> {
        if offset == artifact.size && offset > 0 {
            return Ok(());
        }
        self.check_disk(artifact.size - offset)?;
        let url =
            Url::parse(&artifact.url).map_err(|error| Failed::Transient(error.to_string()))?;
        let (body, from, validator) = match url.scheme() {
            #[cfg(feature = "ftp")]
            "ftp" => {
                let transfer = ftp::Transfer::begin(&url, artifact.size, offset).await?;
                (Body::Ftp(transfer), offset, None)
            }
            "http" | "https" => {
                self.begin_http(&url, artifact.size, offset, &partial)
                    .await?
            }
            scheme => {
                let text = format!("this agent was built without support for {scheme}");
                return Err(Failed::Permanent(Reason::new("url", text)));
            }
        };
        let lost = |error: std::io::Error| Failed::Permanent(disk(&error));
        store::write(
            &self.folder.join("part.json"),
            &PartialDownload {
                validator,
                ..partial
            },
        )
        .map_err(lost)?;
        let options = tokio::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(self.path())
            .await;
        let mut file = options.map_err(lost)?;
        file.set_len(from).await.map_err(lost)?;
        use tokio::io::AsyncSeekExt as _;
        file.seek(std::io::SeekFrom::Start(from))
            .await
            .map_err(lost)?;
        let received = self.receive(body, &mut file, from, artifact.size).await;
        file.flush().await.map_err(lost)?;
        file.sync_all().await.map_err(lost)?;
        store::sync_folder(&self.path()).map_err(lost)?;
        received
    }

    /// Writes received bytes to the file until the artefact is complete.
    async fn receive(
        &self,
        mut body: Body,
        file: &mut tokio::fs::File,
        from: u64,
        size: u64,
    ) -> Result<(), Failed> {
        let (low_time, low_rate) = (
            to_std(self.settings.low_speed_time),
            self.settings.low_speed_rate,
        );
        let (mut at, mut window, mut window_started_at) = (from, 0, Instant::now());
        loop {
            let left = low_time.saturating_sub(window_started_at.elapsed());
            match tokio::time::timeout(left, body.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    at += bytes.len() as u64;
                    window += bytes.len() as u64;
                    if at > size {
                        return Err(Failed::Permanent(wrong_size(at, size)));
                    }
                    file.write_all(&bytes)
                        .await
                        .map_err(|error| Failed::Permanent(disk(&error)))?;
                }
                Ok(Ok(None)) if at == size => return Ok(()),
                Ok(Ok(None)) => {
                    return Err(Failed::Transient(format!(
                        "the connection ended after {at} of {size} bytes"
                    )));
                }
                Ok(Err(error)) => return Err(Failed::Transient(error)),
                Err(_) => {}
            }
            if window_started_at.elapsed() >= low_time {
                let least = low_rate.saturating_mul(low_time.as_secs().max(1));
                if window < least {
                    let text = format!(
                        "download too slow: {window} bytes received in {low_time:?}, minimum {least}; {at} of {size} bytes complete"
                    );
                    return Err(Failed::Transient(text));
                }
                (window, window_started_at) = (0, Instant::now());
            }
        }
    }

    fn check_disk(&self, needed: u64) -> Result<(), Failed> {
        let room = rustix::fs::statvfs(&self.folder)
            .map_err(|error| Failed::Permanent(disk(&error.into())))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free >= needed.saturating_add(self.settings.keep_free) {
            return Ok(());
        }
        let keep = self.settings.keep_free;
        let text = format!(
            "not enough disk space: {needed} bytes are needed and {keep} must stay free, but {free} are free"
        );
        Err(Failed::Permanent(Reason::new("disk_full", text)))
    }
}

impl Body {
    /// Returns the next bytes, or none at the end. Cancel safe.
    async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        match self {
            Self::Http(response) => response.chunk().await.map_err(http::error_chain),
            #[cfg(feature = "ftp")]
            Self::Ftp(transfer) => transfer.chunk().await,
        }
    }
}

/// Returns whether a file has the artefact's size and SHA-256.
pub(crate) async fn verify(path: &Path, artifact: &Artifact) -> Result<bool, Reason> {
    let (path, size) = (path.to_owned(), artifact.size);
    let digest = tokio::task::spawn_blocking(move || digest(&path, size)).await;
    match digest {
        Ok(Ok(digest)) => {
            Ok(digest.is_some_and(|digest| digest.eq_ignore_ascii_case(&artifact.sha256)))
        }
        Ok(Err(error)) => Err(disk(&error)),
        Err(error) => Err(Reason::new("disk", error.to_string())),
    }
}

/// Returns the SHA-256 of a file, or none if the file's size is not `size`.
fn digest(path: &Path, size: u64) -> std::io::Result<Option<String>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    Ok(Some(sha256(&mut file)?))
}

/// Returns the SHA-256 of a reader's content, in hex.
pub(crate) fn sha256(reader: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.by_ref().read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish())),
            length => context.update(&buffer[..length]),
        }
    }
}

fn wrong_size(found: u64, size: u64) -> Reason {
    Reason::new(
        "size",
        format!("the server's file has {found} bytes or more; the manifest specifies {size}"),
    )
}

/// Returns the reason for a full or broken disk.
fn disk(error: &std::io::Error) -> Reason {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "disk_full",
        _ => "disk",
    };
    Reason::new(code, format!("cannot access the artefact's file: {error}"))
}
