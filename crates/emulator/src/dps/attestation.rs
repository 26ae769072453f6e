//! What an enrolment asks a device to prove, and what the device then has at the hub.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use rustls_pki_types::CertificateDer;
use sha2::Sha256;

use crate::fleet::Authentication;
use crate::hub::{ClientCertificate, DeviceAuthorities, Proof};
use crate::sas::{Token, TokenError};

/// What a device proves itself with.
#[derive(Clone)]
pub(crate) enum Attestation {
    /// A token that one of two keys has signed, or for a group: a key that follows from one of them.
    SymmetricKeys([Vec<u8>; 2]),
    /// One of these certificates.
    Certificates(Vec<CertificateDer<'static>>),
    /// A certificate that one of these has signed, perhaps through others.
    SignedBy(Vec<CertificateDer<'static>>),
}

/// Why a device is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("there is no id scope '{0}'")]
    Scope(String),
    #[error("nothing was presented: neither a token nor a certificate")]
    Nothing,
    #[error("no enrolment takes this registration")]
    NoEnrollment,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token is for '{0}', not for this registration")]
    OtherRegistration(String),
    #[error("the certificate's common name is {0:?}, not the registration id")]
    CommonName(Option<String>),
    #[error("the certificate is not that of the enrolment")]
    OtherCertificate,
    #[error("the certificate is not signed by that of the group: {0}")]
    Signer(String),
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) id_scope: &'a str,
    pub(crate) registration_id: &'a str,
    pub(crate) proof: Proof<'a>,
    pub(crate) now_s: u64,
}

impl Attestation {
    /// Whether this is proved with what the asker has presented: tokens are for keys.
    pub(crate) fn takes(&self, proof: Proof<'_>) -> bool {
        matches!(
            (self, proof),
            (Self::SymmetricKeys(_), Proof::Token(_))
                | (
                    Self::Certificates(_) | Self::SignedBy(_),
                    Proof::Certificate(_)
                )
        )
    }

    /// Checks the asker's proof, and says what the device authenticates with at the hub: its keys, or its certificate's
    /// thumbprints.
    pub(crate) fn check(&self, asker: Asker<'_>, is_group: bool) -> Result<Authentication, Denied> {
        match (self, asker.proof) {
            (Self::SymmetricKeys(keys), Proof::Token(token)) => {
                let keys = keys.each_ref().map(|key| {
                    if is_group {
                        derived_key(key, asker.registration_id)
                    } else {
                        key.clone()
                    }
                });
                check_token(token, &keys, asker)?;
                Ok(Authentication::Sas(keys.map(|key| STANDARD.encode(key))))
            }
            (Self::Certificates(known), Proof::Certificate(certificate)) => {
                if !known.iter().any(|known| certificate.is(known)) {
                    return Err(Denied::OtherCertificate);
                }
                of_certificate(certificate, asker.registration_id)
            }
            (Self::SignedBy(signers), Proof::Certificate(certificate)) => {
                DeviceAuthorities::new(signers)
                    .and_then(|signers| signers.check(certificate, asker.now_s))
                    .map_err(Denied::Signer)?;
                of_certificate(certificate, asker.registration_id)
            }
            _ => Err(Denied::NoEnrollment),
        }
    }
}

/// The key of one device of a group.
pub(crate) fn derived_key(group_key: &[u8], registration_id: &str) -> Vec<u8> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(group_key).expect("HMAC takes a key of any length");
    mac.update(registration_id.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Checks a token for `{idScope}/registrations/{registrationId}`.
fn check_token(token: &str, keys: &[Vec<u8>], asker: Asker<'_>) -> Result<(), Denied> {
    let token = Token::read(token)?;
    if !keys.iter().any(|key| token.is_signed_by(key)) {
        return Err(TokenError::BadSignature.into());
    }
    let scope = token.scope(&[asker.id_scope.to_ascii_lowercase()])?;
    let path = scope.split_once('/').map_or("", |(_, path)| path);
    if !path.eq_ignore_ascii_case(&format!("registrations/{}", asker.registration_id)) {
        return Err(Denied::OtherRegistration(scope));
    }
    Ok(token.check_time(asker.now_s)?)
}

/// The certificate's common name is the registration id; the hub gets to know the thumbprint.
fn of_certificate(
    certificate: &ClientCertificate,
    registration_id: &str,
) -> Result<Authentication, Denied> {
    let name = certificate.common_name();
    if !name
        .as_ref()
        .is_some_and(|name| name.eq_ignore_ascii_case(registration_id))
    {
        return Err(Denied::CommonName(name));
    }
    let [_, sha256] = certificate.thumbprints();
    Ok(Authentication::SelfSigned([Some(sha256), None]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_group_gives_the_documented_key_of_a_device() {
        // The example of the documentation of symmetric key attestation.
        let group = STANDARD
            .decode("8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==")
            .unwrap();
        let device = derived_key(&group, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
        assert_eq!(
            STANDARD.encode(device),
            "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="
        );
    }
}
