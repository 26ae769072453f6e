//! Connecting to a hub: TCP, TLS, AMQP open, session, token. Every stage has a name, and all stages
//! share one time-out.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fe2o3_amqp::connection::{ConnectionHandle, OpenError};
use fe2o3_amqp::link::{ReceiverAttachError, SenderAttachError};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection, Session};
use fe2o3_amqp_types::definitions::{Error as AmqpError, Fields};
use serde_amqp::Value;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::c2d::{ConnectionFailure, symbol};
use crate::client::ClientInner;
use crate::hub_message::{HubMessage, cut};

use super::cbs::{Cbs, renew_loop};
use super::dial::{AmqpStream, dial};
use super::frames::MAX_FRAME_BYTES;
use super::stream::{CLOSE_TIMEOUT, HubStream, KillSwitch};

/// An open, authorised connection with one session.
///
/// Dropping the value cuts the connection at once;
/// [`close_in_background`](Self::close_in_background) allows a moment for an orderly close. The
/// library's own `end` and `close` are never called: they wait, keeping a core busy, for a peer
/// that may never answer.
pub(crate) struct HubConnection {
    pub(crate) session: SessionHandle<()>,
    /// Requests a new token at once.
    pub(crate) renew: Arc<Notify>,
    /// Receives the failure of a token renewal; the sender is dropped if the renewal task panics.
    token_lost: oneshot::Receiver<ConnectionFailure>,
    _connection: ConnectionHandle<()>,
    guard: Guard,
}

