//! Issuing and checking tokens.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use twincast_oidc::{Keys, Rejection, TokenSigner};
use uuid::Uuid;

use super::directory::{Directory, Principal};

/// The audience of a hub's tokens.
const HUB_AUDIENCE: &str = "https://iothubs.azure.net";

/// The reason why the hub refuses a bearer token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BearerError {
    #[error("the token is not valid: {0}")]
    Token(#[from] Rejection),
    #[error("the token's oid is not a principal of the tenant")]
    Unknown,
}

/// Issues tokens, and checks issued tokens.
pub(crate) struct Issuer {
    pub(super) directory: Directory,
    signer: TokenSigner,
    keys: Keys,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.directory.tenant_id)
    }
}

/// A token with the lifetime.
pub(super) struct Issued {
    pub(super) token: String,
    pub(super) lifetime: Duration,
    pub(super) not_before_s: u64,
    pub(super) expires_s: u64,
}

impl Issuer {
    pub(crate) fn new(directory: Directory) -> Self {
        let signer = TokenSigner::new("emulated");
        let set = TokenSigner::key_set(&[&signer]).to_string();
        let keys = Keys::read(set.as_bytes()).expect("the signer's own key");
        Self {
            directory,
            signer,
            keys,
        }
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Returns the issuer's name, as written in tokens.
    pub(super) fn name(&self) -> String {
        format!("https://sts.windows.net/{}/", self.directory.tenant_id)
    }

    pub(super) fn key_set(&self) -> Value {
        TokenSigner::key_set(&[&self.signer])
    }

    /// Issues a token of `principal` for `audience`. Roles are not part of the token: the hub looks
    /// them up.
    pub(super) fn issue(&self, principal: &Principal, audience: &str, now_s: u64) -> Issued {
        let lifetime = self.directory.token_lifetime;
        let expires_s = now_s + lifetime.as_secs();
        let claims = json!({
            "aud": audience,
            "iss": self.name(),
            "iat": now_s,
            "nbf": now_s,
            "exp": expires_s,
            "appid": principal.client_id,
            "idtyp": "app",
            "oid": principal.object_id,
            "sub": principal.object_id,
            "tid": self.directory.tenant_id,
            "uti": Uuid::new_v4().simple().to_string(),
            "ver": "1.0",
        });
        Issued {
            token: self.signer.sign(&claims),
            lifetime,
            not_before_s: now_s,
            expires_s,
        }
    }

    /// Returns the principal of a bearer token, and the expiry in seconds since 1970. An expired
    /// token is refused without leeway, even if the check of times allows some.
    pub(crate) fn verify_token(
        &self,
        token: &str,
        now_s: u64,
    ) -> Result<(Arc<Principal>, u64), BearerError> {
        let now = UNIX_EPOCH + Duration::from_secs(now_s);
        let claims = self.keys.verify(token, &self.name(), HUB_AUDIENCE, now)?;
        let expires_s = claims.expires_s().unwrap_or(0);
        if expires_s <= now_s {
            return Err(Rejection::Expired.into());
        }
        let principal = claims
            .text("oid")
            .and_then(|oid| self.directory.by_object(oid))
            .ok_or(BearerError::Unknown)?;
        Ok((Arc::clone(principal), expires_s))
    }

    /// Returns the principal authenticated by a federated token or by an assertion signed with a
    /// certificate.
    pub(super) fn verify_assertion(
        &self,
        client_id: &str,
        assertion: &str,
        endpoint: &str,
        now: SystemTime,
    ) -> Result<&Arc<Principal>, AssertionError> {
        let principal = self
            .directory
            .principal(client_id)
            .ok_or(AssertionError::Client)?;
        let mut refusal = None;
        for federated in &principal.federated {
            let verified =
                federated
                    .keys
                    .verify(assertion, &federated.issuer, &federated.audience, now);
            let error = match verified {
                Ok(claims) if claims.text("sub") == Some(&federated.subject) => {
                    return Ok(principal);
                }
                Ok(_) => AssertionError::Subject,
                Err(Rejection::Expired | Rejection::NotYet) => AssertionError::Time,
                Err(Rejection::Audience { .. }) => AssertionError::Audience,
                Err(_) => continue,
            };
            // Another credential may still match; otherwise the first refusal is the answer.
            refusal.get_or_insert(error);
        }
        let thumbprint = thumbprint(assertion);
        for certificate in &principal.certificates {
            if thumbprint.as_ref() != Some(&certificate.thumbprint) {
                continue;
            }
            match certificate.key.verify(assertion, client_id, endpoint, now) {
                Ok(claims) if claims.text("sub") == Some(client_id) => return Ok(principal),
                Err(Rejection::Expired | Rejection::NotYet) => return Err(AssertionError::Time),
                Err(Rejection::Audience { .. }) => return Err(AssertionError::Audience),
                _ => {}
            }
        }
        Err(refusal.unwrap_or(AssertionError::Signature))
    }
}

/// The reason for refusing an assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AssertionError {
    Client,
    Subject,
    Audience,
    Time,
    Signature,
}

/// Returns the certificate thumbprint in an assertion's header.
fn thumbprint(assertion: &str) -> Option<String> {
    let (header, _) = assertion.split_once('.')?;
    let header = URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    Some(header.get("x5t#S256")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_federated_credentials_are_tried_before_a_refusal() {
        let signer = TokenSigner::new("cluster");
        let credential = |subject: &str, audience: &str| {
            json!({
                "issuer": "https://oidc.example",
                "subject": subject,
                "audience": audience,
                "keys": TokenSigner::key_set(&[&signer]),
            })
        };
        let file = json!({
            "principals": [{
                "clientId": "a",
                "federatedCredentials": [
                    credential("first", "x"),
                    credential("second", "x"),
                    credential("third", "y"),
                ],
            }],
        });
        let issuer = Issuer::new(Directory::read(&file.to_string(), 1).unwrap());
        let now = SystemTime::now();
        let now_s = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let verify = |subject: &str, audience: &str| {
            let assertion = signer.sign(&json!({
                "iss": "https://oidc.example",
                "sub": subject,
                "aud": audience,
                "exp": now_s + 60,
            }));
            let verified = issuer.verify_assertion("a", &assertion, "https://login.example", now);
            verified.map(|principal| principal.client_id.clone())
        };
        for (subject, audience) in [("first", "x"), ("second", "x"), ("third", "y")] {
            assert_eq!(verify(subject, audience), Ok("a".to_owned()), "{subject}");
        }
        assert_eq!(verify("other", "x"), Err(AssertionError::Subject));
        assert_eq!(verify("first", "z"), Err(AssertionError::Audience));
    }
}
