//! Identifies callers by their tokens:
//!
//! * [`tokens`]: Twincast's own tokens, in a file;
//! * [`oidc`]: tokens of an OpenID Connect issuer.
//!
//! Either kind gives the bearer a [`Role`], which determines the permissions.

mod caller;
pub mod oidc;
pub mod tokens;

use axum::http::request::Parts;
use axum::http::{StatusCode, header};

pub use caller::{Caller, Role};
pub(crate) use caller::{Decide, Delete, Operate, Read, RequiredRight, Right, Stop};
use oidc::Oidc;
use tokens::TokensFile;

use super::problem::Problem;

/// The way in which callers are identified.
#[derive(Debug)]
pub enum Access {
    /// Callers bear a known token.
    Tokens(KnownTokens),
    /// Every caller is an admin, for a listener on this machine only.
    Anonymous,
    /// The listener, or the component calling the router, puts a [`Caller`] into each request's
    /// extensions.
    Provided,
}

/// The known tokens.
#[derive(Debug)]
pub struct KnownTokens {
    /// Twincast's own tokens.
    pub tokens: Option<TokensFile>,
    /// The tokens of an issuer.
    pub oidc: Option<Oidc>,
}

impl Access {
    /// Keeps tokens and keys up to date, until dropped. Returns if neither can change.
    pub async fn follow(&self) {
        let Self::Tokens(known) = self else { return };
        let tokens = async {
            if let Some(tokens) = &known.tokens {
                tokens.follow().await;
            }
        };
        let keys = async {
            if let Some(oidc) = &known.oidc {
                oidc.issuer.refresh_forever().await;
            }
        };
        tokio::join!(tokens, keys);
    }
}

impl KnownTokens {
    /// Returns the bearer of a token.
    pub(super) async fn caller(&self, token: &str) -> Result<Caller, Problem> {
        let ours = self.tokens.as_ref();
        if let Some(caller) = ours.and_then(|tokens| tokens.bearer(token)) {
            return Ok(caller);
        }
        match &self.oidc {
            Some(oidc) => oidc.caller(token).await,
            None => Err(Problem::bad_token("the token is not known")),
        }
    }
}

impl Access {
    /// Returns the caller, by the head of a request.
    pub(super) async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        let unauthorized = |detail| Problem::new(StatusCode::UNAUTHORIZED, detail);
        match self {
            Self::Tokens(known) => {
                let token = token(parts);
                let token = token.ok_or_else(|| unauthorized("a bearer token is required"))?;
                known.caller(token).await
            }
            Self::Provided => {
                let known = parts.extensions.get::<Caller>().cloned();
                known.ok_or_else(|| unauthorized("the listener does not identify the caller"))
            }
            Self::Anonymous => {
                // A foreign page in a local browser may reach this listener by a foreign name (DNS
                // rebinding).
                let host = parts.headers.get(header::HOST);
                let host = host.and_then(|host| host.to_str().ok());
                let host = host.or(parts.uri.host()).unwrap_or_default();
                if !is_local(host) {
                    let detail = "without tokens, the API answers only requests to localhost, \
                         127.0.0.1 or [::1]";
                    return Err(unauthorized(detail));
                }
                Ok(Caller::new("anonymous".to_owned(), Role::Admin))
            }
        }
    }
}

/// Returns the bearer token of a request, if any.
pub(super) fn token(parts: &Parts) -> Option<&str> {
    let header = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim())
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    matches!(name, Some("localhost" | "127.0.0.1" | "::1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_hosts_are_local() {
        for host in ["localhost", "localhost:80", "127.0.0.1:8080", "[::1]:8080"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org:80",
            "10.0.0.1",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
