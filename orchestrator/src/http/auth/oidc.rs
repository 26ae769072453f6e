//! Tokens of an OpenID Connect issuer, and their bearers.

use std::time::SystemTime;

use axum::http::StatusCode;
use twincast_oidc::{Claims, Issuer, Rejection};

use super::caller::{Caller, Role};
use crate::http::problem::Problem;

/// The longest valid name, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// An issuer, and the meaning of the claims in the issuer's tokens.
#[derive(Debug)]
pub struct Oidc {
    /// The issuer of accepted tokens.
    pub issuer: Issuer,
    /// The claim with the bearer's name. `sub` replaces a missing claim.
    pub name_claim: String,
    /// The claim with the roles in the issuer's terms: a name, or a path with dots.
    pub roles_claim: String,
    /// The role for each value of the claim. Several roles combine their rights.
    pub roles: Vec<(String, Role)>,
}

impl Oidc {
    /// Returns the bearer of a token.
    pub(super) async fn caller(&self, token: &str) -> Result<Caller, Problem> {
        // Tokens are dated by the wall clock, not by the clock of leases.
        match self.issuer.verify(token, SystemTime::now()).await {
            Ok(claims) => self.caller_of(&claims),
            Err(rejection @ (Rejection::NoKeys | Rejection::TooManyWaiting)) => {
                Err(Problem::busy(rejection.public_message()))
            }
            Err(rejection) => {
                Err(Problem::bad_token(rejection.public_message()).with_log_detail(rejection))
            }
        }
    }

    fn caller_of(&self, claims: &Claims) -> Result<Caller, Problem> {
        let named = [&*self.name_claim, "sub"]
            .into_iter()
            .find_map(|claim| claims.text(claim));
        let name = named.filter(|name| is_name(name)).ok_or_else(|| {
            let claim = &self.name_claim;
            Problem::bad_token("the token does not name its bearer")
                .with_log_detail(format!("the token has no {claim} usable as a name"))
        })?;
        let granted = claims.texts(&self.roles_claim);
        let roles = self.roles.iter();
        let roles = roles.filter(|(value, _)| granted.contains(&&**value));
        let Some(role) = roles.map(|(_, role)| *role).reduce(Role::and) else {
            let detail = format!(
                "{name} has no role: claim {} of the token has no value with a configured role",
                self.roles_claim
            );
            let log_detail = format!("{detail}: {granted:?}");
            return Err(Problem::new(StatusCode::FORBIDDEN, detail).with_log_detail(log_detail));
        };
        let name = name.to_owned();
        Ok(Caller::new(name, role))
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}
