//! RabbitMQ and Redis, as the processes of the distributed engine and their clients use them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use twincast_amqp::{Amqp, AmqpError, ConnectError as BrokerError, State};
use twincast_core::error::in_words;
use twincast_core::ports::QueueError;
use twincast_iothub::ClockOffset;
use twincast_orchestrator::events::Events;
use twincast_redis::{ConnectError, RedisStore};
use twincast_retry::Policy;

use crate::config::{Settings, secret_source};
use crate::exit::{ExitCode, Failure};
use crate::health::{Check, Checks};
use crate::stores;

/// How often user or password are tried again that Redis refuses.
const REFUSALS: u32 = 3;
/// How often a store that is fine is asked whether it still is.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How the configured broker is reached; `role` is what it shows as this connection's name.
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

/// A connection for one question: fails when the broker is not there.
pub(crate) async fn broker(settings: &Settings, role: &str) -> Result<Amqp, Failure> {
    Amqp::connect(broker_settings(settings, role)?)
        .await
        .map_err(|error| {
            let hint = match error.most_telling() {
                BrokerError::Settings(_)
                | BrokerError::Source(_)
                | BrokerError::Url(_)
                | BrokerError::Authorities(_) => return Failure::new(ExitCode::Refused, error),
                BrokerError::Credentials { .. } | BrokerError::VirtualHost { .. } => {
                    "check the user, the password and the virtual host in amqp.url"
                }
                BrokerError::Topology { .. } => {
                    "check that the user of amqp.url has the permissions that docs/operations.md lists"
                }
                _ => "check amqp.url, and that RabbitMQ runs",
            };
            Failure::new(ExitCode::Services, error).hint(hint)
        })
}

/// What an operation of the broker's that failed means for the user.
pub(crate) fn broker_failure(error: AmqpError) -> Failure {
    let code = match &error {
        // The broker does its part; what was asked for cannot be had.
        AmqpError::NoLetter { .. } | AmqpError::NotReplayable { .. } => ExitCode::Refused,
        _ => ExitCode::Services,
    };
    Failure::new(code, error)
}

/// Both services, for a process that waits for them as long as it takes.
pub(crate) struct Services {
    pub(crate) amqp: Amqp,
    store: Option<Arc<RedisStore>>,
    store_trouble: watch::Sender<Option<String>>,
}

impl Services {
    /// Begins to connect to the broker. The settings of both are checked.
    pub(crate) async fn start(settings: &Settings, role: &str) -> Result<Self, Failure> {
        stores::redis_settings(settings)?;
        let amqp = Amqp::start(broker_settings(settings, role)?)
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        Ok(Self {
            amqp,
            store: None,
            store_trouble: watch::Sender::new(Some("connecting".to_owned())),
        })
    }

    /// Connects to the store. One that is away is waited for, one that refuses us is a failure.
    /// `false` when `stop` came first.
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
                    self.store_trouble.send_replace(None);
                    return Ok(true);
                }
                Err(error @ ConnectError::Unreachable { .. }) => error,
                // A server with too many clients refuses in the same words for a moment.
                Err(error @ ConnectError::Refused { .. }) if refusals < REFUSALS => {
                    refusals += 1;
                    error
                }
                Err(error) => return Err(Failure::new(ExitCode::Services, error)),
            };
            let wait = delays.next_delay().unwrap_or(Policy::reconnect().max());
            let words = in_words(&error);
            tracing::warn!(error = words, ?wait, "waiting for Redis");
            self.store_trouble.send_replace(Some(words));
            tokio::select! {
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The store, once it is connected.
    pub(crate) fn store(&self) -> Arc<RedisStore> {
        Arc::clone(
            self.store
                .as_ref()
                .expect("a process that works is connected"),
        )
    }

    /// Checks of both, for readiness.
    pub(crate) fn checks(&self) -> Checks {
        let broker = self.amqp.state();
        let store = self.store_trouble.subscribe();
        let of_broker: Check = Box::new(move || match &*broker.borrow() {
            State::Connected => None,
            State::Blocked { reason } => Some(format!("it takes no messages: {reason}")),
            State::Reconnecting { last_error, .. } => {
                Some(last_error.clone().unwrap_or_else(|| "connecting".into()))
            }
            State::Closed => Some("closed".into()),
        });
        let of_store: Check = Box::new(move || store.borrow().clone());
        vec![("rabbitmq", of_broker), ("redis", of_store)]
    }

    /// Asks the store now and then whether it is there, for readiness, until dropped.
    pub(crate) async fn watch_store(&self) {
        let mut wrong = false;
        loop {
            let trouble = self
                .store()
                .ping()
                .await
                .err()
                .map(|error| in_words(&error));
            let was = self.store_trouble.send_replace(trouble.clone());
            match (was, trouble) {
                (None, Some(trouble)) => tracing::warn!(trouble, "Redis does not answer, waiting"),
                (Some(_), None) => tracing::info!("Redis answers again"),
                _ => {}
            }
            wrong = self.compare_clocks(wrong).await;
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Tells of a clock that is not Redis': moments that several machines note in records are compared. Gives whether
    /// it is.
    async fn compare_clocks(&self, was_wrong: bool) -> bool {
        let Some(offset) = clock_offset(&self.store()).await else {
            return was_wrong;
        };
        let is_wrong = offset.is_disagreement();
        match (was_wrong, is_wrong) {
            (false, true) => {
                tracing::warn!("this machine's clock is {offset} that of Redis: set it");
            }
            (true, false) => tracing::info!("this machine's clock and that of Redis agree again"),
            _ => {}
        }
        is_wrong
    }
}

/// How far the clock of Redis is ahead of this machine's, if it can be told.
pub(crate) async fn clock_offset(store: &RedisStore) -> Option<ClockOffset> {
    let before = SystemTime::now();
    let time = store.time().await.ok()?;
    let theirs = UNIX_EPOCH + Duration::from_millis(time.0);
    let resolution = Duration::from_millis(1);
    ClockOffset::observed(before, theirs, resolution, SystemTime::now())
}

/// Events on the broker.
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
