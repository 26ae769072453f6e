//! Credentials of this process at a hub or at Redis: connection strings, or an identity of
//! Microsoft Entra ID.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use twincast_core::ids::HubName;
use twincast_entra::{HUB_SCOPE, REDIS_SCOPE, Tokens};
use twincast_iothub::{ClientOptions, Credentials, HubAddress, SharedAccess};
use twincast_redis::CredentialsProvider;

use crate::config::{AuthSettings, HubSettings, source_of};
use crate::failure::{ExitCode, Failure};

/// Time limit for an answer of Microsoft Entra ID.
const ENTRA_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the address of a hub and the credentials. Reads files; opens no connection.
///
/// # Errors
/// A file cannot be read, or the configuration is invalid.
pub(crate) fn of_hub(
    name: &HubName,
    hub: &HubSettings,
    base: &Path,
    options: &ClientOptions,
) -> anyhow::Result<(HubAddress, Credentials)> {
    if let (Some(host), Some(auth)) = (&hub.host, &hub.auth) {
        let address = host.parse::<HubAddress>();
        let address = address.with_context(|| format!("hubs.{name}.host {host:?} is invalid"))?;
        let tokens = tokens(auth, &format!("hubs.{name}.auth"), base, HUB_SCOPE, options)?;
        return Ok((address, Credentials::Entra(tokens)));
    }
    let at = format!("hubs.{name}.connection_string");
    let (text, file) = (&hub.connection_string, &hub.connection_string_file);
    let first = source_of(&at, text.as_ref(), file.as_deref(), base);
    let first = first.context("no connection string is configured")?;
    let at = format!("hubs.{name}.secondary_connection_string");
    let text = &hub.secondary_connection_string;
    let file = &hub.secondary_connection_string_file;
    let second = source_of(&at, text.as_ref(), file.as_deref(), base);
    let keys = SharedAccess::read_from(first, second);
    let strings = keys.connection_strings()?;
    let address = strings[0].address().clone();
    for string in &strings {
        let other = string.host_name();
        ensure!(
            other == address.host_name(),
            "the connection strings are for two hubs: {} and {other}",
            address.host_name()
        );
    }
    Ok((address, Credentials::SharedAccess(keys)))
}

/// Returns a provider of users and passwords for Redis by an identity: the user is the object id,
/// the password is a token.
///
/// # Errors
/// The identity cannot be used as configured.
pub(crate) fn of_redis(
    auth: &AuthSettings,
    base: &Path,
) -> Result<Arc<dyn CredentialsProvider>, Failure> {
    let options = ClientOptions::default();
    let tokens = tokens(auth, "redis.auth", base, REDIS_SCOPE, &options);
    let tokens = tokens.map_err(|error| Failure::new(ExitCode::Refused, error))?;
    Ok(Arc::new(RedisIdentity(tokens)))
}

/// An identity of Microsoft Entra ID at Azure Managed Redis and Azure Cache for Redis
/// (learn.microsoft.com, "Use Microsoft Entra ID for cache authentication").
struct RedisIdentity(Tokens);

#[async_trait::async_trait]
impl CredentialsProvider for RedisIdentity {
    async fn credentials(
        &self,
    ) -> Result<twincast_redis::Credentials, Box<dyn std::error::Error + Send + Sync>> {
        let token = self.0.token().await?;
        let user = token.object_id().ok_or("the token has no object id")?;
        Ok(twincast_redis::Credentials {
            user,
            password: token.token,
            expires_at: Some(token.expires_at),
        })
    }

    fn refused(&self) {
        self.0.refused();
    }
}

/// Returns the tokens of the identity in `auth`, for `scope`; `at` is the key of `auth`.
fn tokens(
    auth: &AuthSettings,
    at: &str,
    base: &Path,
    scope: &str,
    options: &ClientOptions,
) -> anyhow::Result<Tokens> {
    let tls = twincast_tls::client_config(&options.roots)?;
    let web = options.proxy.apply(reqwest::Client::builder())?;
    let web = web
        .tls_backend_preconfigured(rustls::ClientConfig::clone(&tls))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(ENTRA_TIMEOUT)
        .timeout(ENTRA_TIMEOUT)
        .build()
        .context("cannot set up TLS")?;
    let identity = auth.identity(at, base);
    // The configuration takes precedence over the environment.
    let env = |name: &str| match (name, auth.authority_host()) {
        ("AZURE_AUTHORITY_HOST", Some(host)) => Some(host.to_owned()),
        _ => std::env::var(name).ok(),
    };
    let tokens = Tokens::new(&identity, scope, web, &env);
    tokens.with_context(|| format!("{at} cannot be used"))
}
