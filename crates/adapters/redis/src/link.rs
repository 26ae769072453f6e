//! The connection of a store, and its replacement.

use std::time::Duration;

use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};
use twincast_core::error::in_words;

use crate::dial::{self, Connection};
use crate::error::{ConnectError, is_left, is_refusal, is_spent, timed_out};
use crate::scripts::Run;
use crate::settings::{Settings, Topology};

/// How long a refusal stands. A server is shown user and password once in this time, however many calls wait.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// The share of a password's life after which the connection is renewed.
const RENEWED_AT: f64 = 0.75;
/// The pause after a failed renewal.
const RENEWED_AGAIN: Duration = Duration::from_secs(10);

/// One connection to a Redis, or one to each node of a cluster, shared by all calls.
///
/// A spent connection is dropped, and the next call makes another. A call on a connection that the server has closed (after
/// a restart, or for being idle), or on a server that is no longer the master, is tried a second time. Second tries are safe,
/// because every command of the store may be repeated.
pub(crate) struct Link {
    settings: Settings,
    patience: Duration,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    connection: Option<Connection>,
    /// The number of connections so far.
    number: u64,
    /// When the connection is renewed, because its password ends.
    renew_at: Option<Instant>,
    /// The time and the error of the last refusal.
    refused: Option<(Instant, RedisError)>,
}

impl Link {
    /// Prepares a connection; the first call makes it.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConnectError> {
        dial::check(settings)?;
        Ok(Self {
            settings: settings.clone(),
            patience: settings.connect_timeout + settings.response_timeout,
            held: Mutex::default(),
        })
    }

    /// Runs a script.
    pub(crate) async fn run(&self, run: &Run) -> RedisResult<Value> {
        match self.query(&run.by_digest()).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.query(&run.in_full()).await
            }
            answered => answered,
        }
    }

    /// Sends one command. Takes no longer than both timeouts together.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let answered = timeout(self.patience, self.ask(command)).await;
        answered.unwrap_or_else(|_| Err(timed_out(self.patience)))
    }

    async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        match self.ask_once(command).await {
            Err(error) if self.is_worth_another(&error) => {
                debug!(%error, "connection to redis lost, trying another");
                self.ask_once(command).await
            }
            answered => answered,
        }
    }

    /// Whether another connection may bring the answer. A cluster's connection has its own second tries.
    fn is_worth_another(&self, error: &RedisError) -> bool {
        let is_one = !matches!(self.settings.topology, Topology::Cluster);
        is_one && (error.is_connection_dropped() || is_left(error) || is_refusal(error))
    }

    async fn ask_once(&self, command: &Cmd) -> RedisResult<Value> {
        let (number, connection) = self.connection().await?;
        let answered = match connection {
            Connection::One(mut one) => command.query_async(&mut one).await,
            Connection::Cluster(mut cluster) => command.query_async(&mut cluster).await,
        };
        if let Err(error) = &answered
            && self.is_spent(error)
        {
            let mut held = self.held.lock().await;
            if held.number == number {
                held.connection = None;
            }
        }
        answered
    }

    /// Whether the connection is dropped after this error. A cluster's connection replaces the connections of its nodes
    /// itself, with the addresses and passwords of its own beginning.
    fn is_spent(&self, error: &RedisError) -> bool {
        match self.settings.topology {
            Topology::One | Topology::Sentinels(_) => is_spent(error),
            Topology::Cluster => {
                let is_lost = error.kind() == ErrorKind::ClusterConnectionNotFound;
                let is_named = self.settings.tls_name.is_some() && error.is_io_error();
                is_lost || is_named || is_refusal(error)
            }
        }
    }

    async fn connection(&self) -> RedisResult<(u64, Connection)> {
        // The lock is held while connecting, so that one call connects and the others wait.
        let mut held = self.held.lock().await;
        if let Some(connection) = held.connection.clone() {
            let number = held.number;
            if held.renew_at.is_none_or(|at| Instant::now() < at) {
                return Ok((number, connection));
            }
            // One call makes the new connection; other calls use the present one.
            held.renew_at = Some(Instant::now() + RENEWED_AGAIN);
            drop(held);
            return match dial::connect(&self.settings).await {
                Ok(made) => Ok(self.held.lock().await.hold(made)),
                Err(error) => {
                    let error = in_words(&error);
                    warn!(
                        error,
                        "cannot renew the connection to redis before its password ends"
                    );
                    Ok((number, connection))
                }
            };
        }
        if let Some((at, error)) = &held.refused
            && at.elapsed() < REFUSED_FOR
        {
            return Err(error.clone());
        }
        match dial::connect(&self.settings).await {
            Ok(made) => Ok(held.hold(made)),
            Err(error) => {
                if is_refusal(&error) {
                    if let Some(provider) = &self.settings.credentials {
                        provider.refused();
                    }
                    held.refused = Some((Instant::now(), error.clone()));
                }
                Err(error)
            }
        }
    }
}

impl Held {
    fn hold(&mut self, (connection, life): (Connection, Option<Duration>)) -> (u64, Connection) {
        self.number += 1;
        self.connection = Some(connection.clone());
        self.renew_at = life.map(|life| Instant::now() + life.mul_f64(RENEWED_AT).max(REFUSED_FOR));
        self.refused = None;
        (self.number, connection)
    }
}
