//! Artefacts: fetched with resume, within bounds of size, disk, speed and time, and believed only by their SHA-256.
//!
//! What was fetched stays across retries and restarts. A download is resumed only if the server says that the file is the
//! same (`If-Range` with its `ETag` or date); where it says nothing, the SHA-256 tells at the end, and then the whole file is fetched
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
use crate::config::{self, span};
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

/// What a part of an artefact is a part of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    sha256: String,
    /// What the server knows the file by.
    validator: Option<String>,
}

/// Why a try ended.
#[derive(Debug)]
enum Failed {
    /// The next try may do better.
    Again(String),
    /// No try will.
    ForGood(Reason),
}

/// Where bytes come from.
enum Body {
    Http(reqwest::Response),
    #[cfg(feature = "ftp")]
    Ftp(ftp::Transfer),
}

impl Downloader {
    /// The file that an artefact is fetched to.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("artifact")
    }

    /// Fetches an artefact that is being tried since `since`. When it returns, the file is complete, what it should be, and
    /// on the disk. Cancel safe: what was fetched stays.
    pub(crate) async fn fetch(&self, artifact: &Artifact, since: Timestamp) -> Result<(), Reason> {
        let limit = span(self.settings.within);
        let spent = Duration::try_from(self.clock.now().duration_since(since)).unwrap_or_default();
        let mut last = "nothing was received".to_owned();
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
        let mut backoff = Backoff::new(span(self.settings.retry_wait), RETRY_WAIT_MAX);
        let mut is_second_time = false;
        loop {
            let (had, part) = self.had(artifact).await.map_err(|error| disk(&error))?;
            match self.attempt(artifact, had, part).await {
                Ok(()) if verify(&self.path(), artifact).await? => return Ok(()),
                // What was resumed may have been put together of two files.
                Ok(()) if had > 0 && !is_second_time => {
                    is_second_time = true;
                    store::clear(&self.folder).map_err(|error| disk(&error))?;
                    tracing::warn!(
                        "artefact was resumed and has another SHA-256; it is fetched anew"
                    );
                    continue;
                }
                Ok(()) => {
                    let text = "the artefact has another SHA-256 than the manifest says";
                    return Err(Reason::new("sha256", text));
                }
                Err(Failed::ForGood(reason)) => return Err(reason),
                Err(Failed::Again(why)) => *last = why,
            }
            let (now, _) = self.had(artifact).await.map_err(|error| disk(&error))?;
            if now > had {
                backoff.reset();
            }
            let wait = backoff.next();
            tracing::warn!(
                error = *last,
                have_bytes = now,
                wait_ms = wait.as_millis(),
                "download was interrupted"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// How much of the artefact is there.
    async fn had(&self, artifact: &Artifact) -> std::io::Result<(u64, Part)> {
        let part: Option<Part> = store::read(&self.folder.join("part.json")).unwrap_or_default();
        let length = tokio::fs::metadata(self.path())
            .await
            .map_or(0, |metadata| metadata.len());
        match part {
            Some(part) if part.sha256 == artifact.sha256 && length <= artifact.size => {
                Ok((length, part))
            }
            _ => {
                store::clear(&self.folder)?;
                Ok((
                    0,
                    Part {
                        sha256: artifact.sha256.clone(),
                        validator: None,
                    },
                ))
            }
        }
    }

    async fn attempt(&self, artifact: &Artifact, had: u64, part: Part) -> Result<(), Failed> {
        if had == artifact.size && had > 0 {
            return Ok(());
        }
        self.check_disk(artifact.size - had)?;
        let url = Url::parse(&artifact.url).map_err(|error| Failed::Again(error.to_string()))?;
        let (body, from, validator) = match url.scheme() {
            #[cfg(feature = "ftp")]
            "ftp" => {
                let transfer = ftp::Transfer::begin(&url, artifact.size, had).await?;
                (Body::Ftp(transfer), had, None)
            }
            "http" | "https" => self.begin_http(&url, artifact.size, had, &part).await?,
            scheme => {
                let text = format!("this agent was built without {scheme}");
                return Err(Failed::ForGood(Reason::new("url", text)));
            }
        };
        let lost = |error: std::io::Error| Failed::ForGood(disk(&error));
        store::write(&self.folder.join("part.json"), &Part { validator, ..part }).map_err(lost)?;
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

    /// Writes what comes, until all is there.
    async fn receive(
        &self,
        mut body: Body,
        file: &mut tokio::fs::File,
        from: u64,
        size: u64,
    ) -> Result<(), Failed> {
        let (low_time, low_rate) = (
            span(self.settings.low_speed_time),
            self.settings.low_speed_rate,
        );
        let (mut at, mut window, mut begun) = (from, 0, Instant::now());
        loop {
            let left = low_time.saturating_sub(begun.elapsed());
            match tokio::time::timeout(left, body.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    at += bytes.len() as u64;
                    window += bytes.len() as u64;
                    if at > size {
                        return Err(Failed::ForGood(wrong_size(at, size)));
                    }
                    file.write_all(&bytes)
                        .await
                        .map_err(|error| Failed::ForGood(disk(&error)))?;
                }
                Ok(Ok(None)) if at == size => return Ok(()),
                Ok(Ok(None)) => {
                    return Err(Failed::Again(format!(
                        "the connection ended after {at} of {size} bytes"
                    )));
                }
                Ok(Err(error)) => return Err(Failed::Again(error)),
                Err(_) => {}
            }
            if begun.elapsed() >= low_time {
                let least = low_rate.saturating_mul(low_time.as_secs().max(1));
                if window < least {
                    let text = format!(
                        "only {window} bytes came in {low_time:?}, after {at} of {size} bytes"
                    );
                    return Err(Failed::Again(text));
                }
                (window, begun) = (0, Instant::now());
            }
        }
    }

    fn check_disk(&self, needed: u64) -> Result<(), Failed> {
        let room = rustix::fs::statvfs(&self.folder)
            .map_err(|error| Failed::ForGood(disk(&error.into())))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free >= needed.saturating_add(self.settings.keep_free) {
            return Ok(());
        }
        let keep = self.settings.keep_free;
        let text = format!(
            "{needed} bytes are needed and {keep} are kept free, but the disk has {free} left"
        );
        Err(Failed::ForGood(Reason::new("disk_full", text)))
    }
}

impl Body {
    /// The next bytes; none at the end. Cancel safe.
    async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        match self {
            Self::Http(response) => response.chunk().await.map_err(http::words),
            #[cfg(feature = "ftp")]
            Self::Ftp(transfer) => transfer.chunk().await,
        }
    }
}

/// Whether a file is the artefact.
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

/// The SHA-256 of a file of a size; none if it has another size.
fn digest(path: &Path, size: u64) -> std::io::Result<Option<String>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    Ok(Some(sha256(&mut file)?))
}

/// The SHA-256 of what a reader gives, in hex.
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
        format!("the server has {found} bytes or more, the manifest says {size}"),
    )
}

/// What a full or broken disk comes to.
fn disk(error: &std::io::Error) -> Reason {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "disk_full",
        _ => "disk",
    };
    Reason::new(code, format!("cannot use the artefact's file: {error}"))
}
