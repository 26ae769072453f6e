//! How a client connects and how long it waits. Every wait has a bound.

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

/// The most sends in flight that can be asked for: above it the hub's own session window (5000 on the gateways seen
/// in traces) binds anyway, and a lost connection would leave more deliveries unknown than anyone wants to sort out.
pub const LARGEST_MAX_IN_FLIGHT: usize = 5_000;

/// Where to dial, when it is not the hub's own name and port. The host name of the connection string stays what TLS
/// checks, what tokens are signed for and what the `Host` header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address to dial; the hub's name when `None`.
    pub host: Option<String>,
    /// Port to dial; when `None` that of the connection string's host name, else 5671 for
    /// AMQP and 443 for HTTPS.
    pub port: Option<u16>,
}

/// What carries AMQP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// [`Amqp`](Self::Amqp) if it leads to the hub, else [`AmqpWs`](Self::AmqpWs); the one that did is tried first from
    /// then on. The log says which.
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

/// Everything about a client that is not in the connection string.
///
/// Make one with `default()` and set what differs; [`Client::new`](crate::Client::new) checks it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Certificate authorities. Default: the system's.
    pub roots: Roots,
    /// Where AMQP is dialled.
    pub amqp: Endpoint,
    /// Where HTTPS is dialled.
    pub https: Endpoint,
    /// What carries AMQP. Default: [`Transport::Auto`].
    pub transport: Transport,
    /// The HTTP proxy for AMQP and HTTPS. Default: that of the environment.
    pub proxy: Proxy,
    /// Name of the application, seen by the hub in the AMQP container id and in `User-Agent`. Default `twincast`;
    /// 1–64 of ASCII letters, digits, `-`, `_`, `.`, `/`.
    pub application: String,
    /// How long SAS tokens live; they are renewed at 75–85 % of it. Default 1 h, between 1 min and 24 h.
    pub token_lifetime: Duration,
    /// From dialling to a link that is attached, or to TLS being up for HTTPS. Default 30 s.
    pub connect_timeout: Duration,
    /// One HTTPS request with its answer, without retries. Default 60 s.
    pub request_timeout: Duration,
    /// One put-token. Default 30 s.
    pub token_timeout: Duration,
    /// One send, from the call to its outcome, waiting for a free slot, the link's credit and reconnecting included.
    /// Default 120 s: the hub shapes traffic before it refuses it, and is seen to take 12 s.
    pub send_timeout: Duration,
    /// How long a message may wait before it leaves: for a free slot, the link's credit, a connection. Then it is not
    /// sent. Default 24 h, which leaves it to `send_timeout`; short for a caller who may change its mind.
    pub leave_timeout: Duration,
    /// How long deliveries may be in flight with no sign of progress from the hub before the connection is given up
    /// and they are reported as unknown. Default 60 s; must be below `send_timeout` to be of use, but need not be.
    pub stall_timeout: Duration,
    /// Most C2D deliveries in flight on the link; the hub's credit and session window bind, too. Default 256, at most
    /// [`LARGEST_MAX_IN_FLIGHT`].
    pub max_in_flight: usize,
    /// Our AMQP idle time-out: when the hub sends nothing, not even an empty frame, for so long, the connection is
    /// given up. Default 120 s, at least 1 s.
    pub idle_timeout: Duration,
    /// Waits between attempts to reconnect. Default [`Policy::reconnect`].
    pub reconnect: Policy,
    /// Waits between tries of a request that failed in transit or with a 5xx. Default [`Policy::http_transient`].
    pub http_transient: Policy,
    /// Waits between tries of a request that was throttled without `Retry-After`. Default [`Policy::throttled`].
    pub throttled: Policy,
    /// The longest `Retry-After` that is waited for; a longer one ends the request with the error. Default 5 min.
    pub longest_retry_after: Duration,
    /// Called before every retry of a REST request. Default none.
    pub on_retry: Option<RetryHook>,
    /// Waited for right before every AMQP link is opened, the first time and after every loss. Default none.
    pub before_link: Option<LinkHook>,
}

/// Waited for before an AMQP link is dialled, e.g. to stay within a budget that several clients share: hubs throttle
/// the opening of links (`AmqpLinkOpen`).
///
/// The wait does not count against `connect_timeout`. Sends over a link that is open do not notice it; sends that wait
/// for the link have their time-out as ever. The future is dropped when nobody needs the link any more.
#[derive(Clone)]
pub struct LinkHook(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>);

impl LinkHook {
    /// Wraps a function. The link is opened when the function's future is done.
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
#[error("option {option} is not valid: {found}, allowed is {allowed}")]
pub struct OptionsError {
    /// The field of [`ClientOptions`].
    pub option: &'static str,
    /// What it holds.
    pub found: String,
    /// What it may hold, in words.
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
            longest_retry_after: Duration::from_secs(300),
            on_retry: None,
            before_link: None,
        }
    }
}

impl ClientOptions {
    /// What tells the hub who calls, in requests and on links.
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
                allowed: "1-64 of ASCII letters, digits, '-', '_', '.', '/'",
            });
        }
        if !(1..=LARGEST_MAX_IN_FLIGHT).contains(&self.max_in_flight) {
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
