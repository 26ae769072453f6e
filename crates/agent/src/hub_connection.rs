//! The connection to the hub, maintained while the agent runs. Random pauses between attempts
//! spread the load of a fleet.
//!
//! The agent renews a token by reconnecting at 80 % of the token's life; MQTT 3.1.1 has no other
//! way. The hub keeps the session, and delivers unacknowledged messages again.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use twincast_tunnel::{DialError, HandshakeError};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{self, to_std};
use crate::identity::{Assignment, AssignmentSource, DeviceIdentity, dps};
use crate::store::Store;
use crate::update::Patch;

mod mqtt_stream;
mod session;
mod topics;

/// The number of refusals by a hub before the agent asks the provisioning service for a new
/// assignment.
const REFUSALS_MAX: u32 = 3;

/// A connection of at least this duration resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Events from the hub, in order.
#[derive(Debug)]
pub(crate) enum HubEvent {
    /// The connection is up; commands to the hub go to this sender.
    Up(mpsc::Sender<HubCommand>),
    /// The whole twin of the device.
    Twin(Value),
    /// A change of desired properties.
    Desired(Value),
    /// A cloud-to-device message. The receiver [acknowledges](HubCommand::Acknowledge) `packet`
    /// after storing the message.
    Message {
        packet: Option<u16>,
        properties: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// A direct method.
    Method { name: String, rid: String },
    /// The hub accepted a [report](HubCommand::Report).
    Reported(Patch),
    /// The hub did not accept a report.
    NotReported { status: u16 },
    /// The connection is down.
    Down,
}

/// Commands to the hub.
#[derive(Debug)]
pub(crate) enum HubCommand {
    Acknowledge(u16),
    Report(Patch),
    Answer {
        rid: String,
        status: u16,
        body: Value,
    },
}

/// Errors of a connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum ConnectionError {
    #[error("cannot connect to {peer}")]
    Connect {
        peer: String,
        source: std::io::Error,
    },
    #[error("cannot connect to {peer}")]
    Dial { peer: String, source: DialError },
    #[error("cannot open a WebSocket to {peer}")]
    WebSocket {
        peer: String,
        source: HandshakeError,
    },
    #[error("{peer} refuses the device: {reason}")]
    Refused { peer: String, reason: &'static str },
    #[error("MQTT protocol error with {peer}: {what}")]
    Protocol { peer: String, what: String },
    #[error("{peer} closed the connection")]
    Closed { peer: String },
    #[error("connection to {peer} was lost")]
    Lost {
        peer: String,
        source: std::io::Error,
    },
    #[error("{peer}: {what} timed out")]
    Silent { peer: String, what: &'static str },
    #[error(transparent)]
    Provisioning(#[from] dps::DpsError),
    #[error("cannot get the time from {peer}, which is required to sign tokens")]
    NoTime {
        peer: String,
        source: reqwest::Error,
    },
    #[error("cannot store the assigned hub")]
    Store(#[source] std::io::Error),
}

/// Maintains the connection to the hub.
pub(crate) struct HubConnection {
    pub(crate) settings: config::Hub,
    pub(crate) property: String,
    pub(crate) identity: DeviceIdentity,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) http: reqwest::Client,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) events: mpsc::Sender<HubEvent>,
}

/// The regular end of a connection.
enum End {
    /// The token expires soon.
    Renew,
    /// The agent stops.
    Stop,
}

impl HubConnection {
    /// Reconnects until `stop`, or until the receiver of the events is dropped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_secs(1), to_std(self.settings.reconnect_max));
        let mut refusals = 0;
        while !stop.is_cancelled() && !self.events.is_closed() {
            let started_at = tokio::time::Instant::now();
            let result = tokio::select! {
                result = self.run_once(&stop) => result,
                () = self.events.closed() => return,
            };
            if self.events.send(HubEvent::Down).await.is_err() {
                return;
            }
            if started_at.elapsed() >= STABLE_AFTER {
                backoff.reset();
            }
            let error = match result {
                Ok(End::Stop) => return,
                Ok(End::Renew) => {
                    refusals = 0;
                    continue;
                }
                Err(error) => error,
            };
            let is_refusal = matches!(error, ConnectionError::Refused { .. });
            refusals = if is_refusal { refusals + 1 } else { 0 };
            // A wrong clock is a cause of refused tokens.
            if is_refusal && self.learn_time().await.is_ok_and(|is_other| is_other) {
                continue;
            }
            if refusals >= REFUSALS_MAX
                && matches!(self.identity.source, AssignmentSource::Provisioned(_))
            {
                tracing::warn!(
                    "hub refused the device repeatedly; asking the provisioning service for a new assignment"
                );
                self.store.forget_assignment();
                refusals = 0;
            }
            let wait = backoff.next();
            tracing::warn!(
                error = error_chain(&error),
                wait_ms = wait.as_millis(),
                "no connection to the hub"
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Opens a connection and serves it until the end.
    async fn run_once(&self, stop: &CancellationToken) -> Result<End, ConnectionError> {
        let opened = async {
            if self.clock.is_unset() && self.identity.certificate().is_none() {
                self.learn_time().await?;
            }
            let assignment = self.assignment().await?;
            self.open(&assignment).await
        };
        let session = tokio::select! {
            session = opened => session?,
            () = stop.cancelled() => return Ok(End::Stop),
        };
        session.run(&self.events, stop).await
    }

    async fn open(&self, assignment: &Assignment) -> Result<session::Session, ConnectionError> {
        let life = to_std(self.settings.token_life);
        let resource = format!("{}/devices/{}", assignment.hub, assignment.device_id);
        let expires = self.clock.now().checked_add(life).unwrap_or(Timestamp::MAX);
        let password = self.identity.credential.token(&resource, None, expires);
        let renew = password
            .as_ref()
            .map(|_| tokio::time::Instant::now() + life.mul_f64(0.8));
        let stream =
            mqtt_stream::MqttStream::connect(&self.settings, &assignment.hub, &self.tls).await?;
        session::Session::open(
            stream,
            assignment,
            &self.settings,
            password,
            renew,
            self.property.clone(),
        )
        .await
    }

    async fn assignment(&self) -> Result<Assignment, ConnectionError> {
        let registration = match &self.identity.source {
            AssignmentSource::Fixed(assignment) => return Ok(assignment.clone()),
            AssignmentSource::Provisioned(registration) => registration,
        };
        if let Some(assignment) = self.store.assignment() {
            return Ok(assignment);
        }
        let assignment = registration
            .register(&self.http, &self.identity.credential, self.clock.now())
            .await?;
        tracing::info!(
            hub = assignment.hub,
            device = assignment.device_id,
            "device was assigned to a hub"
        );
        self.store
            .assign(&assignment)
            .map_err(ConnectionError::Store)?;
        Ok(assignment)
    }

    /// Learns the time from the hub or the provisioning service. Returns whether the clock has
    /// changed.
    async fn learn_time(&self) -> Result<bool, ConnectionError> {
        let (host, port) = match (&self.identity.source, self.store.assignment::<Assignment>()) {
            (AssignmentSource::Fixed(assignment), _) => {
                (assignment.hub.clone(), self.settings.https_port)
            }
            (AssignmentSource::Provisioned(_), Some(assignment)) => {
                (assignment.hub, self.settings.https_port)
            }
            (AssignmentSource::Provisioned(registration), None) => {
                (registration.host.clone(), registration.port)
            }
        };
        let no_time = |source: reqwest::Error| ConnectionError::NoTime {
            peer: host.clone(),
            source: source.without_url(),
        };
        let request = self
            .http
            .head(format!("https://{host}:{port}/"))
            .timeout(Duration::from_secs(20));
        let answer = request.send().await.map_err(no_time)?;
        let date = answer
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| date.to_str().ok());
        let time = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let behind = time.and_then(|time| self.clock.learn(time.timestamp()));
        if let Some(behind) = behind {
            tracing::warn!(
                behind_s = behind.as_secs(),
                host,
                "clock was wrong; using the time of the server"
            );
        }
        Ok(behind.is_some())
    }
}

/// Returns an error and all causes in a single line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
