//! The connection to the hub: kept up as long as the agent runs, with pauses that spread a fleet.
//!
//! A token is renewed by connecting anew at 80 % of its life (MQTT 3.1.1 has no other way). The hub keeps the session, so
//! messages that were not acknowledged come again.

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
use crate::config::{self, span};
use crate::identity::{Assignment, Credentials, Source, dps};
use crate::store::Store;
use crate::update::Patch;

mod session;
mod topics;
mod wire;

/// How often a hub may refuse a device, before the provisioning service is asked whether it belongs to another one.
const REFUSALS_MAX: u32 = 3;

/// A connection that was held so long was a good one: the next wait is short again.
const GOOD: Duration = Duration::from_secs(60);

/// What comes from the hub, in order.
#[derive(Debug)]
pub(crate) enum FromHub {
    /// A connection is there; what is for the hub goes to this sender.
    Up(mpsc::Sender<ToHub>),
    /// Its twin, whole.
    Twin(Value),
    /// A change of desired properties.
    Desired(Value),
    /// A cloud-to-device message. `packet` is to be [acknowledged](ToHub::Acknowledge) when it is stored.
    Message {
        packet: Option<u16>,
        properties: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// A direct method.
    Method { name: String, rid: String },
    /// A [report](ToHub::Report) was taken.
    Reported(Patch),
    /// It was not.
    NotReported { status: u16 },
    /// The connection is gone.
    Down,
}

/// What goes to the hub.
#[derive(Debug)]
pub(crate) enum ToHub {
    Acknowledge(u16),
    Report(Patch),
    Answer {
        rid: String,
        status: u16,
        body: Value,
    },
}

/// Why there is no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum LinkError {
    #[error("cannot connect to {peer}")]
    Connect {
        peer: String,
        source: std::io::Error,
    },
    #[error("cannot connect to {peer}")]
    Dial { peer: String, source: DialError },
    #[error("WebSocket with {peer} failed")]
    WebSocket {
        peer: String,
        source: HandshakeError,
    },
    #[error("{peer} refuses the device: {reason}")]
    Refused { peer: String, reason: &'static str },
    #[error("{peer} broke the protocol: {what}")]
    Protocol { peer: String, what: String },
    #[error("{peer} closed the connection")]
    Closed { peer: String },
    #[error("connection to {peer} was lost")]
    Lost {
        peer: String,
        source: std::io::Error,
    },
    #[error("{peer} does not answer {what}")]
    Silent { peer: String, what: &'static str },
    #[error(transparent)]
    Provisioning(#[from] dps::DpsError),
    #[error("cannot learn the time from {peer}; without it no token can be signed")]
    NoTime {
        peer: String,
        source: reqwest::Error,
    },
    #[error("the provisioning service's answer cannot be stored")]
    Store(#[source] std::io::Error),
}

/// Keeps the connection.
pub(crate) struct Link {
    pub(crate) settings: config::Hub,
    pub(crate) property: String,
    pub(crate) credentials: Credentials,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) http: reqwest::Client,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) events: mpsc::Sender<FromHub>,
}

/// How a connection ended that was there.
enum End {
    /// Its token ends soon.
    Renew,
    /// The agent stops.
    Stop,
}

impl Link {
    /// Connects again and again until `stop`, or until nobody takes the events.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_secs(1), span(self.settings.reconnect_max));
        let mut refusals = 0;
        while !stop.is_cancelled() && !self.events.is_closed() {
            let begun = tokio::time::Instant::now();
            let result = tokio::select! {
                result = self.once(&stop) => result,
                () = self.events.closed() => return,
            };
            if self.events.send(FromHub::Down).await.is_err() {
                return;
            }
            if begun.elapsed() >= GOOD {
                backoff.reset();
            }
            let error = match result {
                Ok(End::Stop) => return,
                Ok(End::Renew) => continue,
                Err(error) => error,
            };
            let is_refusal = matches!(error, LinkError::Refused { .. });
            refusals = if is_refusal { refusals + 1 } else { 0 };
            // Tokens are refused when the clock is wrong.
            if is_refusal && self.learn_time().await.is_ok_and(|is_other| is_other) {
                continue;
            }
            if refusals >= REFUSALS_MAX && matches!(self.credentials.source, Source::Provisioned(_))
            {
                tracing::warn!(
                    "hub refuses the device again and again; the provisioning service is asked anew"
                );
                self.store.forget_assignment();
                refusals = 0;
            }
            let wait = backoff.next();
            tracing::warn!(
                error = chain(&error),
                wait_ms = wait.as_millis(),
                "no connection to the hub"
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection, to its end.
    async fn once(&self, stop: &CancellationToken) -> Result<End, LinkError> {
        let opened = async {
            if self.clock.is_unset() && self.credentials.certificate().is_none() {
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

    async fn open(&self, assignment: &Assignment) -> Result<session::Session, LinkError> {
        let life = span(self.settings.token_life);
        let resource = format!("{}/devices/{}", assignment.hub, assignment.device_id);
        let expires = self.clock.now().checked_add(life).unwrap_or(Timestamp::MAX);
        let password = self.credentials.proof.token(&resource, None, expires);
        let renew = password
            .as_ref()
            .map(|_| tokio::time::Instant::now() + life.mul_f64(0.8));
        let wire = wire::Wire::connect(&self.settings, &assignment.hub, &self.tls).await?;
        session::Session::open(
            wire,
            assignment,
            &self.settings,
            password,
            renew,
            self.property.clone(),
        )
        .await
    }

    async fn assignment(&self) -> Result<Assignment, LinkError> {
        let registration = match &self.credentials.source {
            Source::Fixed(assignment) => return Ok(assignment.clone()),
            Source::Provisioned(registration) => registration,
        };
        if let Some(assignment) = self.store.assignment() {
            return Ok(assignment);
        }
        let assignment = registration
            .register(&self.http, &self.credentials.proof, self.clock.now())
            .await?;
        tracing::info!(
            hub = assignment.hub,
            device = assignment.device_id,
            "device was assigned to a hub"
        );
        self.store.assign(&assignment).map_err(LinkError::Store)?;
        Ok(assignment)
    }

    /// Asks for the time, and says whether it is another one.
    async fn learn_time(&self) -> Result<bool, LinkError> {
        let (host, port) = match (
            &self.credentials.source,
            self.store.assignment::<Assignment>(),
        ) {
            (Source::Fixed(assignment), _) => (assignment.hub.clone(), self.settings.https_port),
            (Source::Provisioned(_), Some(assignment)) => {
                (assignment.hub, self.settings.https_port)
            }
            (Source::Provisioned(registration), None) => {
                (registration.host.clone(), registration.port)
            }
        };
        let no_time = |source: reqwest::Error| LinkError::NoTime {
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
                "clock was wrong; the time was taken from the server"
            );
        }
        Ok(behind.is_some())
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}
