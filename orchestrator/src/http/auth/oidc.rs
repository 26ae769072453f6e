//! Tokens of an OpenID Connect issuer: who their bearers are here.

use std::time::SystemTime;

use axum::http::StatusCode;
use twincast_oidc::{Claims, Issuer, Rejection};

use super::caller::{Caller, Role};
use crate::http::problem::Problem;

/// Longer names are none.
const LONGEST_NAME: usize = 128;

/// An issuer, and what its tokens' claims mean here.
#[derive(Debug)]
pub struct Oidc {
    /// Whose tokens are good.
    pub issuer: Issuer,
    /// The claim that names a token's bearer; `sub` does where it is missing.
    pub name_claim: String,
    /// The claim with the roles, as the issuer calls them: a name, or a path with dots.
    pub roles_claim: String,
    /// What these are here. Several come to what they allow together.
    pub roles: Vec<(String, Role)>,
}

impl Oidc {
    /// Who bears this token.
    pub(super) async fn caller(&self, token: &str) -> Result<Caller, Problem> {
        // By the clock on the wall, which dates tokens, and not by that of leases.
        match self.issuer.verify(token, SystemTime::now()).await {
            Ok(claims) => self.caller_of(&claims),
            Err(rejection @ (Rejection::NoKeys | Rejection::Crowded)) => {
                Err(Problem::busy(rejection.shown()))
            }
            Err(rejection) => Err(Problem::bad_token(rejection.shown()).because(rejection)),
        }
    }

    fn caller_of(&self, claims: &Claims) -> Result<Caller, Problem> {
        let named = [&*self.name_claim, "sub"]
            .into_iter()
            .find_map(|claim| claims.text(claim));
        let name = named.filter(|name| is_name(name)).ok_or_else(|| {
            let claim = &self.name_claim;
            Problem::bad_token("the token does not say whose it is")
                .because(format!("the token has no {claim} that can be a name"))
        })?;
        let said = claims.texts(&self.roles_claim);
        let roles = self.roles.iter();
        let roles = roles.filter(|(value, _)| said.contains(&&**value));
        let Some(role) = roles.map(|(_, role)| *role).reduce(Role::and) else {
            let detail = format!(
                "{name} has no role: the token's {} has none of the values that are configured for one",
                self.roles_claim
            );
            let because = format!("{detail}: {said:?}");
            return Err(Problem::new(StatusCode::FORBIDDEN, detail).because(because));
        };
        let name = name.to_owned();
        Ok(Caller::new(name, role))
    }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}
