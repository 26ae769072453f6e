//! Device authentication.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use super::super::core::Hub;
use super::super::refusal::Refusal;
use super::certificate::ClientCertificate;
use crate::fleet::{Authentication, Status};
use crate::sas::{Token, TokenError, TokenHolder};

/// The proof of a device's identity.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Proof<'a> {
    /// A shared access signature, in the received form.
    Token(&'a str),
    /// A certificate from the TLS handshake.
    Certificate(&'a ClientCertificate),
}

/// The identity of an authenticated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuthenticatedDevice {
    pub(crate) number: u32,
    pub(crate) id: String,
    /// The generation id, which tells apart successive devices of the same id.
    pub(crate) generation: String,
    /// The expiry of the token, in seconds since 1970; `None` for a certificate.
    pub(crate) ends_s: Option<u64>,
}

/// The reason for refusing a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthenticationError {
    #[error("there is no device '{0}'")]
    Unknown(String),
    #[error("the device '{0}' is disabled")]
    Disabled(String),
    #[error("the device '{id}' authenticates with '{kind}', but presented {found}")]
    OtherKind {
        id: String,
        kind: &'static str,
        found: &'static str,
    },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token is for '{0}', not for this device")]
    OtherDevice(String),
    #[error("the policy '{0}' does not allow connecting as a device")]
    Policy(String),
    #[error("the certificate's thumbprints {sha1} and {sha256} do not match the device '{id}'")]
    Thumbprint {
        id: String,
        sha1: String,
        sha256: String,
    },
    #[error("the certificate is not signed by a registered authority: {0}")]
    Authority(String),
    #[error("the certificate's common name is {found:?}, not the device's id '{id}'")]
    CommonName { id: String, found: Option<String> },
}

impl From<&AuthenticationError> for Refusal {
    fn from(error: &AuthenticationError) -> Self {
        match error {
            AuthenticationError::Unknown(id) => Self::device_not_found(id),
            AuthenticationError::Disabled(id) => Self::device_disabled(id),
            other => Self::unauthorized(other.to_string()),
        }
    }
}

impl Hub {
    /// Authenticates a client as the device `id`.
    pub(crate) fn authenticate_device(
        &self,
        id: &str,
        proof: Proof<'_>,
    ) -> Result<AuthenticatedDevice, AuthenticationError> {
        let checked = self.check_proof(id, proof);
        match &checked {
            Ok(_) => self.counters.device_logins.one(),
            Err(error) => {
                self.counters.device_logins_refused.one();
                tracing::debug!(device = id, reason = %error, "device refused");
            }
        }
        checked
    }

    /// Returns the primary symmetric key of a device in base64, if the device has symmetric keys.
    pub(crate) fn device_key(&self, id: &str) -> Option<String> {
        let registry = self.registry();
        match registry.record(registry.number(id)?)?.authentication {
            Authentication::Sas([primary, _]) => Some(primary),
            _ => None,
        }
    }

    fn check_proof(
        &self,
        id: &str,
        proof: Proof<'_>,
    ) -> Result<AuthenticatedDevice, AuthenticationError> {
        let (device, record) = {
            let registry = self.registry();
            let number = registry.number(id);
            let found = number.and_then(|number| Some((number, registry.record(number)?)));
            found.ok_or_else(|| AuthenticationError::Unknown(id.to_owned()))?
        };
        let ends_s = match proof {
            Proof::Token(token) => Some(self.check_token(id, &record.authentication, token)?),
            Proof::Certificate(certificate) => {
                self.check_certificate(id, &record.authentication, certificate)?;
                None
            }
        };
        if record.status == Status::Disabled {
            return Err(AuthenticationError::Disabled(id.to_owned()));
        }
        Ok(AuthenticatedDevice {
            number: device,
            id: record.id,
            generation: record.generation,
            ends_s,
        })
    }

    /// Checks a token signed by a key of the device or of a policy. Returns the token's expiry, in
    /// seconds since 1970.
    fn check_token(
        &self,
        id: &str,
        authentication: &Authentication,
        token: &str,
    ) -> Result<u64, AuthenticationError> {
        let now_s = self.now_s();
        let token = Token::read(token)?;
        if token.policy.is_some() {
            if !self.config.local_auth {
                return Err(TokenError::LocalAuthDisabled.into());
            }
            let grant = token.grant(&self.policies(), &self.names, now_s)?;
            let may = matches!(&grant.holder, TokenHolder::Policy { permissions, .. } if permissions.device_connect);
            if !may {
                return Err(AuthenticationError::Policy(grant.holder.name().to_owned()));
            }
            if !grant.reaches(&format!("/devices/{id}")) {
                return Err(AuthenticationError::OtherDevice(grant.scope));
            }
            return Ok(grant.expires_s);
        }
        let Authentication::Sas(keys) = authentication else {
            return Err(AuthenticationError::OtherKind {
                id: id.to_owned(),
                kind: authentication.kind(),
                found: "a token",
            });
        };
        let signs = |key: &String| {
            STANDARD
                .decode(key)
                .is_ok_and(|key| token.is_signed_by(&key))
        };
        if !keys.iter().any(signs) {
            return Err(TokenError::BadSignature.into());
        }
        let scope = token.scope(&self.names)?;
        if !is_for_device(&scope, id) {
            return Err(AuthenticationError::OtherDevice(scope));
        }
        token.check_time(now_s)?;
        Ok(token.expires_s)
    }

    fn check_certificate(
        &self,
        id: &str,
        authentication: &Authentication,
        certificate: &ClientCertificate,
    ) -> Result<(), AuthenticationError> {
        match authentication {
            Authentication::SelfSigned(known) => {
                let [sha1, sha256] = certificate.thumbprints();
                let is_known = known.iter().flatten().any(|known| {
                    known.eq_ignore_ascii_case(&sha1) || known.eq_ignore_ascii_case(&sha256)
                });
                if is_known {
                    return Ok(());
                }
                let id = id.to_owned();
                Err(AuthenticationError::Thumbprint { id, sha1, sha256 })
            }
            Authentication::CertificateAuthority => {
                self.authorities
                    .check(certificate, self.now_s())
                    .map_err(AuthenticationError::Authority)?;
                match certificate.common_name() {
                    Some(name) if name == id => Ok(()),
                    found => {
                        let id = id.to_owned();
                        Err(AuthenticationError::CommonName { id, found })
                    }
                }
            }
            other => Err(AuthenticationError::OtherKind {
                id: id.to_owned(),
                kind: other.kind(),
                found: "a certificate",
            }),
        }
    }
}

/// Whether a scope is `{host}/devices/{id}`. Some SDKs percent-encode the id once more than the
/// whole scope.
fn is_for_device(scope: &str, id: &str) -> bool {
    let mut parts = scope.split('/').skip(1);
    let is_devices = parts
        .next()
        .is_some_and(|part| part.eq_ignore_ascii_case("devices"));
    let found = parts.next().unwrap_or_default();
    let is_all = parts.next().is_none();
    is_devices && is_all && (found == id || percent_decode_str(found).decode_utf8_lossy() == id)
}
