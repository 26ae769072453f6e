//! Where rollouts are kept: in Redis when one is configured, else in a state folder.
//!
//! A state folder is opened, or the process that works on it is asked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ports::{Clock, Roster, Store};
use twincast_embedded::{EmbeddedStore, OpenError};
use twincast_redis::{RedisStore, TimeSource, Topology};

use crate::config::{Settings, secret_source};
use crate::credentials;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::socket::Socket;

/// How long a folder is waited for that somebody has who does not answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// When it is tried again meanwhile.
const AGAIN: Duration = Duration::from_millis(50);

/// A store of either kind.
pub(crate) enum AnyStore {
    Folder(Arc<EmbeddedStore>),
    Redis(Arc<RedisStore>),
}

impl AnyStore {
    /// The store itself.
    pub(crate) fn shared(&self) -> Arc<dyn Store> {
        match self {
            Self::Folder(store) => Arc::clone(store) as _,
            Self::Redis(store) => Arc::clone(store) as _,
        }
    }

    /// Which rollouts there are, and whether all are stopped: those of a folder are never stopped together.
    pub(crate) fn roster(&self) -> Option<Arc<dyn Roster>> {
        match self {
            Self::Folder(_) => None,
            Self::Redis(store) => Some(Arc::clone(store) as _),
        }
    }

    /// The store, if it is a folder's.
    pub(crate) fn folder(&self) -> Option<&Arc<EmbeddedStore>> {
        match self {
            Self::Folder(store) => Some(store),
            Self::Redis(_) => None,
        }
    }

    /// Lets go of it.
    pub(crate) async fn close(&self) {
        if let Self::Folder(store) = self {
            store.close().await;
        }
    }
}

/// A store of ours, or the process that has it open.
pub(crate) enum Reached {
    Store(AnyStore),
    /// The process that works on the state folder.
    AtWork(Socket),
}

/// Reaches the store that is configured, to look at it.
pub(crate) async fn look(settings: &Settings) -> Result<Reached, Failure> {
    if settings.redis.is_configured() {
        return Ok(Reached::Store(AnyStore::Redis(redis(settings).await?)));
    }
    exists(settings)?;
    reach(&settings.state, EmbeddedStore::open_to_look).await
}

/// Reaches the state folder, which must be there, to change what is in it.
pub(crate) async fn folder(settings: &Settings) -> Result<Reached, Failure> {
    exists(settings)?;
    reach(&settings.state, EmbeddedStore::open).await
}

/// Opens the state folder to work on it, and makes it if it is not there.
pub(crate) async fn work_on(dir: &Path) -> Result<Arc<EmbeddedStore>, Failure> {
    match reach(dir, EmbeddedStore::open).await? {
        Reached::Store(AnyStore::Folder(store)) => Ok(store),
        Reached::Store(AnyStore::Redis(_)) | Reached::AtWork(_) => {
            let dir = dir.to_owned();
            Err(engine::open_failure(OpenError::InUse { dir }))
        }
    }
}

/// How a state folder is opened.
type Open = fn(&Path, Arc<dyn Clock>) -> Result<EmbeddedStore, OpenError>;

/// Opens the folder. One that is in use is waited for, for a moment: commands have it for no longer, and whoever has it
/// for long answers.
async fn reach(dir: &Path, open: Open) -> Result<Reached, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let error = match open(dir, engine::clock()) {
            Ok(store) => return Ok(Reached::Store(AnyStore::Folder(Arc::new(store)))),
            Err(error @ OpenError::InUse { .. }) => error,
            Err(error) => return Err(engine::open_failure(error)),
        };
        if let Some(socket) = Socket::at_work(dir).await? {
            return Ok(Reached::AtWork(socket));
        }
        if Instant::now() >= until {
            return Err(engine::open_failure(error));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn exists(settings: &Settings) -> Result<(), Failure> {
    if !EmbeddedStore::is_in(&settings.state) {
        let message = format!("there is no state folder {}", settings.state.display());
        return Err(Failure::message(ExitCode::State, message).hint(
            "run this where `twincast run` was run, or give its --state; or give the Redis of the distributed engine as redis.url",
        ));
    }
    Ok(())
}

/// Connects to the configured Redis.
pub(crate) async fn redis(settings: &Settings) -> Result<Arc<RedisStore>, Failure> {
    let wanted = redis_settings(settings)?;
    let store = RedisStore::connect(&wanted).await.map_err(|error| {
        Failure::new(ExitCode::Services, error).hint("check redis.url, and that the server runs")
    })?;
    Ok(Arc::new(store))
}

/// How the configured Redis is reached.
pub(crate) fn redis_settings(settings: &Settings) -> Result<twincast_redis::Settings, Failure> {
    let from = &settings.redis;
    let url = secret_source(
        "redis",
        from.url.as_ref(),
        from.url_file.as_deref(),
        &settings.base,
    )?;
    let topology = match from.sentinels(&settings.base) {
        Some(urls) => Topology::Sentinels(urls),
        None if from.cluster => Topology::Cluster,
        None => Topology::One,
    };
    Ok(twincast_redis::Settings {
        url,
        topology,
        tls_name: from.tls_name.clone(),
        credentials: match &from.auth {
            None => None,
            Some(auth) => Some(credentials::of_redis(auth, &settings.base)?),
        },
        ca: from.ca_file.as_ref().map(|path| settings.base.join(path)),
        prefix: from.prefix.clone(),
        connect_timeout: from.timeout.0,
        response_timeout: from.timeout.0,
        time: TimeSource::Server,
        durable_after: from.durable_after.map(|span| span.0),
    })
}
