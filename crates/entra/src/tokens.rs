//! The current token, and its renewal.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use rand::RngExt as _;
use reqwest::Client;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use twincast_secret::Secret;
use url::Url;

use crate::error::{IdentityError, TokenError};
use crate::identity::{Identity, Resolved};
use crate::transport::Http;

/// Share of a token's life after which the token is renewed. The exact share is drawn for each
/// token, so that many processes do not renew at the same time.
const RENEW_BETWEEN: (f64, f64) = (0.75, 0.85);
/// Time limit of one token request, including retries.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Delay after a failed renewal, while the last token is still valid.
const RENEW_AGAIN: Duration = Duration::from_secs(15);
/// A refused token younger than this is not replaced: a new token would be refused as well.
const MIN_AGE: Duration = Duration::from_secs(5);
/// Time limit of connecting to the metadata endpoint, a service on the same machine.
const METADATA_CONNECT: Duration = Duration::from_secs(3);

/// An access token and its times on this machine's clock. `Debug` does not show the token.
#[derive(Debug, Clone)]
pub struct AccessToken {
    /// The token: a JWT.
    pub token: Secret,
    /// When to renew the token.
    pub renew_at: SystemTime,
    /// When the token expires.
    pub expires_at: SystemTime,
}

impl AccessToken {
    /// Returns the object id claimed by the token: the user name for Redis with Entra
    /// authentication. Does not check the signature; the token's recipient checks it.
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
    /// Never locked across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Held>,
    /// The request in progress, in a task of its own. A caller could stop polling (another arm of a
    /// `select!` runs), and would then keep every other caller from the token.
    request: Option<Request>,
}

type Request = Shared<BoxFuture<'static, Result<AccessToken, TokenError>>>;

struct Held {
    token: AccessToken,
    since: SystemTime,
}

