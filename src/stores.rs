//! Where rollouts are kept: in Redis when one is configured, else in a state folder.

use std::ops::Deref;
use std::sync::Arc;

use twincast_core::ports::Store;
use twincast_embedded::EmbeddedStore;
use twincast_redis::RedisStore;

use crate::config::{Settings, secret_url};
use crate::engine;
use crate::exit::{ExitCode, Failure};

/// A store of either kind.
pub(crate) enum AnyStore {
    Folder(Arc<EmbeddedStore>),
    Redis(Arc<RedisStore>),
}

impl Deref for AnyStore {
    type Target = dyn Store;
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Folder(store) => &**store,
            Self::Redis(store) => &**store,
        }
    }
}

impl AnyStore {
    /// The store, for a stream that lasts.
    pub(crate) fn shared(&self) -> Arc<dyn Store> {
        match self {
            Self::Folder(store) => Arc::clone(store) as _,
            Self::Redis(store) => Arc::clone(store) as _,
        }
    }

    /// Lets go of it.
    pub(crate) async fn close(&self) {
        if let Self::Folder(store) = self {
            store.close().await;
        }
    }
}

/// Opens the store that is configured, for looking at it.
pub(crate) async fn open(settings: &Settings) -> Result<AnyStore, Failure> {
    if settings.redis.is_configured() {
        return Ok(AnyStore::Redis(redis(settings).await?));
    }
    Ok(AnyStore::Folder(Arc::new(folder(settings)?)))
}

/// Opens the state folder, which must be there.
pub(crate) fn folder(settings: &Settings) -> Result<EmbeddedStore, Failure> {
    if !EmbeddedStore::is_in(&settings.state) {
        let message = format!("there is no state folder {}", settings.state.display());
        return Err(Failure::message(ExitCode::State, message).hint(
            "run this where `twincast run` was run, or give its --state; or give the Redis of the distributed engine as redis.url",
        ));
    }
    engine::open_store(&settings.state)
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
    let url = secret_url(
        "redis",
        from.url.as_ref(),
        from.url_file.as_deref(),
        &settings.base,
    )?;
    let urls = url.split(',').map(|url| url.trim().to_owned()).collect();
    Ok(twincast_redis::Settings {
        urls,
        cluster: from.cluster,
        ca: from.ca_file.as_ref().map(|path| settings.base.join(path)),
        prefix: from.prefix.clone(),
        connect_timeout: from.timeout.0,
        response_timeout: from.timeout.0,
        time: twincast_redis::TimeSource::Server,
        durable_after: from.durable_after.map(|span| span.0),
    })
}
