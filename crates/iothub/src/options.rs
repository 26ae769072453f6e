//! How a client connects, and time limits. Every wait has a bound.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use thiserror::Error;
use twincast_retry::Policy;
use twincast_tls::Roots;
use twincast_tunnel::Proxy;

use crate::rest::RetryHook;

/// Upper bound of [`ClientOptions::max_in_flight`]. Above 5000 the hub's own session window (5000
/// on the gateways seen in traces) limits sends anyway, and a lost connection would leave too many
/// unknown deliveries to resolve.
pub const MAX_IN_FLIGHT_LIMIT: usize = 5_000;

/// The address to dial in place of the hub's own name and port. The host name of the connection
/// string still applies to TLS verification, token signing and the `Host` header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address to dial; the hub's name when `None`.
    pub host: Option<String>,
    /// Port to dial. When `None`, the port of the connection string's host name, else 5671 for AMQP
    /// and 443 for HTTPS.
    pub port: Option<u16>,
}

/// The transport below AMQP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// [`Amqp`](Self::Amqp) first, then [`AmqpWs`](Self::AmqpWs) if the first does not lead to the
    /// hub. Later connections begin with the transport that succeeded. The log names the transport.
    #[default]
    Auto,
    /// TLS on port 5671.
    Amqp,
    /// A WebSocket on port 443.
    AmqpWs,
}

impl Transport {
    /// The name of the transport.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Amqp => "amqp",
            Self::AmqpWs => "amqp_ws",
        }
    }
}

/// All settings of a client besides the connection string.
///
/// Start from `default()` and set individual fields; [`Client::new`](crate::Client::new) validates
/// the result.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Certificate authorities. Default: the system's.
    pub roots: Roots,
    /// The AMQP address.
    pub amqp: Endpoint,
    /// The HTTPS address.
    pub https: Endpoint,
    /// The transport below AMQP. Default: [`Transport::Auto`].
    pub transport: Transport,
    /// The HTTP proxy for AMQP and HTTPS. Default: the proxy named by the environment.
    pub proxy: Proxy,
    /// Name of the application, visible to the hub in the AMQP container id and in `User-Agent`.
    /// Default `twincast`; 1–64 of ASCII letters, digits, `-`, `_`, `.`, `/`.
    pub application: String,
    /// Lifetime of SAS tokens; renewal happens after 75–85 % of the lifetime. Default 1 h, between
    /// 1 min and 24 h.
    pub token_lifetime: Duration,
    /// Time from dialling to an attached link, or to established TLS for HTTPS. Default 30 s.
    pub connect_timeout: Duration,
    /// Time of one HTTPS request including the response, without retries. Default 60 s.
    pub request_timeout: Duration,
    /// Time of one put-token. Default 30 s.
    pub token_timeout: Duration,
    /// Time of one send, from the call to the outcome, including the waits for a free slot, link
    /// credit and reconnection. Default 120 s: the hub shapes traffic before refusing sends, and
    /// has been observed to take 12 s.
    pub send_timeout: Duration,
    /// Longest wait of a message before transmission: for a free slot, link credit, a connection.
    /// After that the message is not sent. Default 24 h, so `send_timeout` decides. A caller that
    /// may want to stop sending sets a short time.
    pub leave_timeout: Duration,
    /// Longest time with deliveries in flight and no progress from the hub. After that the
    /// connection is abandoned and the deliveries are reported as unknown. Default 60 s. Useful
    /// only below `send_timeout`; larger values are accepted.
    pub stall_timeout: Duration,
    /// Maximum number of C2D deliveries in flight on the link; the hub's credit and session window
    /// apply as well. Default 256, at most [`MAX_IN_FLIGHT_LIMIT`].
    pub max_in_flight: usize,
    /// The client's AMQP idle time-out: the connection is abandoned after this long without any
    /// frame from the hub, empty frames included. Default 120 s, at least 1 s.
    pub idle_timeout: Duration,
    /// Delays between attempts to reconnect. Default [`Policy::reconnect`].
    pub reconnect: Policy,
    /// Delays between tries of a request that failed in transit or with a 5xx. Default
    /// [`Policy::http_transient`].
    pub http_transient: Policy,
    /// Delays between tries of a request throttled without `Retry-After`. Default
    /// [`Policy::throttled`].
    pub throttled: Policy,
    /// The longest accepted `Retry-After`; a longer value ends the request with the error. Default
    /// 5 min.
    pub max_retry_after: Duration,
    /// Called before every retry of a REST request. Default none.
    pub on_retry: Option<RetryHook>,
    /// Awaited right before every AMQP link is opened, for the first time and after every loss.
    /// Default none.
    pub before_link: Option<LinkHook>,
}

