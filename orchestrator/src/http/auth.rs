//! Who asks, and what they may do.
//!
//! A token is 32 random bytes, so its plain SHA-256 tells nothing of it; only that is kept. A role says what
//! its bearer may do:
//!
//! | role | looks | starts, pauses, resumes, aborts | approves, rejects, promotes |
//! |---|---|---|---|
//! | viewer | yes | | |
//! | operator | yes | yes | |
//! | approver | yes | | yes |
//! | admin | yes | yes | yes |

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::Shared;
use super::problem::Problem;

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
    Decide,
}

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

    fn has(self, right: Right) -> bool {
        match right {
            Right::Look => true,
            Right::Operate => matches!(self, Self::Operator | Self::Admin),
            Right::Decide => matches!(self, Self::Approver | Self::Admin),
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
    /// Whoever bears one of these tokens.
    Tokens(Tokens),
    /// Everybody, as an admin: for a listener on this machine only.
    Open,
}

/// Tokens, known by their hashes.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<[u8; 32], Caller>);

/// A line of a tokens file that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadTokens {
    line: usize,
    problem: String,
}

impl Tokens {
    /// Reads a tokens file: a token a line, as `NAME ROLE SHA256`. Empty lines and those that begin with `#`
    /// are passed over.
    ///
    /// # Errors
    /// The first line that is not of that form, or repeats a name or a token.
    pub fn read(text: &str) -> Result<Self, BadTokens> {
        let mut tokens = HashMap::new();
        let mut names = std::collections::HashSet::new();
        for (line, row) in (1..).zip(text.lines()) {
            let row = row.trim();
            if row.is_empty() || row.starts_with('#') {
                continue;
            }
            let bad = |problem: String| BadTokens { line, problem };
            let words: Vec<_> = row.split_whitespace().collect();
            let [name, role, hash] = words[..] else {
                return Err(bad("must be NAME ROLE SHA256".to_owned()));
            };
            let role = Role::named(role).ok_or_else(|| {
                bad(format!(
                    "{role:?} is no role; the roles are viewer, operator, approver, admin"
                ))
            })?;
            let mut known = [0; 32];
            hex::decode_to_slice(hash, &mut known)
                .map_err(|_| bad("the hash must be 64 hexadecimal digits".to_owned()))?;
            if !names.insert(name) {
                return Err(bad(format!("{name} has a token already")));
            }
            let caller = Caller {
                name: name.to_owned(),
                role,
            };
            if tokens.insert(known, caller).is_some() {
                return Err(bad("this token stands there already".to_owned()));
            }
        }
        Ok(Self(tokens))
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose token it is. What is compared are hashes, so the time that it takes tells nothing.
    fn bearer(&self, token: &str) -> Option<&Caller> {
        self.0.get(&hash(token))
    }
}

/// A new token, and its line in a tokens file.
#[must_use]
pub fn new_token(name: &str, role: Role) -> (String, String) {
    let random: [u8; 32] = rand::random();
    let token = format!("twc_{}", hex::encode(random));
    let line = format!("{name} {} {}", role.as_str(), hex::encode(hash(&token)));
    (token, line)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Problem> {
        let unauthorized = |detail| Problem::new(StatusCode::UNAUTHORIZED, detail);
        match &shared.api.door {
            Door::Tokens(tokens) => {
                let header = parts.headers.get(header::AUTHORIZATION);
                let header = header.and_then(|value| value.to_str().ok());
                let (scheme, token) = header
                    .and_then(|value| value.split_once(' '))
                    .ok_or_else(|| unauthorized("a bearer token is needed"))?;
                let caller = tokens
                    .bearer(token.trim())
                    .filter(|_| scheme.eq_ignore_ascii_case("bearer"));
                caller
                    .cloned()
                    .ok_or_else(|| unauthorized("the token is not known"))
            }
            Door::Open => {
                // A page of somewhere else, opened in a browser here, may ask by a name that leads here.
                let host = parts.headers.get(header::HOST);
                let host = host.and_then(|host| host.to_str().ok());
                let host = host.or(parts.uri.host()).unwrap_or_default();
                if !is_local(host) {
                    let detail = "without tokens only this machine is answered, by the name localhost or its address";
                    return Err(unauthorized(detail));
                }
                Ok(Self {
                    name: "anonymous".to_owned(),
                    role: Role::Admin,
                })
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
    fn a_new_token_opens_the_door_that_its_line_stands_at() {
        let (token, line) = new_token("ann", Role::Approver);
        let tokens = Tokens::read(&format!("# people\n\n{line}\n")).unwrap();
        let caller = tokens.bearer(&token).unwrap();
        assert_eq!((caller.name(), caller.role()), ("ann", Role::Approver));
        assert_eq!(tokens.bearer("twc_other"), None);
        assert!(!line.contains(&token));
        assert_ne!(new_token("ann", Role::Approver).0, token);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let hash = "0".repeat(64);
        let table = [
            ("ann viewer".to_owned(), "line 1: must be NAME ROLE SHA256"),
            (
                format!("\nann chief {hash}"),
                "line 2: \"chief\" is no role",
            ),
            ("ann viewer xyz".to_owned(), "64 hexadecimal digits"),
            (
                format!("ann viewer {hash}\nann admin {}", "1".repeat(64)),
                "line 2: ann has a token",
            ),
            (
                format!("ann viewer {hash}\nbob admin {hash}"),
                "line 2: this token stands",
            ),
        ];
        for (text, says) in table {
            let error = Tokens::read(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
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
