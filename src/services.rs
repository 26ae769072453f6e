//! RabbitMQ and Redis, for the processes of the distributed engine and for clients.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use twincast_amqp::{Amqp, AmqpError, ConnectError as BrokerError, State};
use twincast_core::error::describe;
use twincast_core::ports::QueueError;
use twincast_iothub::ClockOffset;
use twincast_orchestrator::events::Events;
use twincast_redis::{ConnectError, RedisStore};
use twincast_retry::Policy;

use crate::config::{Settings, secret_source};
use crate::failure::{ExitCode, Failure};
use crate::health::{Check, Checks};
use crate::stores;

/// The number of retries after Redis refuses user or password.
const MAX_REFUSALS: u32 = 3;
/// The interval of checks of the store.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Returns the connection settings of the configured broker; the connection's name contains `role`.
fn broker_settings(settings: &Settings, role: &str) -> Result<twincast_amqp::Settings, Failure> {
    let from = &settings.amqp;
    let urls = secret_source(
        "amqp",
        from.url.as_ref(),
        from.url_file.as_deref(),
        &settings.base,
    )?;
    Ok(twincast_amqp::Settings {
        ca_file: from.ca_file.as_ref().map(|path| settings.base.join(path)),
        connection_name: format!("twincast {role}"),
        prefix: from.prefix.clone(),
        ..twincast_amqp::Settings::new(urls)
    })
}

/// Connects for a single command; fails if the broker is unavailable.
pub(crate) async fn broker(settings: &Settings, role: &str) -> Result<Amqp, Failure> {
    Amqp::connect(broker_settings(settings, role)?)
        .await
        .map_err(|error| {
            let hint = match error.most_specific() {
                BrokerError::Settings(_)
                | BrokerError::Source(_)
                | BrokerError::Url(_)
                | BrokerError::Authorities(_) => return Failure::new(ExitCode::Refused, error),
                BrokerError::Credentials { .. } | BrokerError::VirtualHost { .. } => {
                    "check the user, the password and the virtual host in amqp.url"
                }
                BrokerError::Topology { .. } => {
                    "check that the user of amqp.url has the permissions that docs/how-to/secure.md lists"
                }
                _ => "check amqp.url, and that RabbitMQ runs",
            };
            Failure::new(ExitCode::Services, error).hint(hint)
        })
}

/// Converts an error of a broker operation into a failure for the user.
pub(crate) fn broker_failure(error: AmqpError) -> Failure {
    let code = match &error {
        // The broker works; the requested message is unavailable.
        AmqpError::NoLetter { .. } | AmqpError::NotReplayable { .. } => ExitCode::Refused,
        _ => ExitCode::Services,
    };
    Failure::new(code, error)
}

/// Connections to both services, waiting for an unavailable service without limit.
pub(crate) struct Services {
    pub(crate) amqp: Amqp,
    store: Option<Arc<RedisStore>>,
    store_obstacle: watch::Sender<Option<String>>,
}

impl Services {
    /// Starts connecting to the broker. Checks the settings of both services.
    pub(crate) async fn start(settings: &Settings, role: &str) -> Result<Self, Failure> {
        stores::redis_settings(settings)?;
        let amqp = Amqp::start(broker_settings(settings, role)?)
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        Ok(Self {
            amqp,
            store: None,
            store_obstacle: watch::Sender::new(Some("connecting".to_owned())),
        })
    }

    /// Connects to the store. Waits for an unreachable store; fails if the store refuses the
    /// credentials. Returns `false` if `stop` comes first.
    pub(crate) async fn connect(
        &mut self,
        settings: &Settings,
        stop: &CancellationToken,
    ) -> Result<bool, Failure> {
        let mut delays = Policy::reconnect().delays();
        let mut refusals = 0;
        loop {
            let error = match RedisStore::connect(&stores::redis_settings(settings)?).await {
                Ok(store) => {
                    self.store = Some(Arc::new(store));
                    self.store_obstacle.send_replace(None);
                    return Ok(true);
                }
                Err(error @ ConnectError::Unreachable { .. }) => error,
                // A server with too many clients briefly refuses with the same error.
                Err(error @ ConnectError::Refused { .. }) if refusals < MAX_REFUSALS => {
                    refusals += 1;
                    error
                }
                Err(error) => return Err(Failure::new(ExitCode::Services, error)),
            };
            let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
            let words = describe(&error);
            tracing::warn!(error = words, ?wait, "waiting for Redis");
            self.store_obstacle.send_replace(Some(words));
            tokio::select! {
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Returns the store, after a successful [`connect`](Self::connect).
    pub(crate) fn store(&self) -> Arc<RedisStore> {
        Arc::clone(
            self.store
                .as_ref()
                .expect("a process that works is connected"),
        )
    }

    /// Returns readiness checks of both services.
    pub(crate) fn checks(&self) -> Checks {
        let broker = self.amqp.state();
        let store = self.store_obstacle.subscribe();
        let of_broker: Check = Box::new(move || match &*broker.borrow() {
            State::Connected => None,
            State::Blocked { reason } => Some(format!("the broker accepts no messages: {reason}")),
            State::Reconnecting { last_error, .. } => {
                Some(last_error.clone().unwrap_or_else(|| "connecting".into()))
            }
            State::Closed => Some("closed".into()),
        });
        let of_store: Check = Box::new(move || store.borrow().clone());
        vec![("rabbitmq", of_broker), ("redis", of_store)]
    }

    /// Checks the store periodically, for readiness, until dropped.
    pub(crate) async fn watch_store(&self) {
        let mut clocks_differ = false;
        loop {
            let obstacle = self
                .store()
                .ping()
                .await
                .err()
                .map(|error| describe(&error));
            let was = self.store_obstacle.send_replace(obstacle.clone());
            match (was, obstacle) {
                (None, Some(obstacle)) => {
                    tracing::warn!(obstacle, "Redis does not answer, waiting");
                }
                (Some(_), None) => tracing::info!("Redis answers again"),
                _ => {}
            }
            clocks_differ = self.compare_clocks(clocks_differ).await;
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// Logs a disagreement between the clocks of this machine and Redis: records of several
    /// machines contain compared times. Returns true while the clocks disagree.
    async fn compare_clocks(&self, differed: bool) -> bool {
        let Some(offset) = clock_offset(&self.store()).await else {
            return differed;
        };
        let differ = offset.is_disagreement();
        match (differed, differ) {
            (false, true) => {
                tracing::warn!("this machine's clock is {offset} that of Redis: set it");
            }
            (true, false) => tracing::info!("this machine's clock and that of Redis agree again"),
            _ => {}
        }
        differ
    }
}

/// Returns the offset of Redis' clock from this machine's clock, if Redis answers.
pub(crate) async fn clock_offset(store: &RedisStore) -> Option<ClockOffset> {
    let before = SystemTime::now();
    let time = store.time().await.ok()?;
    let theirs = UNIX_EPOCH + Duration::from_millis(time.0);
    let resolution = Duration::from_millis(1);
    ClockOffset::observed(before, theirs, resolution, SystemTime::now())
}

/// Publishes events on the broker.
pub(crate) struct BrokerEvents(pub(crate) Amqp);

#[async_trait::async_trait]
impl Events for BrokerEvents {
    async fn publish(&self, topic: &str, event: &Value) -> Result<(), QueueError> {
        let body = event.to_string().into_bytes();
        let published = self.0.publish_event(topic, body).await;
        published.map_err(|error| QueueError::Unavailable {
            doing: "publish an event",
            source: Box::new(error),
        })
    }
}
