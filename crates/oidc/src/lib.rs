//! Verification of tokens of an OpenID Connect issuer.
//!
//! ```text
//!  token ──▶ its parts ──▶ the issuer's key ──▶ signature ──▶ issuer, audience, times ──▶ claims
//!              `jws`        `keys`, `source`     (ring)             `claims`
//! ```
//!
//! * Keys are public keys, each tied to the algorithms of its kind. A token cannot choose how it is
//!   checked. `none` and shared secrets are not implemented at all.
//! * The keys are requested every few minutes, and when a token names an unknown key. Only one
//!   request runs at a time, and the next request follows no sooner than [`MIN_REQUEST_INTERVAL`].
//!   At most [`MAX_WAITING`] tokens wait for the answer. While the issuer is unreachable, the keys
//!   stay in use for [`KEY_RETENTION`].
//! * `ring`, already a dependency of TLS, checks the signatures. The token library `jsonwebtoken`
//!   (version 12) would add a second cryptography library, 37 crates with `rust_crypto`, and the
//!   system's clock for the small remaining task: splitting three parts and checking a few claims.
//!   Parsing is covered by a target of `fuzz/` (`tokens`).
//! * No claim is evaluated before the signature was checked.

mod claims;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod jws;
mod keys;
mod rejection;
mod signer;
mod source;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

pub use claims::Claims;
pub use keys::{KeySetError, Keys};
pub use rejection::Rejection;
pub use signer::TokenSigner;
pub use source::{ConfigError, KeyLocation, KeysError};

use jws::Parts;
use source::Source;

/// Interval of key requests, so that revoked keys are dropped.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Minimum time between two key requests, however many tokens name unknown keys.
pub const MIN_REQUEST_INTERVAL: Duration = Duration::from_secs(10);
/// Most tokens waiting for unknown keys at the same time. Bounded, because anyone can produce any
/// number of tokens with unknown keys.
pub const MAX_WAITING: usize = 64;
/// How long keys stay in use while the issuer does not answer. A day allows operators to stop a
/// rollout during most outages.
pub const KEY_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// The trusted issuer, and the expected audience.
#[derive(Debug, Clone)]
pub struct IssuerConfig {
    /// The issuer, exactly as in its tokens.
    pub issuer: String,
    /// The audience expected in tokens.
    pub audience: String,
    /// The location of the issuer's keys.
    pub keys: KeyLocation,
}

/// An issuer, with the most recently received keys. Clones share the keys.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    issuer: String,
    audience: String,
    source: Source,
    held: RwLock<Option<Held>>,
    /// When the keys were last requested. The holder of the lock makes the request.
    last_request: Mutex<Option<Instant>>,
    /// Limits the number of tokens waiting for keys.
    wait_permits: Semaphore,
}

#[derive(Clone)]
struct Held {
    keys: Arc<Keys>,
    since: Instant,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.0.issuer)
    }
}

impl Issuer {
    /// Creates an issuer without keys. Makes no request.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: IssuerConfig) -> Result<Self, ConfigError> {
        let source = Source::new(&config.issuer, config.keys)?;
        Ok(Self(Arc::new(Inner {
            issuer: config.issuer,
            audience: config.audience,
            source,
            held: RwLock::new(None),
            last_request: Mutex::new(None),
            wait_permits: Semaphore::new(MAX_WAITING),
        })))
    }

    /// Requests the keys for the first time. An unreachable issuer is only logged, because it may
    /// answer later.
    ///
    /// # Errors
    /// A file holds unusable keys: a retry helps only after a change of the file.
    pub async fn load(&self) -> Result<(), KeysError> {
        match self
            .0
            .request_keys(&mut *self.0.last_request.lock().await)
            .await
        {
            Err(error) if self.0.source.is_local() => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps the keys up to date, until the future is dropped.
    pub async fn refresh_forever(&self) {
        loop {
            tokio::time::sleep(REFRESH_INTERVAL).await;
            self.renew().await;
        }
    }

    /// Verifies a token at `now` and returns the claims.
    ///
    /// Cancel safe: a key request in progress continues.
    ///
    /// # Errors
    /// The reason of the rejection; [`Rejection::NoKeys`] and [`Rejection::TooManyWaiting`] if the
    /// token cannot be checked now.
    ///
    /// # Example
    /// ```
    /// use std::time::{Duration, UNIX_EPOCH};
    /// use twincast_oidc::{Issuer, IssuerConfig, KeyLocation, Rejection};
    /// # use twincast_oidc::TokenSigner;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let file = folder.path().join("keys.json");
    /// # let signer = TokenSigner::new("key-1");
    /// # std::fs::write(&file, TokenSigner::key_set(&[&signer]).to_string())?;
    /// # let token = signer.sign(&serde_json::json!({
    /// #     "iss": "https://login.example", "aud": "twincast", "exp": 1_800_000_300, "sub": "ann",
    /// # }));
    /// let issuer = Issuer::new(IssuerConfig {
    ///     issuer: "https://login.example".to_owned(),
    ///     audience: "twincast".to_owned(),
    ///     keys: KeyLocation::File(file),
    /// })?;
    /// issuer.load().await?;
    /// // `token` is from this issuer, and expires 300 seconds later.
    /// let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    /// assert_eq!(issuer.verify(&token, now).await?.text("sub"), Some("ann"));
    /// let later = now + Duration::from_secs(360);
    /// assert_eq!(issuer.verify(&token, later).await, Err(Rejection::Expired));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, Rejection> {
        let token = Parts::parse(token)?;
        match self.0.check(&token) {
            Err(Rejection::Key { .. } | Rejection::NoKeys) => {
                let permit = self.0.wait_permits.try_acquire();
                let _permit = permit.map_err(|_| Rejection::TooManyWaiting)?;
                self.renew().await;
                self.0.check(&token)?;
            }
            checked => checked?,
        }
        token.claims_for(&self.0.issuer, &self.0.audience, now)
    }

    /// Requests the keys, unless requested within [`MIN_REQUEST_INTERVAL`]. The request runs in a
    /// task of its own: otherwise a client could prevent every answer by disconnecting early.
    async fn renew(&self) {
        let inner = Arc::clone(&self.0);
        let renewing = tokio::spawn(async move {
            let mut last_request = inner.last_request.lock().await;
            if last_request.is_none_or(|at| at.elapsed() >= MIN_REQUEST_INTERVAL) {
                inner.request_keys(&mut last_request).await.ok();
            }
        });
        renewing.await.ok();
    }
}

impl Inner {
    /// Requests the keys. The caller must hold the lock on `last_request`.
    async fn request_keys(&self, last_request: &mut Option<Instant>) -> Result<(), KeysError> {
        let fetched = self.source.fetch().await;
        let since = Instant::now();
        *last_request = Some(since);
        let keys = fetched.inspect_err(|error| {
            let (issuer, error) = (&self.issuer, with_causes(error));
            tracing::warn!(issuer, error, "failed to get the issuer's keys");
        })?;
        let held = Held {
            keys: Arc::new(keys),
            since,
        };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }

    fn check(&self, token: &Parts<'_>) -> Result<(), Rejection> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let held = held
            .clone()
            .filter(|held| held.since.elapsed() < KEY_RETENTION);
        held.ok_or(Rejection::NoKeys)?.keys.check(token)
    }
}

/// Formats an error and its causes for the log.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}