/// The stage under way, named in a time-out error.
pub(super) struct Stage(Mutex<&'static str>);

struct Guard {
    kill: Arc<KillSwitch>,
    renewal: Option<AbortHandle>,
    is_orderly: bool,
}

impl HubConnection {
    /// Connects and authorises, for the single link attached next by the caller. `purpose` becomes
    /// part of the container id, for the hub's logs.
    pub(crate) async fn open(
        client: &Arc<ClientInner>,
        purpose: &str,
    ) -> Result<Self, ConnectionFailure> {
        if let Some(before_link) = &client.options.before_link {
            before_link.wait().await;
        }
        // The clock is checked before the token is signed, because the token expires by the hub's
        // clock.
        client.refresh_clock().await;
        let limit = client.options.connect_timeout;
        let stage = Stage::new("resolving the hub's name");
        match timeout(limit, Self::open_unbounded(client, purpose, &stage)).await {
            Ok(result) => result.map_err(|failure| client.with_clock(failure)),
            Err(_) => Err(ConnectionFailure::Timeout {
                stage: stage.get(),
                limit,
            }),
        }
    }

    async fn open_unbounded(
        client: &Arc<ClientInner>,
        purpose: &str,
        stage: &Stage,
    ) -> Result<Self, ConnectionFailure> {
        let stream = dial(client, stage)
            .await
            .map_err(ConnectionFailure::Connect)?;
        let (stream, kill) = HubStream::new(stream, client.options.idle_timeout);
        let guard = Guard {
            kill: Arc::clone(&kill),
            renewal: None,
            is_orderly: false,
        };
        let opening = Self::open_over(client, purpose, stage, stream, guard);
        while_alive(&kill, || stage.get(), opening).await
    }

    async fn open_over(
        client: &Arc<ClientInner>,
        purpose: &str,
        stage: &Stage,
        stream: HubStream<AmqpStream>,
        mut guard: Guard,
    ) -> Result<Self, ConnectionFailure> {
        stage.set("opening the AMQP connection");
        let id = uuid::Uuid::new_v4().simple();
        let idle = u32::try_from(client.options.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        let mut connection = Connection::builder()
            .container_id(format!("{}-{purpose}-{id}", client.options.application))
            .hostname(client.host_name.as_str())
            .scheme("amqp")
            .sasl_profile(SaslProfile::Anonymous)
            .max_frame_size(MAX_FRAME_BYTES as u32)
            .idle_time_out(idle)
            .open_with_stream(stream)
            .await
            .map_err(|error| open_failure(&error))?;
        stage.set("beginning the AMQP session");
        let mut session = Session::begin(&mut connection)
            .await
            .map_err(|error| broken("beginning the AMQP session", &error))?;
        stage.set("attaching the token links");
        let mut cbs = Cbs::attach(&mut session).await?;
        stage.set("sending the token");
        let token = cbs.put_token(client).await?;
        let (failed, token_lost) = oneshot::channel();
        let renew = Arc::new(Notify::new());
        let renewal = tokio::spawn(renew_loop(
            cbs,
            Arc::clone(client),
            token,
            Arc::clone(&renew),
            failed,
        ));
        guard.renewal = Some(renewal.abort_handle());
        Ok(Self {
            session,
            renew,
            token_lost,
            _connection: connection,
            guard,
        })
    }

    /// Waits until the connection has ended, or until the token can no longer be renewed. Returns
    /// the cause, as far as known. Links mostly report a more precise cause, so the method leaves
    /// links a moment to report first.
    ///
    /// Cancel safe. Must not be called again after returning.
    pub(crate) async fn ended(&mut self) -> ConnectionFailure {
        tokio::select! {
            lost = &mut self.token_lost => lost.unwrap_or_else(|_| ConnectionFailure::Broken {
                stage: "renewing the token",
                detail: "the renewal task has ended".to_owned(),
            }),
            () = self.guard.kill.ended() => {
                self.with_fault(connection_ended("waiting for the hub"))
            }
        }
    }

    /// Returns `failure`; a [`Broken`](ConnectionFailure::Broken) failure gets the stream's fault
    /// as detail, if known.
    pub(crate) fn with_fault(&self, failure: ConnectionFailure) -> ConnectionFailure {
        with_fault(&self.guard.kill, failure)
    }

    /// The kill switch of the underlying stream, for work borrowing the session.
    pub(crate) fn kill(&self) -> Arc<KillSwitch> {
        Arc::clone(&self.guard.kill)
    }

    /// Allows an orderly close in the background, for two seconds at most.
    pub(crate) fn close_in_background(mut self) {
        self.guard.is_orderly = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        let kill = Arc::clone(&self.kill);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.is_orderly => {
                runtime.spawn(async move {
                    tokio::time::sleep(CLOSE_TIMEOUT).await;
                    kill.now();
                });
            }
            _ => kill.now(),
        }
    }
}

impl Stage {
    fn new(name: &'static str) -> Self {
        Self(Mutex::new(name))
    }

    pub(super) fn set(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    pub(super) fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attaches a link in `stage`, within `limit` and while the connection lives.
pub(crate) async fn attached<T>(
    kill: &KillSwitch,
    stage: &'static str,
    limit: Duration,
    attach: impl Future<Output = Result<T, ConnectionFailure>>,
) -> Result<T, ConnectionFailure> {
    match timeout(limit, while_alive(kill, || stage, attach)).await {
        Ok(attached) => attached,
        Err(_) => Err(ConnectionFailure::Timeout { stage, limit }),
    }
}

/// Runs `work` while the connection lives.
async fn while_alive<T>(
    kill: &KillSwitch,
    stage: impl Fn() -> &'static str,
    work: impl Future<Output = Result<T, ConnectionFailure>>,
) -> Result<T, ConnectionFailure> {
    let done = tokio::select! {
        biased;
        done = work => done,
        () = kill.ended() => Err(connection_ended(stage())),
    };
    done.map_err(|failure| with_fault(kill, failure))
}

fn connection_ended(stage: &'static str) -> ConnectionFailure {
    ConnectionFailure::Broken {
        stage,
        detail: "the connection has ended".to_owned(),
    }
}

fn with_fault(kill: &KillSwitch, failure: ConnectionFailure) -> ConnectionFailure {
    match (failure, kill.fault()) {
        (ConnectionFailure::Broken { stage, .. }, Some(fault)) => ConnectionFailure::Broken {
            stage,
            detail: cut(fault),
        },
        (failure, _) => failure,
    }
}

fn open_failure(error: &OpenError) -> ConnectionFailure {
    match error {
        OpenError::RemoteClosedWithError(error) => ended("connection", error),
        error => broken("opening the AMQP connection", error),
    }
}

/// A failure explained by the hub.
pub(crate) fn ended(scope: &'static str, error: &AmqpError) -> ConnectionFailure {
    let message = HubMessage::parse(error.description.as_deref().unwrap_or(""));
    let tracking = message.tracking_id.map(|id| format!(" [tracking id {id}]"));
    ConnectionFailure::Ended {
        scope,
        condition: symbol(error),
        description: format!("{}{}", message.text, tracking.unwrap_or_default()),
    }
}

/// A failure explained only by the library. The library's texts hold no secrets: they name states
/// and conditions.
pub(crate) fn broken(stage: &'static str, error: &dyn Error) -> ConnectionFailure {
    ConnectionFailure::Broken {
        stage,
        detail: cut(&describe(error)),
    }
}

/// Describes an error with its causes; a cause already contained in the text is skipped.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}

/// Why a sender link was not attached in `stage`.
pub(crate) fn sender_attach_failure(
    stage: &'static str,
    error: &SenderAttachError,
) -> ConnectionFailure {
    match error {
        SenderAttachError::RemoteClosedWithError(error) => ended("link", error),
        error => broken(stage, error),
    }
}

/// Why a receiver link was not attached in `stage`.
pub(crate) fn receiver_attach_failure(
    stage: &'static str,
    error: &ReceiverAttachError,
) -> ConnectionFailure {
    match error {
        ReceiverAttachError::RemoteClosedWithError(error) => ended("link", error),
        error => broken(stage, error),
    }
}

/// The link property with the client's name and version, sent by the official SDKs on every data
/// link.
pub(crate) fn link_properties(client: &ClientInner) -> Fields {
    let mut properties = Fields::new();
    let version = Value::String(client.options.agent());
    properties.insert("com.microsoft:client-version".into(), version);
    properties
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use twincast_emulator::{Faults, Fleet, HubConfig};

    use super::*;
    use crate::{Client, ClientOptions, ConnectionString, Roots};

    #[tokio::test(flavor = "multi_thread")]
    async fn open_connection_renews_tokens_and_reports_refusals() {
        let config = HubConfig {
            amqp_port: 0,
            https_port: 0,
            control_port: None,
            ..HubConfig::with_fleet(Fleet::empty())
        };
        let hub = twincast_emulator::start(config).await.unwrap();
        let connection: ConnectionString = hub.connection_string().parse().unwrap();
        let options = ClientOptions {
            roots: Roots::Only(hub.ca_pem().to_owned()),
            ..ClientOptions::default()
        };
        let client = Client::new(&connection, options).unwrap();
        let mut open = HubConnection::open(&client.inner, "test").await.unwrap();
        let renew_at = client.inner.credentials.token().await.unwrap().renew_at;
        open.renew.notify_one();
        // The next token's renewal time is drawn anew.
        let renewed = async {
            while client.inner.credentials.token().await.unwrap().renew_at == renew_at {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), renewed).await.unwrap();
        assert!(open.ended().now_or_never().is_none());
        hub.hub().set_faults(Faults {
            refuse_cbs: true,
            ..Faults::default()
        });
        open.renew.notify_one();
        let lost = timeout(Duration::from_secs(30), open.ended())
            .await
            .unwrap();
        assert!(
            matches!(lost, ConnectionFailure::Unauthorised { status: 401, .. }),
            "{lost}"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_aborted_renewal_ends_the_connection() {
        let config = HubConfig {
            amqp_port: 0,
            https_port: 0,
            control_port: None,
            ..HubConfig::with_fleet(Fleet::empty())
        };
        let hub = twincast_emulator::start(config).await.unwrap();
        let connection: ConnectionString = hub.connection_string().parse().unwrap();
        let options = ClientOptions {
            roots: Roots::Only(hub.ca_pem().to_owned()),
            ..ClientOptions::default()
        };
        let client = Client::new(&connection, options).unwrap();
        let mut open = HubConnection::open(&client.inner, "test").await.unwrap();
        open.guard.renewal.as_ref().unwrap().abort();
        let ended = timeout(Duration::from_secs(30), open.ended())
            .await
            .unwrap();
        assert!(ended.to_string().contains("renewing the token"), "{ended}");
        assert!(ended.is_transient());
    }
}
