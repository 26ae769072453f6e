//! The store of rollouts: Redis if configured, otherwise a state folder.
//!
//! A state folder is opened by this process, or served by the process working on the folder.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twincast_core::ports::{Clock, RolloutRegistry, Store};
use twincast_embedded::{EmbeddedStore, OpenError};
use twincast_redis::{RedisStore, TimeSource, Topology};

use crate::config::{Settings, secret_source};
use crate::credentials;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::socket::Socket;

/// Time limit for waiting for a folder in use by a process without a socket.
const MAX_WAIT: Duration = Duration::from_secs(3);
/// The interval of retries meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A store of either kind.
pub(crate) enum AnyStore {
    Folder(Arc<EmbeddedStore>),
    Redis(Arc<RedisStore>),
}

impl AnyStore {
    /// Returns the store itself.
    pub(crate) fn shared(&self) -> Arc<dyn Store> {
        match self {
            Self::Folder(store) => Arc::clone(store) as _,
            Self::Redis(store) => Arc::clone(store) as _,
        }
    }

    /// Returns the rollout registry, with the switch to stop all rollouts. A state folder has
    /// neither.
    pub(crate) fn registry(&self) -> Option<Arc<dyn RolloutRegistry>> {
        match self {
            Self::Folder(_) => None,
            Self::Redis(store) => Some(Arc::clone(store) as _),
        }
    }

    /// Returns the store of a state folder.
    pub(crate) fn folder(&self) -> Option<&Arc<EmbeddedStore>> {
        match self {
            Self::Folder(store) => Some(store),
            Self::Redis(_) => None,
        }
    }

    /// Closes the store.
    pub(crate) async fn close(&self) {
        if let Self::Folder(store) = self {
            store.close().await;
        }
    }
}

/// A store opened by this process, or the process with the open store.
pub(crate) enum StoreAccess {
    Store(AnyStore),
    /// The process working on the state folder.
    Owner(Socket),
}

/// Opens the configured store for reading.
pub(crate) async fn open_for_reading(settings: &Settings) -> Result<StoreAccess, Failure> {
    if settings.redis.is_configured() {
        return Ok(StoreAccess::Store(AnyStore::Redis(redis(settings).await?)));
    }
    check_exists(settings)?;
    open_or_ask_owner(&settings.state, EmbeddedStore::open_read_only).await
}

/// Opens the state folder, which must exist, for changes.
pub(crate) async fn folder_for_changes(settings: &Settings) -> Result<StoreAccess, Failure> {
    check_exists(settings)?;
    open_or_ask_owner(&settings.state, EmbeddedStore::open).await
}

/// Opens the state folder to work on rollouts; creates a missing folder.
pub(crate) async fn open_or_create_folder(dir: &Path) -> Result<Arc<EmbeddedStore>, Failure> {
    match open_or_ask_owner(dir, EmbeddedStore::open).await? {
        StoreAccess::Store(AnyStore::Folder(store)) => Ok(store),
        StoreAccess::Store(AnyStore::Redis(_)) | StoreAccess::Owner(_) => {
            let dir = dir.to_owned();
            Err(engine::open_failure(OpenError::InUse { dir }))
        }
    }
}

/// A function to open a state folder.
type Open = fn(&Path, Arc<dyn Clock>) -> Result<EmbeddedStore, OpenError>;

/// Opens the folder. Waits briefly for a folder in use: commands use the folder briefly, and a
/// long-running process answers on the socket.
async fn open_or_ask_owner(dir: &Path, open: Open) -> Result<StoreAccess, Failure> {
    let until = Instant::now() + MAX_WAIT;
    loop {
        let error = match open(dir, engine::clock()) {
            Ok(store) => return Ok(StoreAccess::Store(AnyStore::Folder(Arc::new(store)))),
            Err(error @ OpenError::InUse { .. }) => error,
            Err(error) => return Err(engine::open_failure(error)),
        };
        if let Some(socket) = Socket::connect_to_owner(dir).await? {
            return Ok(StoreAccess::Owner(socket));
        }
        if Instant::now() >= until {
            return Err(engine::open_failure(error));
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

fn check_exists(settings: &Settings) -> Result<(), Failure> {
    if !EmbeddedStore::is_in(&settings.state) {
        let message = format!("there is no state folder {}", settings.state.display());
        return Err(Failure::message(ExitCode::State, message).hint(
            "run the command in the folder of `twincast run`, or pass the same --state; or set \
             redis.url to the Redis of the distributed engine",
        ));
    }
    Ok(())
}

/// Connects to the configured Redis.
pub(crate) async fn redis(settings: &Settings) -> Result<Arc<RedisStore>, Failure> {
    let redis = redis_settings(settings)?;
    let store = RedisStore::connect(&redis).await.map_err(|error| {
        Failure::new(ExitCode::Services, error).hint("check redis.url, and that the server runs")
    })?;
    Ok(Arc::new(store))
}

/// Returns the connection settings of the configured Redis.
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
        None => Topology::Single,
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
        durable_after: from.durable_after.map(|duration| duration.0),
    })
}