/// A hook awaited before an AMQP link is dialled, e.g. to stay within a budget shared by several
/// clients: hubs throttle the opening of links (`AmqpLinkOpen`).
///
/// The wait does not count against `connect_timeout`. Sends over an open link are unaffected; sends
/// waiting for the link keep their own time-out. The future is dropped once the link is no longer
/// needed.
#[derive(Clone)]
pub struct LinkHook(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>);

impl LinkHook {
    /// Wraps a function. The link is opened after the function's future completes.
    pub fn new<F>(hook: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(move || hook().boxed()))
    }

    /// Returns when a link may be opened.
    pub(crate) async fn wait(&self) {
        (self.0)().await;
    }
}

impl fmt::Debug for LinkHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkHook")
    }
}

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("option {option} is {found}; allowed: {allowed}")]
pub struct OptionsError {
    /// The field of [`ClientOptions`].
    pub option: &'static str,
    /// The value found.
    pub found: String,
    /// A description of the allowed values.
    pub allowed: &'static str,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            roots: Roots::System,
            amqp: Endpoint::default(),
            https: Endpoint::default(),
            transport: Transport::default(),
            proxy: Proxy::default(),
            application: "twincast".to_owned(),
            token_lifetime: Duration::from_secs(60 * 60),
            connect_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            token_timeout: Duration::from_secs(30),
            send_timeout: Duration::from_secs(120),
            leave_timeout: Duration::from_secs(24 * 3600),
            stall_timeout: Duration::from_secs(60),
            max_in_flight: 256,
            idle_timeout: Duration::from_secs(120),
            reconnect: Policy::reconnect(),
            http_transient: Policy::http_transient(),
            throttled: Policy::throttled(),
            max_retry_after: Duration::from_secs(300),
            on_retry: None,
            before_link: None,
        }
    }
}

impl ClientOptions {
    /// The client's name and version, sent to the hub in requests and on links.
    pub(crate) fn agent(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!("{} twincast-iothub/{version}", self.application)
    }

    /// Checks every field against the bounds in its documentation.
    ///
    /// # Errors
    ///
    /// Names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if self.application.is_empty()
            || self.application.len() > 64
            || !self.application.chars().all(allowed)
        {
            return Err(OptionsError {
                option: "application",
                found: format!("{:?}", self.application),
                allowed: "1 to 64 ASCII letters, digits, '-', '_', '.', '/'",
            });
        }
        if !(1..=MAX_IN_FLIGHT_LIMIT).contains(&self.max_in_flight) {
            return Err(OptionsError {
                option: "max_in_flight",
                found: self.max_in_flight.to_string(),
                allowed: "1 to 5000",
            });
        }
        let day = Duration::from_secs(24 * 60 * 60);
        let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
        between(
            "token_lifetime",
            self.token_lifetime,
            60 * second,
            day,
            "1 min to 24 h",
        )?;
        between(
            "idle_timeout",
            self.idle_timeout,
            second,
            day,
            "1 s to 24 h",
        )?;
        for (option, value) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("token_timeout", self.token_timeout),
            ("send_timeout", self.send_timeout),
            ("leave_timeout", self.leave_timeout),
            ("stall_timeout", self.stall_timeout),
        ] {
            between(option, value, ms, day, "1 ms to 24 h")?;
        }
        Ok(())
    }
}

fn between(
    option: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
    allowed: &'static str,
) -> Result<(), OptionsError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(OptionsError {
        option,
        found: format!("{value:?}"),
        allowed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_fields_are_named() {
        assert_eq!(ClientOptions::default().validate(), Ok(()));
        let bad = |change: fn(&mut ClientOptions)| {
            let mut options = ClientOptions::default();
            change(&mut options);
            options.validate().unwrap_err().option
        };
        assert_eq!(bad(|o| o.max_in_flight = 0), "max_in_flight");
        assert_eq!(bad(|o| o.max_in_flight = 5_001), "max_in_flight");
        assert_eq!(bad(|o| o.application = "a b".into()), "application");
        assert_eq!(bad(|o| o.token_lifetime = Duration::ZERO), "token_lifetime");
        assert_eq!(bad(|o| o.send_timeout = Duration::ZERO), "send_timeout");
    }
}
