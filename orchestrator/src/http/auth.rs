//! Who asks, by what they bear:
//!
//! * [`tokens`]: tokens of our own, in a file;
//! * [`oidc`]: tokens of an OpenID Connect issuer.
//!
//! Either gives its bearer a [`Role`], which says what they may do.

mod caller;
pub mod oidc;
pub mod tokens;

use axum::http::request::Parts;
use axum::http::{StatusCode, header};

pub use caller::{Caller, Role};
pub(crate) use caller::{Decide, Delete, Look, Needed, Operate, Right, Stop};
use oidc::Oidc;
use tokens::TokensFile;

use super::problem::Problem;

/// Who may ask.
#[derive(Debug)]
pub enum Door {
    /// Whoever bears a token that is known.
    Bearers(Bearers),
    /// Everybody, as an admin: for a listener on this machine only.
    Open,
    /// Whoever the listener says, or who calls the router itself: a [`Caller`] is in each request's extensions.
    Known,
}

/// Whose tokens are known.
#[derive(Debug)]
pub struct Bearers {
    /// Ours.
    pub tokens: Option<TokensFile>,
    /// An issuer's.
    pub oidc: Option<Oidc>,
}

impl Door {
    /// Keeps what it knows up to date, until dropped; ends if that never changes.
    pub async fn follow(&self) {
        let Self::Bearers(bearers) = self else { return };
        let tokens = async {
            if let Some(tokens) = &bearers.tokens {
                tokens.follow().await;
            }
        };
        let keys = async {
            if let Some(oidc) = &bearers.oidc {
                oidc.issuer.follow().await;
            }
        };
        tokio::join!(tokens, keys);
    }
}

impl Bearers {
    /// Who bears a token.
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

impl Door {
    /// Who asks, by what a request's head says.
    pub(super) async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        let unauthorized = |detail| Problem::new(StatusCode::UNAUTHORIZED, detail);
        match self {
            Self::Bearers(bearers) => {
                let token = token(parts);
                let token = token.ok_or_else(|| unauthorized("a bearer token is needed"))?;
                bearers.caller(token).await
            }
            Self::Known => {
                let known = parts.extensions.get::<Caller>().cloned();
                known.ok_or_else(|| unauthorized("the listener does not know who asks"))
            }
            Self::Open => {
                // A page of somewhere else, opened in a browser here, may ask by a name that leads here.
                let host = parts.headers.get(header::HOST);
                let host = host.and_then(|host| host.to_str().ok());
                let host = host.or(parts.uri.host()).unwrap_or_default();
                if !is_local(host) {
                    let detail = "without tokens only this machine is answered, by the name localhost or its address";
                    return Err(unauthorized(detail));
                }
                Ok(Caller::new("anonymous".to_owned(), Role::Admin))
            }
        }
    }
}

/// The bearer token of a request, if it has one.
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
    fn only_this_machine_is_local() {
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
