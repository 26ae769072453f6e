//! The current token, and its renewal.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt as _;
use reqwest::Client;
use tokio::sync::Mutex;
use tokio::time::timeout;
use twincast_secret::Secret;
use url::Url;

use crate::error::{IdentityError, TokenError};
use crate::identity::{Identity, Resolved};
use crate::transport::Http;

/// A token is renewed when this share of its life has passed; the exact share is drawn for each token, so that many
/// processes do not ask together.
const RENEW_BETWEEN: (f64, f64) = (0.75, 0.85);
/// How long one request for a token may take, with its retries.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait after a failed renewal, while the last token still serves.
const RENEW_AGAIN: Duration = Duration::from_secs(15);
/// A refused token that is younger than this is not replaced: a new one would be refused as well.
const LEAST_AGE: Duration = Duration::from_secs(5);
/// How long the metadata endpoint, which is on the same machine, may take to answer at all.
const METADATA_CONNECT: Duration = Duration::from_secs(3);

/// An access token and its times, on this machine's clock. `Debug` does not show the token.
#[derive(Debug, Clone)]
pub struct AccessToken {
    /// The token: a JWT.
    pub token: Secret,
    /// When it is to be renewed.
    pub renew_at: SystemTime,
    /// When it ends.
    pub expires_at: SystemTime,
}

impl AccessToken {
    /// The object id of the identity, as the token claims it: the user name at a Redis that takes such tokens. The
    /// signature is not checked; whoever takes the token does that.
    #[must_use]
    pub fn object_id(&self) -> Option<String> {
        let claims = self.token.expose().split('.').nth(1)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
        Some(claims["oid"].as_str()?.to_owned())
    }
}

/// The access tokens of one identity for one scope. Clones share the current token.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    identity: Resolved,
    scope: String,
    web: Http,
    metadata: Http,
    current: Mutex<Option<Held>>,
}

struct Held {
    token: AccessToken,
    since: SystemTime,
}

impl Tokens {
    /// Tokens of `identity` for `scope`. Nothing is asked for yet.
    ///
    /// `env` gives the environment variables that complete the identity; empty ones count as unset.
    ///
    /// `web` is the client for Microsoft Entra ID: it brings certificate authorities, proxy and time-outs, and must not
    /// follow redirects. The metadata endpoint of managed identities is asked without a proxy;
    /// `AZURE_POD_IDENTITY_AUTHORITY_HOST` names another one, as in Azure's other SDKs.
    ///
    /// # Errors
    ///
    /// A value is missing, here and in the environment, or cannot be used.
    ///
    /// # Panics
    ///
    /// No: a client without settings of its own can be made.
    pub fn new(
        identity: &Identity,
        scope: &str,
        web: Client,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, IdentityError> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let resolved = identity.resolve(&env)?;
        let variable = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
        let instead = env(variable).map(|host| {
            Url::parse(&host).map_err(|_| IdentityError::Invalid {
                identity: "managed identity",
                setting: variable,
                found: host,
                allowed: "it must be an address such as http://169.254.169.254",
            })
        });
        // The library asks for one that the whole process uses; there may be one already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let metadata = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(METADATA_CONNECT)
            .timeout(ANSWER_WITHIN)
            .build()
            .expect("a client without settings of its own");
        Ok(Self(Arc::new(Inner {
            identity: resolved,
            scope: scope.to_owned(),
            web: Http::new(web),
            metadata: Http::with_instead(metadata, instead.transpose()?),
            current: Mutex::new(None),
        })))
    }

    /// Who the tokens are for, for people: `workload identity (client …, tenant …)`.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.0.identity.name
    }

    /// The token to use now. It is asked for at most once at a time, whoever waits; a renewal that fails is no error
    /// while the last token serves.
    ///
    /// Takes 30 s at the most. Cancel safe: a request that is dropped is made again by the next call.
    ///
    /// # Errors
    ///
    /// There is no token that serves, and no new one.
    pub async fn token(&self) -> Result<AccessToken, TokenError> {
        let mut current = self.0.current.lock().await;
        let now = SystemTime::now();
        if let Some(held) = &*current
            && now < held.token.renew_at
        {
            return Ok(held.token.clone());
        }
        match self.0.fetch().await {
            Ok(token) => {
                *current = Some(Held {
                    token: token.clone(),
                    since: now,
                });
                Ok(token)
            }
            Err(error) => {
                let serves = current
                    .as_mut()
                    .filter(|held| SystemTime::now() < held.token.expires_at);
                let Some(held) = serves else {
                    *current = None;
                    return Err(error);
                };
                let identity = &self.0.identity.name;
                tracing::warn!(identity, %error, "access token not renewed yet; the last one still serves");
                held.token.renew_at = (SystemTime::now() + RENEW_AGAIN).min(held.token.expires_at);
                Ok(held.token.clone())
            }
        }
    }

    /// Gives a token back that was refused: the next call of [`token`](Self::token) asks for a new one, unless this one
    /// was given out in the last seconds.
    ///
    /// Does nothing while a request is under way.
    pub fn refused(&self) {
        let Ok(mut current) = self.0.current.try_lock() else {
            return;
        };
        let is_new = |held: &Held| held.since.elapsed().is_ok_and(|age| age < LEAST_AGE);
        if current.as_ref().is_some_and(|held| !is_new(held)) {
            *current = None;
        }
    }
}

impl Inner {
    async fn fetch(&self) -> Result<AccessToken, TokenError> {
        let name = &self.identity.name;
        let unavailable = |text: &str, source| TokenError::Unavailable {
            identity: name.clone(),
            text: text.to_owned(),
            source,
        };
        let credential = self.identity.credential(&self.web, &self.metadata);
        let credential = credential
            .map_err(|error| unavailable("the secret cannot be used", Some(Arc::from(error))))?;
        let scopes = [self.scope.as_str()];
        let asked = timeout(ANSWER_WITHIN, credential.get_token(&scopes, None)).await;
        let answer = asked.map_err(|_| unavailable("no answer within 30 s", None))?;
        let answer = answer.map_err(|error| TokenError::of(name, error))?;
        let (now, expires_at) = (SystemTime::now(), SystemTime::from(answer.expires_on));
        let life = expires_at.duration_since(now).unwrap_or_default();
        let share = rand::rng().random_range(RENEW_BETWEEN.0..RENEW_BETWEEN.1);
        Ok(AccessToken {
            token: Secret::new(answer.token.secret()),
            renew_at: now + life.mul_f64(share),
            expires_at,
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("identity", &self.0.identity.name)
            .field("scope", &self.0.scope)
            .finish_non_exhaustive()
    }
}
