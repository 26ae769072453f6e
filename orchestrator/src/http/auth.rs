//! Who asks, and what they may do.
//!
//! * [`tokens`]: tokens of our own, in a file;
//! * [`oidc`]: tokens of an OpenID Connect issuer.
//!
//! Either gives its bearer a role, which says what they may do:
//!
//! | role | looks | starts, pauses, resumes, aborts | approves, rejects, promotes | deletes |
//! |---|---|---|---|---|
//! | viewer | yes | | | |
//! | operator | yes | yes | | |
//! | approver | yes | | yes | |
//! | admin | yes | yes | yes | yes |

pub mod oidc;
pub mod tokens;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};

use oidc::Oidc;
use tokens::TokensFile;

use super::Shared;
use super::audit::Origin;
use super::places::Place;
use super::problem::Problem;

/// How often it is looked whether the token of an open stream is still good.
const LOOK: Duration = Duration::from_secs(1);

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Starts, pauses, resumes, aborts.
    Operator,
    /// Decides on gates.
    Approver,
    /// All of it.
    Admin,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Look,
    Operate,
    /// To operate so that less is sent.
    Stop,
    Decide,
    Delete,
}

/// A right as a type: what a handler needs stands in its signature.
pub(crate) trait Needed: Send + Sync {
    const RIGHT: Right;
}

macro_rules! needed {
    ($($right:ident),*) => {$(
        pub(crate) struct $right;
        impl Needed for $right {
            const RIGHT: Right = Right::$right;
        }
    )*};
}

needed!(Look, Operate, Stop, Decide, Delete);

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Approver, Self::Admin];

    /// The role as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Admin => "admin",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// What both come to together.
    fn and(self, other: Self) -> Self {
        let either = |right| self.has(right) || other.has(right);
        match (either(Right::Operate), either(Right::Decide)) {
            (true, true) => Self::Admin,
            (true, false) => Self::Operator,
            (false, true) => Self::Approver,
            (false, false) => Self::Viewer,
        }
    }

    fn has(self, right: Right) -> bool {
        match right {
            Right::Look => true,
            Right::Operate | Right::Stop => matches!(self, Self::Operator | Self::Admin),
            Right::Decide => matches!(self, Self::Approver | Self::Admin),
            Right::Delete => matches!(self, Self::Admin),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    name: String,
    role: Role,
}

impl Caller {
    /// Somebody whose name and role are known.
    #[must_use]
    pub fn new(name: String, role: Role) -> Self {
        Self { name, role }
    }

    /// The name that operations are recorded under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What they may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn may(&self, right: Right) -> Result<(), Problem> {
        if self.role.has(right) {
            return Ok(());
        }
        let can = Role::ALL.into_iter().filter(|role| role.has(right));
        let can: Vec<_> = can.map(Role::as_str).collect();
        let detail = format!(
            "{} has the role {}; this needs {}",
            self.name,
            self.role.as_str(),
            can.join(" or ")
        );
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }
}

/// Who may ask.
#[derive(Debug)]
pub enum Door {
    /// Whoever bears a token that is known.
    Bearers(Bearers),
    /// Everybody, as an admin: for a listener on this machine only.
    Open,
    /// Whoever the listener says: it puts a [`Caller`] into each request's extensions.
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
    async fn caller(&self, token: &str) -> Result<Caller, Problem> {
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
    async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
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

fn token(parts: &Parts) -> Option<&str> {
    let header = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim())
}

/// Whoever may do what a handler does, with a place among those who are answered. It is the first that a handler asks
/// for: nothing of a body is read for others.
pub(crate) struct Admitted<R> {
    /// Who asks.
    pub(crate) caller: Caller,
    /// Where from.
    pub(crate) origin: Origin,
    /// The token, if it was one that let them in.
    token: Option<String>,
    _place: Place,
    _right: PhantomData<R>,
}

impl<R: Needed> FromRequestParts<Arc<Shared>> for Admitted<R> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Problem> {
        let origin = Origin::of(parts);
        let denied = |caller: Option<&Caller>, problem: &Problem| {
            shared.denied(parts, &origin, caller, problem);
        };
        let caller = shared.api.door.caller(parts).await;
        let caller = caller.inspect_err(|problem| denied(None, problem))?;
        let may = caller.may(R::RIGHT);
        may.inspect_err(|problem| denied(Some(&caller), problem))?;
        let places = match R::RIGHT {
            Right::Stop => &shared.emergencies,
            Right::Look | Right::Operate | Right::Decide | Right::Delete => &shared.requests,
        };
        Ok(Self {
            _place: places.take(caller.name())?,
            caller,
            origin,
            token: token(parts).map(str::to_owned),
            _right: PhantomData,
        })
    }
}

impl<R> Admitted<R> {
    /// Waits until their token is good no longer.
    pub(super) fn is_over(&self, shared: &Arc<Shared>) -> impl Future<Output = ()> + use<R> {
        let door = Arc::clone(&shared.api.door);
        let token = self.token.clone();
        async move {
            let (Door::Bearers(bearers), Some(token)) = (&*door, token) else {
                return std::future::pending().await;
            };
            while bearers.caller(&token).await.is_ok() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
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
    fn roles_come_to_what_they_allow() {
        use Role::{Admin, Approver, Operator, Viewer};
        let table = [
            (Viewer, Viewer, Viewer),
            (Viewer, Operator, Operator),
            (Viewer, Approver, Approver),
            (Operator, Operator, Operator),
            (Operator, Approver, Admin),
            (Viewer, Admin, Admin),
        ];
        for (one, other, both) in table {
            assert_eq!((one.and(other), other.and(one)), (both, both));
        }
    }

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
