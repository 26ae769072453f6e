//! Shared access signatures, verified by signing the received text again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use percent_encoding::percent_decode_str;
use sha2::Sha256;

use std::sync::Arc;

use crate::entra::{Action, Principal};
use crate::policy::{Permissions, Policy};

/// The rights granted by a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The host name and path covered by the token, decoded, with the host in lower case.
    pub(crate) scope: String,
    pub(crate) holder: TokenHolder,
    /// The expiry of the token, in seconds since 1970.
    pub(crate) expires_s: u64,
}

/// The holder of a token's rights.
#[derive(Debug, Clone)]
pub(crate) enum TokenHolder {
    Policy {
        name: String,
        permissions: Permissions,
    },
    Principal(Arc<Principal>),
}

impl TokenHolder {
    /// Returns the holder's unique name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Policy { name, .. } => name,
            Self::Principal(principal) => &principal.object_id,
        }
    }

    pub(crate) fn may(&self, action: Action) -> bool {
        match self {
            Self::Policy { permissions, .. } => permissions.allow(action),
            Self::Principal(principal) => principal.may(action),
        }
    }
}

impl PartialEq for TokenHolder {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for TokenHolder {}

/// The reason for refusing a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token does not start with 'SharedAccessSignature '")]
    NotASignature,
    #[error("the token has no field '{0}'")]
    Missing(&'static str),
    #[error("the token has the field '{0}' twice")]
    Twice(&'static str),
    #[error("the token's expiry '{0}' is not a number of seconds")]
    BadExpiry(String),
    #[error("the token expired at {0}")]
    Expired(u64),
    #[error("unknown policy '{0}'")]
    UnknownPolicy(String),
    #[error("the token's signature does not match")]
    BadSignature,
    #[error("the token is for '{0}', not for this hub")]
    OtherResource(String),
    #[error("access with shared access keys is disabled for this hub")]
    LocalAuthDisabled,
    #[error("this hub does not accept tokens of Microsoft Entra ID")]
    NoIssuer,
    #[error("{0}")]
    Bearer(String),
}

/// A parsed token, not yet verified.
#[derive(Debug)]
pub(crate) struct Token<'a> {
    /// The signed text: `sr` and `se` as received, in the client's encoding.
    signed: String,
    signature: Vec<u8>,
    resource: &'a str,
    /// The expiry, in seconds since 1970.
    pub(crate) expires_s: u64,
    /// The policy named as the signer; `None` for a device's own key.
    pub(crate) policy: Option<String>,
}

impl<'a> Token<'a> {
    pub(crate) fn read(token: &'a str) -> Result<Self, TokenError> {
        let fields = token
            .trim()
            .strip_prefix("SharedAccessSignature ")
            .ok_or(TokenError::NotASignature)?;
        let [mut sr, mut sig, mut se, mut skn] = [None; 4];
        for pair in fields.trim().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (slot, name) = match key {
                "sr" => (&mut sr, "sr"),
                "sig" => (&mut sig, "sig"),
                "se" => (&mut se, "se"),
                "skn" => (&mut skn, "skn"),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(TokenError::Twice(name));
            }
        }
        let resource = sr.ok_or(TokenError::Missing("sr"))?;
        let sig = sig.ok_or(TokenError::Missing("sig"))?;
        let se = se.ok_or(TokenError::Missing("se"))?;
        let expires_s = se
            .parse()
            .map_err(|_| TokenError::BadExpiry(se.to_owned()))?;
        let sig: Vec<u8> = percent_decode_str(sig).collect();
        let skn = skn.map(|skn| percent_decode_str(skn).decode_utf8_lossy().into_owned());
        Ok(Self {
            signed: format!("{resource}\n{se}"),
            signature: STANDARD.decode(sig).map_err(|_| TokenError::BadSignature)?,
            resource,
            expires_s,
            policy: skn.filter(|skn| !skn.is_empty()),
        })
    }

    /// Whether `key` has signed the token.
    pub(crate) fn is_signed_by(&self, key: &[u8]) -> bool {
        signs(key, &self.signed, &self.signature)
    }

    /// Returns the decoded host name and path covered by the token, if the host is among `hosts`.
    pub(crate) fn scope(&self, hosts: &[String]) -> Result<String, TokenError> {
        let scope = normalise(&percent_decode_str(self.resource).decode_utf8_lossy());
        let host = host_of(&scope);
        if hosts.iter().any(|known| known == host) {
            Ok(scope)
        } else {
            Err(TokenError::OtherResource(scope))
        }
    }

    pub(crate) fn check_time(&self, now_s: u64) -> Result<(), TokenError> {
        if self.expires_s <= now_s {
            Err(TokenError::Expired(self.expires_s))
        } else {
            Ok(())
        }
    }

    /// Verifies the token, and returns the rights of the signing policy.
    pub(crate) fn grant(
        &self,
        policies: &[Policy],
        hosts: &[String],
        now_s: u64,
    ) -> Result<Grant, TokenError> {
        let name = self.policy.as_ref().ok_or(TokenError::Missing("skn"))?;
        let policy = policies
            .iter()
            .find(|policy| policy.name == *name)
            .ok_or_else(|| TokenError::UnknownPolicy(name.clone()))?;
        if !self.is_signed_by(&policy.primary_key) && !self.is_signed_by(&policy.secondary_key) {
            return Err(TokenError::BadSignature);
        }
        let scope = self.scope(hosts)?;
        self.check_time(now_s)?;
        Ok(Grant {
            scope,
            holder: TokenHolder::Policy {
                name: policy.name.clone(),
                permissions: policy.permissions,
            },
            expires_s: self.expires_s,
        })
    }
}

