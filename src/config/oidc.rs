//! Configuration of the OpenID Connect issuer of tokens for the HTTP API.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use twincast_orchestrator::http::auth::Role;

/// The accepted issuer and audience, and the claims with name and roles.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OidcSettings {
    pub(crate) issuer: String,
    pub(crate) audience: String,
    #[serde(default = "roles_claim")]
    pub(crate) roles_claim: String,
    #[serde(default = "name_claim")]
    pub(crate) name_claim: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) roles: RoleValues,
}

/// The values of the roles claim for each role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoleValues {
    #[serde(default, deserialize_with = "one_or_some")]
    viewer: Vec<String>,
    #[serde(default, deserialize_with = "one_or_some")]
    operator: Vec<String>,
    #[serde(default, deserialize_with = "one_or_some")]
    approver: Vec<String>,
    #[serde(default, deserialize_with = "one_or_some")]
    admin: Vec<String>,
}

/// Accepts a single text or a list: the environment has no lists.
fn one_or_some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text, or a list of texts")]
    enum OneOrSome {
        One(String),
        Some(Vec<String>),
    }
    Ok(match OneOrSome::deserialize(deserializer)? {
        OneOrSome::One(text) => vec![text],
        OneOrSome::Some(texts) => texts,
    })
}

fn roles_claim() -> String {
    "roles".to_owned()
}

fn name_claim() -> String {
    "preferred_username".to_owned()
}

impl RoleValues {
    /// Returns all values, each with the role.
    pub(crate) fn all(&self) -> Vec<(String, Role)> {
        let of = |role| match role {
            Role::Viewer => &self.viewer,
            Role::Operator => &self.operator,
            Role::Approver => &self.approver,
            Role::Admin => &self.admin,
        };
        let values = |role| of(role).iter().map(move |value| (value.clone(), role));
        Role::ALL.into_iter().flat_map(values).collect()
    }
}

impl OidcSettings {
    /// Returns the problems: the key, and the rule.
    pub(crate) fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let roles = self.roles.all();
        let urls = [Some(&self.issuer), self.keys_url.as_ref()];
        let rules = [
            (
                !self.issuer.is_empty(),
                "api.oidc.issuer",
                "must not be empty",
            ),
            (
                !self.audience.is_empty(),
                "api.oidc.audience",
                "must not be empty",
            ),
            (
                // Both URLs appear in output.
                !urls.into_iter().flatten().any(|url| url.contains('@')),
                "api.oidc",
                "must have no user and password in issuer and keys_url",
            ),
            (
                self.keys_file.is_none() || self.keys_url.is_none(),
                "api.oidc",
                "must have only one of keys_file and keys_url",
            ),
            (
                !roles.is_empty() && roles.iter().all(|(value, _)| !value.is_empty()),
                "api.oidc.roles",
                "must have values for at least one role, and no empty value; without a value, no \
                 token gives a role",
            ),
        ];
        let broken = rules.into_iter().filter(|(holds, ..)| !holds);
        broken.map(|(_, at, otherwise)| (at, otherwise)).collect()
    }
}
