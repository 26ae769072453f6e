//! Access tokens of Microsoft Entra ID for a workload, renewed in time.
//!
//! An [`Identity`] says who the workload is: a workload identity of Kubernetes, a managed identity, an application with
//! a client secret or a client certificate, or the person who has logged in with `az`. [`Tokens`] gives the current
//! access token for one scope.
//!
//! The requests are those of Microsoft's own crate, `azure_identity`. This crate adds what it leaves out:
//!
//! * Secrets, certificates and federated tokens are files that may change, and are read for each request.
//! * Client certificates need neither OpenSSL nor PKCS #12: a PEM file with certificate and key does.
//! * A token is renewed at 75 to 85 % of its life, drawn anew for each, and a refused token can be given back.
//! * The HTTP client is the caller's, with its authorities and proxy; the metadata endpoint is asked without a proxy.

mod assertion;
mod error;
mod identity;
mod tokens;
mod transport;

pub use error::{IdentityError, TokenError};
pub use identity::{Identity, ManagedId, Proof};
pub use tokens::{AccessToken, Tokens};

/// The scope of the tokens of every IoT Hub.
pub const HUB_SCOPE: &str = "https://iothubs.azure.net/.default";

/// The scope of the tokens of Azure Cache for Redis and Azure Managed Redis.
pub const REDIS_SCOPE: &str = "https://redis.azure.com/.default";
