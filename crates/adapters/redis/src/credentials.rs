//! Users and passwords from sources other than the URL.

use std::time::SystemTime;

use async_trait::async_trait;
use twincast_secret::Secret;

/// User and password of a connection.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The user, as in `ACL SETUSER`; for Microsoft Entra ID the object id.
    pub user: String,
    /// The password, or a token.
    pub password: Secret,
    /// When the password expires, and the server closes connections made with the password; `None`
    /// for never.
    pub expires_at: Option<SystemTime>,
}

/// A source of users and passwords, such as an issuer of tokens.
///
/// The adapter asks the provider for each new connection, and makes a new connection after three
/// quarters of the remaining life of the password. Calls in flight are answered on the connection
/// on which they began.
#[async_trait]
pub trait CredentialsProvider: Send + Sync {
    /// The credentials for a new connection. A provider of tokens caches the token, because each
    /// new connection asks. A call is dropped after `connect_timeout`.
    ///
    /// # Errors
    /// Why there are no credentials now. The store then reports itself as unavailable, and the next
    /// call asks again.
    ///
    /// # Cancel safety
    /// Required: a dropped call must not spoil the next call.
    async fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>>;

    /// Called when a server refuses the last credentials. A provider of tokens drops the cached
    /// token.
    fn refused(&self) {}
}