/// Verifies a token against the hub's policies. `hosts` are the hub's names, in lower case.
pub(crate) fn verify(
    token: &str,
    policies: &[Policy],
    hosts: &[String],
    now_s: u64,
) -> Result<Grant, TokenError> {
    Token::read(token)?.grant(policies, hosts, now_s)
}

fn signs(key: &[u8], text: &str, signature: &[u8]) -> bool {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return false;
    };
    mac.update(text.as_bytes());
    mac.verify_slice(signature).is_ok()
}

/// Signs a token with a policy's key, for tests and for the emulator's own tools.
#[must_use]
pub fn sign_token(resource: &str, policy: &str, key: &[u8], expires_s: u64) -> String {
    let token = sign_device_token(resource, key, expires_s);
    format!("{token}&skn={policy}")
}

/// Signs a token with a device's own key; `resource` is `{host}/devices/{id}`.
#[must_use]
pub fn sign_device_token(resource: &str, key: &[u8], expires_s: u64) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let resource = utf8_percent_encode(resource, NON_ALPHANUMERIC).to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(format!("{resource}\n{expires_s}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires_s}")
}

/// Removes scheme, port and trailing slash, and converts the host to lower case: `host/path`.
fn normalise(resource: &str) -> String {
    let rest = resource
        .split_once("://")
        .map_or(resource, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host
        .rsplit_once(':')
        .map_or(host, |(host, _)| host)
        .to_ascii_lowercase();
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        host
    } else {
        format!("{host}/{path}")
    }
}

fn host_of(scope: &str) -> &str {
    scope.split_once('/').map_or(scope, |(host, _)| host)
}

impl Grant {
    /// Whether the grant covers `path` of the hub, starting with a slash, at `now_s`.
    pub(crate) fn covers(&self, path: &str, action: Action, now_s: u64) -> bool {
        if self.expires_s <= now_s || !self.holder.may(action) {
            return false;
        }
        self.reaches(path)
    }

    /// Whether `path` is within the scope of the token.
    pub(crate) fn reaches(&self, path: &str) -> bool {
        let Some((_, scope)) = self.scope.split_once('/') else {
            return true;
        };
        let mut path_parts = path.trim_matches('/').split('/');
        scope.split('/').all(|part| {
            path_parts
                .next()
                .is_some_and(|other| other.eq_ignore_ascii_case(part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: &str, now_s: u64) -> Result<Grant, TokenError> {
        verify(
            token,
            &Policy::defaults(1),
            &["localhost".to_owned()],
            now_s,
        )
    }

    fn key(name: &str) -> Vec<u8> {
        Policy::defaults(1)
            .into_iter()
            .find(|policy| policy.name == name)
            .unwrap()
            .primary_key
    }

    #[test]
    fn valid_token_grants_the_rights_of_the_policy() {
        let grant = check(
            &sign_token("localhost", "service", &key("service"), 100),
            99,
        )
        .unwrap();
        assert!(grant.holder.may(Action::SendToDevices) && !grant.holder.may(Action::ReadDevices));
        assert!(grant.covers("/messages/devicebound", Action::ReadTwins, 99));
        assert!(!grant.covers("/messages/devicebound", Action::ReadTwins, 100));
        assert!(!grant.covers("/devices", Action::ReadDevices, 99));
    }

    #[test]
    fn scopes_match_by_path_segment() {
        let token = sign_token("LOCALHOST:5671/messages/", "service", &key("service"), 100);
        let grant = check(&token, 1).unwrap();
        assert!(grant.covers("/messages/deviceBound", Action::ReadTwins, 1));
        assert!(!grant.covers("/messagesX", Action::ReadTwins, 1));
        assert!(!grant.covers("/twins/a", Action::ReadTwins, 1));
    }

    #[test]
    fn bad_tokens_are_refused_with_the_reason() {
        let good = sign_token("localhost", "service", &key("service"), 100);
        let other = sign_token("elsewhere", "service", &key("service"), 100);
        let wrong_key = sign_token("localhost", "service", &key("registryRead"), 100);
        let unknown = sign_token("localhost", "nobody", &key("service"), 100);
        assert_eq!(check(&good, 100), Err(TokenError::Expired(100)));
        assert_eq!(
            check(&other, 1),
            Err(TokenError::OtherResource("elsewhere".to_owned()))
        );
        assert_eq!(check(&wrong_key, 1), Err(TokenError::BadSignature));
        assert_eq!(
            check(&unknown, 1),
            Err(TokenError::UnknownPolicy("nobody".to_owned()))
        );
        assert_eq!(check("Bearer x", 1), Err(TokenError::NotASignature));
        assert_eq!(
            check("SharedAccessSignature sr=a&se=1&sig=", 1),
            Err(TokenError::Missing("skn"))
        );
        assert_eq!(
            check(&good.replace("se=100", "se=soon"), 1),
            Err(TokenError::BadExpiry("soon".to_owned()))
        );
        // Python does not encode the slash of base64.
        assert!(check(&good.replace("%2F", "/"), 1).is_ok());
    }
}
