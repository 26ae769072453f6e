//! Tokens: who gets one, and who bears one.

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

/// Why a bearer token is refused by the hub.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BearerError {
    #[error("the token is not valid: {0}")]
    Token(#[from] Rejection),
    #[error("the token's oid is no principal of the tenant")]
    Unknown,
}

/// Gives tokens out, and checks them.
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

/// A token, and its time.
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

    /// The issuer's name in its tokens.
    pub(super) fn name(&self) -> String {
        format!("https://sts.windows.net/{}/", self.directory.tenant_id)
    }

    pub(super) fn key_set(&self) -> Value {
        TokenSigner::key_set(&[&self.signer])
    }

    /// A token of `principal` for `audience`. Roles are not part of it: the hub knows them.
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

    /// Who bears this token, and until when. The hub sees to it that nobody is let in a second too long, whatever leeway
    /// the check of times has.
    pub(crate) fn bearer(
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

    /// The principal that a federated token or an assertion by certificate stands for.
    pub(super) fn asserted(
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
        for federated in &principal.federated {
            match federated
                .keys
                .verify(assertion, &federated.issuer, &federated.audience, now)
            {
                Ok(claims) if claims.text("sub") == Some(&federated.subject) => {
                    return Ok(principal);
                }
                Ok(_) => return Err(AssertionError::Subject),
                Err(Rejection::Issuer { .. }) => {}
                Err(Rejection::Expired | Rejection::NotYet) => return Err(AssertionError::Time),
                Err(Rejection::Audience { .. }) => return Err(AssertionError::Audience),
                Err(_) => {}
            }
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
        Err(AssertionError::Signature)
    }
}

/// Why an assertion is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AssertionError {
    Client,
    Subject,
    Audience,
    Time,
    Signature,
}

/// The certificate that an assertion names in its header.
fn thumbprint(assertion: &str) -> Option<String> {
    let (header, _) = assertion.split_once('.')?;
    let header = URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    Some(header.get("x5t#S256")?.as_str()?.to_owned())
}
