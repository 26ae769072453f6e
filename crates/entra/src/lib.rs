//! Access tokens of Microsoft Entra ID for a workload, renewed in time.
//!
//! An [`Identity`] describes the workload: a workload identity of Kubernetes, a managed identity,
//! an application with a client secret or a client certificate, or the user logged in with `az`.
//! [`Tokens`] provides the current access token for one scope.
//!
//! Microsoft's own crate, `azure_identity`, makes the requests. This crate adds:
//!
//! * Secrets, certificates and federated tokens are replaceable files, read for each request.
//! * Client certificates need neither OpenSSL nor PKCS #12: a PEM file with certificate and key
//!   suffices.
//! * A token is renewed after 75 to 85 % of its life, with the share drawn anew for each token, and
//!   a refused token is replaced early.
//! * The caller provides the HTTP client, with authorities and proxy. Requests to the metadata
//!   endpoint bypass the proxy.

mod assertion;
mod error;
mod identity;
mod tokens;
mod transport;

pub use error::{IdentityError, TokenError};
pub use identity::{Identity, ManagedId, Proof};
pub use tokens::{AccessToken, Tokens};

/// The scope of tokens for every IoT Hub.
pub const HUB_SCOPE: &str = "https://iothubs.azure.net/.default";

/// The scope of tokens for Azure Cache for Redis and Azure Managed Redis.
pub const REDIS_SCOPE: &str = "https://redis.azure.com/.default";
