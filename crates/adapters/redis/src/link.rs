//! The connection of a store, and its replacement.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};
use twincast_core::error::describe;

use crate::dial::{self, Connection};
use crate::error::{
    ConnectError, is_demoted, is_refusal, needs_reconnect, no_connection, timed_out,
};
use crate::scripts::Run;
use crate::settings::{Settings, Topology};

/// How long a refusal is remembered. The store presents user and password only once in this time,
/// regardless of the number of waiting calls.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// The share of a password's life after which the connection is renewed.
const RENEWAL_SHARE: f64 = 0.75;
/// The pause after a failed renewal.
const RENEWAL_RETRY_PAUSE: Duration = Duration::from_secs(10);
/// The time limit of an attempt to connect, in connect timeouts: the token, a sentinel, the master,
/// and the commands in between.
const ATTEMPT_TIMEOUTS: u32 = 4;

/// A connection to a Redis, or a connection to each node of a cluster, shared by all calls.
///
/// A broken connection is dropped, and the next call makes a new connection. A call is repeated
/// once if the server has closed the connection (after a restart, or for idleness), or is no longer
/// the master. The repetition is safe, because every command of the store may be repeated.
///
/// A task of its own connects. A caller could stop polling its call while the call connects
/// (another arm of a `select!` runs), and would then keep every other call from the connection.
pub(crate) struct Link {
    call_timeout: Duration,
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    /// Never locked across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// The number of connections so far.
    number: u64,
    /// When the connection is renewed, because the password expires.
    renew_at: Option<Instant>,
    /// The time and the error of the last refusal.
    refused: Option<(Instant, RedisError)>,
    /// The attempt to connect in progress. Every caller without a connection waits for the attempt.
    attempt: Option<Attempt>,
}

type Attempt = Shared<BoxFuture<'static, RedisResult<(u64, Connection)>>>;

impl Link {
    /// Prepares a connection; the first call connects.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConnectError> {
        dial::check(settings)?;
        Ok(Self {
            call_timeout: settings.connect_timeout + settings.response_timeout,
            inner: Arc::new(Inner {
                settings: settings.clone(),
                state: Mutex::default(),
            }),
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

    /// Sends a command. Takes no longer than both timeouts together.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let answered = timeout(self.call_timeout, self.ask(command)).await;
        answered.unwrap_or_else(|_| Err(timed_out(self.call_timeout)))
    }

    async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        match self.ask_once(command).await {
            Err(error) if self.is_retryable(&error) => {
                debug!(%error, "connection to redis lost, trying another");
                self.ask_once(command).await
            }
            answered => answered,
        }
    }

    /// Returns whether another connection may bring the answer. A cluster's connection repeats
    /// calls by itself.
    fn is_retryable(&self, error: &RedisError) -> bool {
        let is_one = !matches!(self.inner.settings.topology, Topology::Cluster);
        is_one && (error.is_connection_dropped() || is_demoted(error) || is_refusal(error))
    }

    async fn ask_once(&self, command: &Cmd) -> RedisResult<Value> {
        let (number, connection) = self.connection().await?;
        let answered = match connection {
            Connection::Single(mut single) => command.query_async(&mut single).await,
            Connection::Cluster(mut cluster) => command.query_async(&mut cluster).await,
        };
        if let Err(error) = &answered
            && self.needs_reconnect(error)
        {
            let mut state = self.inner.state();
            if state.number == number {
                state.connection = None;
            }
        }
        answered
    }

    /// Returns whether the connection is dropped after this error. A cluster's connection replaces
    /// the connections to the nodes by itself, with the addresses and passwords read when the
    /// cluster's connection was made.
    fn needs_reconnect(&self, error: &RedisError) -> bool {
        match self.inner.settings.topology {
            Topology::Single | Topology::Sentinels(_) => needs_reconnect(error),
            Topology::Cluster => {
                let is_lost = error.kind() == ErrorKind::ClusterConnectionNotFound;
                let is_named = self.inner.settings.tls_name.is_some() && error.is_io_error();
                is_lost || is_named || is_refusal(error)
            }
        }
    }

    /// Returns the connection, or waits for the attempt to connect.
    async fn connection(&self) -> RedisResult<(u64, Connection)> {
        let attempt = {
            let mut state = self.inner.state();
            if let Some(connection) = state.connection.clone() {
                let is_due = state.renew_at.is_some_and(|at| Instant::now() >= at);
                if is_due && state.attempt.is_none() {
                    // The present connection serves meanwhile.
                    state.attempt = Some(self.inner.attempt());
                }
                return Ok((state.number, connection));
            }
            if let Some((at, error)) = &state.refused
                && at.elapsed() < REFUSED_FOR
            {
                return Err(error.clone());
            }
            let begin = || self.inner.attempt();
            state.attempt.get_or_insert_with(begin).clone()
        };
        attempt.await
    }
}

impl Drop for Link {
    /// Ends an attempt in progress.
    fn drop(&mut self) {
        let attempt = self.inner.state().attempt.take();
        drop(attempt);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt to connect.
    fn attempt(self: &Arc<Self>) -> Attempt {
        let task = tokio::spawn(Arc::clone(self).connect());
        let task = AbortOnDropHandle::new(task);
        let result = async {
            let ended = task.await;
            ended.unwrap_or_else(|_| Err(no_connection("the attempt to connect was aborted")))
        };
        result.boxed().shared()
    }

    async fn connect(self: Arc<Self>) -> RedisResult<(u64, Connection)> {
        let _attempting = Attempting(&self);
        let limit = self.settings.connect_timeout * ATTEMPT_TIMEOUTS;
        let made = timeout(limit, dial::connect(&self.settings)).await;
        let made = made.unwrap_or_else(|_| Err(timed_out(limit)));
        match made {
            Ok(made) => Ok(self.state().hold(made)),
            Err(error) => {
                self.state().failed(&error);
                if is_refusal(&error)
                    && let Some(provider) = &self.settings.credentials
                {
                    provider.refused();
                }
                Err(error)
            }
        }
    }
}

/// An attempt in progress. However the attempt ends, the next call may begin another.
struct Attempting<'a>(&'a Inner);

impl Drop for Attempting<'_> {
    fn drop(&mut self) {
        let attempt = self.0.state().attempt.take();
        drop(attempt);
    }
}

impl State {
    fn hold(&mut self, (connection, life): (Connection, Option<Duration>)) -> (u64, Connection) {
        self.number += 1;
        self.connection = Some(connection.clone());
        self.renew_at =
            life.map(|life| Instant::now() + life.mul_f64(RENEWAL_SHARE).max(REFUSED_FOR));
        self.refused = None;
        (self.number, connection)
    }

    /// Notes a failed attempt.
    fn failed(&mut self, error: &RedisError) {
        if self.connection.is_some() {
            self.renew_at = Some(Instant::now() + RENEWAL_RETRY_PAUSE);
            let error = describe(error);
            warn!(
                error,
                "cannot renew the connection to redis before its password ends"
            );
        } else if is_refusal(error) {
            self.refused = Some((Instant::now(), error.clone()));
        }
    }
}
