//! Who a device is, and how it proves that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use super::super::core::Hub;
use super::super::refusal::Refusal;
use super::certificate::ClientCertificate;
use crate::fleet::{Authentication, Status};
use crate::sas::{Holder, Token, TokenError};

/// What a device proves its identity with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Proof<'a> {
    /// A shared access signature, as it came.
    Token(&'a str),
    /// A certificate from the TLS handshake.
    Certificate(&'a ClientCertificate),
}

/// A device that has proved its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePass {
    pub(crate) device: u32,
    pub(crate) id: String,
    /// Which of all devices of that name it is.
    pub(crate) generation: String,
    /// When its token ends, in seconds since 1970; never, if a certificate was the proof.
    pub(crate) ends_s: Option<u64>,
}

/// Why somebody is not let in as a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denial {
    #[error("there is no device '{0}'")]
    Unknown(String),
    #[error("the device '{0}' is disabled")]
    Disabled(String),
    #[error("the device '{id}' authenticates by '{kind}', and {found} was presented")]
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
    #[error("the certificate's thumbprints {sha1} and {sha256} are none of the device '{id}'")]
    Thumbprint {
        id: String,
        sha1: String,
        sha256: String,
    },
    #[error("the certificate is not of a registered authority: {0}")]
    Authority(String),
    #[error("the certificate's common name is {found:?}, not the device's id '{id}'")]
    CommonName { id: String, found: Option<String> },
}

impl From<&Denial> for Refusal {
    fn from(denial: &Denial) -> Self {
        match denial {
            Denial::Unknown(id) => Self::device_not_found(id),
            Denial::Disabled(id) => Self::device_disabled(id),
            other => Self::unauthorized(other.to_string()),
        }
    }
}

impl Hub {
    /// Judges whether a client is the device `id`.
    pub(crate) fn authenticate_device(
        &self,
        id: &str,
        proof: Proof<'_>,
    ) -> Result<DevicePass, Denial> {
        let judged = self.judge(id, proof);
        match &judged {
            Ok(_) => self.tallies.device_logins.one(),
            Err(denial) => {
                self.tallies.device_logins_refused.one();
                tracing::debug!(device = id, reason = %denial, "device refused");
            }
        }
        judged
    }

    /// The primary symmetric key of a device, in base64, if it has one.
    pub(crate) fn device_key(&self, id: &str) -> Option<String> {
        let registry = self.registry();
        match registry.record(registry.number(id)?)?.authentication {
            Authentication::Sas([primary, _]) => Some(primary),
            _ => None,
        }
    }

    fn judge(&self, id: &str, proof: Proof<'_>) -> Result<DevicePass, Denial> {
        let (device, record) = {
            let registry = self.registry();
            let number = registry.number(id);
            let found = number.and_then(|number| Some((number, registry.record(number)?)));
            found.ok_or_else(|| Denial::Unknown(id.to_owned()))?
        };
        let ends_s = match proof {
            Proof::Token(token) => Some(self.check_token(id, &record.authentication, token)?),
            Proof::Certificate(certificate) => {
                self.check_certificate(id, &record.authentication, certificate)?;
                None
            }
        };
        if record.status == Status::Disabled {
            return Err(Denial::Disabled(id.to_owned()));
        }
        Ok(DevicePass {
            device,
            id: record.id,
            generation: record.generation,
            ends_s,
        })
    }

    /// Checks a token of the device's own or of a policy, and says when it ends.
    fn check_token(
        &self,
        id: &str,
        authentication: &Authentication,
        token: &str,
    ) -> Result<u64, Denial> {
        let now_s = self.now_s();
        let token = Token::read(token)?;
        if token.policy.is_some() {
            if !self.config.local_auth {
                return Err(TokenError::LocalAuthDisabled.into());
            }
            let grant = token.grant(&self.policies(), &self.names, now_s)?;
            let may = matches!(&grant.holder, Holder::Policy { permissions, .. } if permissions.device_connect);
            if !may {
                return Err(Denial::Policy(grant.holder.name().to_owned()));
            }
            if !grant.reaches(&format!("/devices/{id}")) {
                return Err(Denial::OtherDevice(grant.scope));
            }
            return Ok(grant.expires_s);
        }
        let Authentication::Sas(keys) = authentication else {
            return Err(Denial::OtherKind {
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
            return Err(Denial::OtherDevice(scope));
        }
        token.check_time(now_s)?;
        Ok(token.expires_s)
    }

    fn check_certificate(
        &self,
        id: &str,
        authentication: &Authentication,
        certificate: &ClientCertificate,
    ) -> Result<(), Denial> {
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
                Err(Denial::Thumbprint { id, sha1, sha256 })
            }
            Authentication::CertificateAuthority => {
                self.authorities
                    .check(certificate, self.now_s())
                    .map_err(Denial::Authority)?;
                match certificate.common_name() {
                    Some(name) if name == id => Ok(()),
                    found => {
                        let id = id.to_owned();
                        Err(Denial::CommonName { id, found })
                    }
                }
            }
            other => Err(Denial::OtherKind {
                id: id.to_owned(),
                kind: other.kind(),
                found: "a certificate",
            }),
        }
    }
}

/// Whether a scope is `{host}/devices/{id}`. Some SDKs encode the id once more than the whole.
fn is_for_device(scope: &str, id: &str) -> bool {
    let mut parts = scope.split('/').skip(1);
    let is_devices = parts
        .next()
        .is_some_and(|part| part.eq_ignore_ascii_case("devices"));
    let found = parts.next().unwrap_or_default();
    let is_all = parts.next().is_none();
    is_devices && is_all && (found == id || percent_decode_str(found).decode_utf8_lossy() == id)
}
