//! The tokens of an OpenID Connect issuer: whether they are good, and what they say.
//!
//! ```text
//!  token ──▶ its parts ──▶ the issuer's key ──▶ signature ──▶ issuer, audience, times ──▶ claims
//!              `jws`        `keys`, `source`     (ring)             `claims`
//! ```
//!
//! * Keys are public ones, and each is tied to the algorithms of its kind: nothing in a token says how it is to be
//!   checked, and `none` and shared secrets are not known here at all.
//! * The keys are asked for every few minutes, and when a token names one that is not known: by one request at a
//!   time, and not again for [`BETWEEN`], whoever asks. So many wait for the answer as [`WAITING`] says. If the issuer
//!   is away, the keys serve for [`KEPT`].
//! * Signatures are checked by `ring`, which TLS brings already. A library for tokens (`jsonwebtoken` 12) would bring a second
//!   cryptography, 37 crates with `rust_crypto`, and the system's clock for what is left: three parts, a few claims. What is
//!   read here is a target of `fuzz/` (`tokens`).
//! * Nothing is said of a token's claims before its signature was checked.

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
pub use keys::{BadKeys, Keys};
pub use rejection::Rejection;
pub use signer::TokenSigner;
pub use source::{ConfigError, KeysAt, KeysError};

use jws::Parts;
use source::Source;

/// How often the keys are asked for, so that one that was taken back is forgotten.
pub const EVERY: Duration = Duration::from_secs(5 * 60);
/// The least time between two questions, however many tokens name keys that are not known.
pub const BETWEEN: Duration = Duration::from_secs(10);
/// Tokens that wait at the same time for keys that are not known, at the most: whoever cannot sign one can make as many
/// as they like.
pub const WAITING: usize = 64;
/// How long keys serve while the issuer does not answer. A day lets people stop a rollout during most outages.
pub const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Whose tokens are good, and for whom they must be.
#[derive(Debug, Clone)]
pub struct IssuerConfig {
    /// The issuer, to the letter as its tokens have it.
    pub issuer: String,
    /// Whom its tokens must be for.
    pub audience: String,
    /// Where its keys are.
    pub keys: KeysAt,
}

/// An issuer, with its keys as they were last heard of. Clones share them.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    issuer: String,
    audience: String,
    source: Source,
    held: RwLock<Option<Held>>,
    /// When the keys were last asked for. Whoever has the lock is asking.
    asked: Mutex<Option<Instant>>,
    /// Places to wait for them.
    waiting: Semaphore,
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
    /// An issuer whose keys are not known yet. Nothing is dialled.
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
            asked: Mutex::new(None),
            waiting: Semaphore::new(WAITING),
        })))
    }

    /// Asks for the keys for the first time. That an issuer does not answer is logged: it may do so later.
    ///
    /// # Errors
    /// Keys in a file cannot be used: nothing but a change of it will help.
    pub async fn load(&self) -> Result<(), KeysError> {
        match self.0.ask(&mut *self.0.asked.lock().await).await {
            Err(error) if self.0.source.is_local() => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps the keys up to date, until dropped.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.renew().await;
        }
    }

    /// What a token says, if it is good at this time.
    ///
    /// Cancel safe: a question for keys that is under way goes on.
    ///
    /// # Errors
    /// Why it is not good; [`Rejection::NoKeys`] and [`Rejection::Crowded`] if that cannot be known now.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, Rejection> {
        let token = Parts::of(token)?;
        match self.0.check(&token) {
            Err(Rejection::Key { .. } | Rejection::NoKeys) => {
                let place = self.0.waiting.try_acquire();
                let _place = place.map_err(|_| Rejection::Crowded)?;
                self.renew().await;
                self.0.check(&token)?;
            }
            checked => checked?,
        }
        token.claims_for(&self.0.issuer, &self.0.audience, now)
    }

    /// Asks for the keys, unless that was done just now. In a task of its own: otherwise whoever hangs up in time
    /// could keep us from ever hearing the answer.
    async fn renew(&self) {
        let inner = Arc::clone(&self.0);
        let renewing = tokio::spawn(async move {
            let mut asked = inner.asked.lock().await;
            if asked.is_none_or(|at| at.elapsed() >= BETWEEN) {
                inner.ask(&mut asked).await.ok();
            }
        });
        renewing.await.ok();
    }
}

impl Inner {
    /// Asks for the keys, which whoever has the lock on `asked` may do.
    async fn ask(&self, asked: &mut Option<Instant>) -> Result<(), KeysError> {
        let fetched = self.source.fetch().await;
        let since = Instant::now();
        *asked = Some(since);
        let keys = fetched.inspect_err(|error| {
            let (issuer, error) = (&self.issuer, with_causes(error));
            tracing::warn!(issuer, error, "the keys of the issuer cannot be had");
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
        let held = held.clone().filter(|held| held.since.elapsed() < KEPT);
        held.ok_or(Rejection::NoKeys)?.keys.check(token)
    }
}

/// An error and its causes, for the log.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}