impl Tokens {
    /// Creates the tokens of `identity` for `scope`. Makes no request yet.
    ///
    /// `env` returns the environment variables that complete the identity; empty variables count as
    /// unset.
    ///
    /// `web` is the client for Microsoft Entra ID: it defines certificate authorities, proxy and
    /// time-outs, and must not follow redirects. Requests to the metadata endpoint of managed
    /// identities bypass the proxy; `AZURE_POD_IDENTITY_AUTHORITY_HOST` names another endpoint, as
    /// in Azure's other SDKs.
    ///
    /// # Errors
    ///
    /// A value is invalid, or missing both in `identity` and in the environment.
    ///
    /// # Panics
    ///
    /// Never: building a client without settings of its own cannot fail.
    ///
    /// # Example
    ///
    /// ```
    /// use twincast_entra::{HUB_SCOPE, Identity, Proof, Tokens};
    ///
    /// # _ = rustls::crypto::ring::default_provider().install_default();
    /// # let web = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    /// let identity = Identity::Application {
    ///     tenant_id: Some("contoso.example".to_owned()),
    ///     client_id: None,
    ///     proof: Proof::FederatedToken(None),
    /// };
    /// // Workload identity sets these variables in a pod.
    /// let env = |name: &str| match name {
    ///     "AZURE_CLIENT_ID" => Some("worker".to_owned()),
    ///     "AZURE_FEDERATED_TOKEN_FILE" => Some("/var/run/secrets/azure/token".to_owned()),
    ///     _ => None,
    /// };
    /// let tokens = Tokens::new(&identity, HUB_SCOPE, web, &env)?;
    /// let expected = "workload identity (client worker, tenant contoso.example)";
    /// assert_eq!(tokens.identity(), expected);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(
        identity: &Identity,
        scope: &str,
        web: Client,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, IdentityError> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let resolved = identity.resolve(&env)?;
        let variable = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
        let base_override = env(variable).map(|host| {
            Url::parse(&host).map_err(|_| IdentityError::Invalid {
                identity: "managed identity",
                setting: variable,
                found: host,
                allowed: "it must be an address such as http://169.254.169.254",
            })
        });
        // The library requires a process-wide provider; another provider may already be installed.
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
            metadata: Http::with_base_override(metadata, base_override.transpose()?),
            state: Mutex::default(),
        })))
    }

    /// A description of the identity: `workload identity (client …, tenant …)`.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.0.identity.name
    }

    /// Returns the token to use now. Concurrent callers share one request. A failed renewal is no
    /// error while the last token is valid.
    ///
    /// Takes 30 s at most. Cancel safe: a request in progress continues, and the next call uses the
    /// result.
    ///
    /// # Errors
    ///
    /// No valid token is held, and no new token could be obtained.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn token(&self) -> Result<AccessToken, TokenError> {
        let request = {
            let mut state = self.0.state();
            if let Some(held) = &state.current
                && SystemTime::now() < held.token.renew_at
            {
                return Ok(held.token.clone());
            }
            let begin = || self.0.request();
            state.request.get_or_insert_with(begin).clone()
        };
        request.await
    }

    /// Reports a refused token: the next call of [`token`](Self::token) requests a new token,
    /// unless the refused token was obtained within the last seconds.
    ///
    /// Does nothing while a request is in progress.
    pub fn refused(&self) {
        let mut state = self.0.state();
        if state.request.is_some() {
            return;
        }
        let is_new = |held: &Held| held.since.elapsed().is_ok_and(|age| age < MIN_AGE);
        if state.current.as_ref().is_some_and(|held| !is_new(held)) {
            state.current = None;
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request.
    fn request(self: &Arc<Self>) -> Request {
        let inner = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _requesting = Requesting(&inner);
            let now = SystemTime::now();
            let fetched = inner.fetch().await;
            inner.replace(fetched, now)
        });
        let (task, inner) = (AbortOnDropHandle::new(task), Arc::clone(self));
        let result = async move {
            let aborted =
                |error| inner.unavailable("the request was aborted", Some(Arc::new(error)));
            task.await.unwrap_or_else(|error| Err(aborted(error)))
        };
        result.boxed().shared()
    }

    /// Replaces the current token, or keeps a valid token after a failed renewal. Returns the token
    /// to use.
    fn replace(
        &self,
        fetched: Result<AccessToken, TokenError>,
        since: SystemTime,
    ) -> Result<AccessToken, TokenError> {
        let mut state = self.state();
        let error = match fetched {
            Ok(token) => {
                let held = Held {
                    token: token.clone(),
                    since,
                };
                state.current = Some(held);
                return Ok(token);
            }
            Err(error) => error,
        };
        let valid = state.current.as_mut();
        let valid = valid.filter(|held| SystemTime::now() < held.token.expires_at);
        let Some(held) = valid else {
            state.current = None;
            return Err(error);
        };
        let identity = &self.identity.name;
        tracing::warn!(identity, %error, "failed to renew the access token; the current token stays in use");
        held.token.renew_at = (SystemTime::now() + RENEW_AGAIN).min(held.token.expires_at);
        Ok(held.token.clone())
    }

    fn unavailable(
        &self,
        text: &str,
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    ) -> TokenError {
        TokenError::Unavailable {
            identity: self.identity.name.clone(),
            text: text.to_owned(),
            source,
        }
    }

    async fn fetch(&self) -> Result<AccessToken, TokenError> {
        let name = &self.identity.name;
        let credential = self.identity.credential(&self.web, &self.metadata);
        let credential = credential.map_err(|error| {
            self.unavailable("the secret cannot be used", Some(Arc::from(error)))
        })?;
        let scopes = [self.scope.as_str()];
        let response = timeout(ANSWER_WITHIN, credential.get_token(&scopes, None)).await;
        let answer = response.map_err(|_| self.unavailable("no answer within 30 s", None))?;
        let answer = answer.map_err(|error| TokenError::from_azure(name, error))?;
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

/// A request in progress. However the request ends, the next call may begin another.
struct Requesting<'a>(&'a Inner);

impl Drop for Requesting<'_> {
    fn drop(&mut self) {
        let request = self.0.state().request.take();
        drop(request);
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
