//! An Azure IoT Hub *service* client: twin queries, cloud-to-device (C2D) messages, delivery
//! feedback.
//!
//! A stand-alone crate, independent of Twincast. Properties beyond a plain protocol client:
//!
//! * **Sends pipelined.** One long-lived AMQP link carries hundreds of sends in flight. Each send
//!   resolves to an outcome of its own ([`SendOutcome`]) and to the caller's next step
//!   ([`Disposition`]). Nothing hangs: every send ends within [`ClientOptions::send_timeout`].
//! * **Never guesses.** A message whose answer was lost is [`Unknown`](SendOutcome::Unknown), not
//!   failed; `released` is not success.
//! * **Stays up.** Tokens are renewed on the open connection, lost links are reopened with jitter,
//!   a silent hub is detected, and the session window quirk of newer gateways is repaired.
//! * **Goes by the hub's clock.** Tokens and messages expire on time even when this machine's clock
//!   is wrong. The client reports the difference ([`Client::clock_offset`]).
//! * **Actionable errors.** Connection failures are classified by stage: name, TCP, certificate,
//!   credentials.
//!
//! The crate does not serve devices and does not manage the registry. A client needs a shared
//! access policy (`service` suffices for everything but [`Client::statistics`]) or an identity of
//! Microsoft Entra ID with the role IoT Hub Data Contributor.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use twincast_iothub::{
//!     Ack, C2dMessage, C2dSender, C2dTemplate, Client, ClientOptions, ConnectionString, Disposition, Expiry,
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let connection = ConnectionString::from_env("IOTHUB_CONNECTION_STRING")?;
//! let client = Client::new(&connection, ClientOptions::default())?;
//!
//! // Which devices?
//! let mut pages = client.query("SELECT deviceId FROM devices WHERE tags.region = 'eu'", 100)?;
//! let template = C2dTemplate::builder(r#"{"fetch":"1.2.3"}"#)
//!     .content_type("application/json")
//!     .content_encoding("utf-8")
//!     .ack(Ack::Full)
//!     .expiry(Expiry::After(Duration::from_secs(3600)))
//!     .build()?;
//!
//! let sender = C2dSender::connect(&client).await?;
//! while let Some(page) = pages.next_page().await? {
//!     // Sequential for brevity; a real program polls a few hundred of these futures at once.
//!     for device in page.items.iter().filter_map(|item| item["deviceId"].as_str()) {
//!         let message = C2dMessage::new(device, format!("rollout-7.{device}"), template.clone())?;
//!         match sender.send(message).await.disposition() {
//!             Disposition::Accepted => {}
//!             Disposition::SlowHubDown { retry_after } => tokio::time::sleep(retry_after).await,
//!             other => println!("{device}: {other:?}"),
//!         }
//!     }
//! }
//! sender.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Secrets
//!
//! Keys and tokens are [`Secret`]s: absent from every `Debug`, `Display` and error of this crate,
//! and from the crate's log. Dependencies could log them: see [`LOG_TARGETS_WITH_SECRETS`].

mod amqp;
mod c2d;
mod client;
mod clock;
mod connect_error;
mod connection_string;
mod credentials;
mod feedback;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod hub_message;
mod options;
mod rest;
mod sas;

pub use c2d::{
    Ack, C2dMessage, C2dSender, C2dTemplate, C2dTemplateBuilder, ConnectionFailure, DeviceReason,
    Disposition, EXPIRY_MARGIN, Expiry, HubUnavailableReason, InvalidMessage, LinkState,
    MAX_DEVICE_ID_BYTES, MAX_MESSAGE_BYTES, MAX_MESSAGE_ID_BYTES, MAX_TTL, NotSent, Refusal,
    SendOutcome, SendReport, THROTTLE_PAUSE, UnknownCause,
};
pub use client::{Client, ClientError};
pub use clock::ClockOffset;
pub use connect_error::ConnectError;
pub use connection_string::{
    ConnectionString, ConnectionStringError, HubAddress, LoadConnectionStringError,
};
pub use credentials::{Credentials, CredentialsError, SharedAccess};
pub use feedback::{
    FeedbackBatch, FeedbackError, FeedbackReceiver, FeedbackRecord, FeedbackStatus, SettleError,
    UnparsableFeedback, UnreadableRecord,
};
pub use options::{
    ClientOptions, Endpoint, LinkHook, MAX_IN_FLIGHT_LIMIT, OptionsError, Transport,
};
pub use rest::{
    ApiError, DeviceStatistics, MAX_PAGE_ITEMS, MAX_QUERY_CHARS, Page, QueryPages, RestError,
    RetryHook, RetryNotice, RetryReason, ServiceStatistics, Twin, TwinProperties,
};
pub use sas::{SAS_TOKEN_TYPE, sign};
pub use twincast_secret::Secret;
pub use twincast_tls::{Roots, RootsError};
pub use twincast_tunnel::{Proxy, ProxyUrlError};

/// Log targets under which a dependency would write tokens in clear at the level `trace`. A program
/// should refuse these targets, whatever the user's log filter says.
///
/// * `fe2o3_amqp` writes whole frames, put-token bodies included, when built with the features
///   `tracing` or `log`. This workspace enables neither, so no such code is compiled in. Cargo
///   unites features, so another crate in the same build could turn them on.
/// * `reqwest` writes all bytes read and written when set to verbose; this crate never sets it. The
///   token's header value is marked sensitive and therefore absent from `Debug` output.
pub const LOG_TARGETS_WITH_SECRETS: &[&str] = &["fe2o3_amqp", "reqwest::connect"];
