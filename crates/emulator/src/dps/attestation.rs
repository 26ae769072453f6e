//! The attestation of an enrolment, and the resulting authentication at the hub.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use rustls_pki_types::CertificateDer;
use sha2::Sha256;

use crate::fleet::Authentication;
use crate::hub::{ClientCertificate, DeviceAuthorities, Proof};
use crate::sas::{Token, TokenError};

/// The proof required by an enrolment.
#[derive(Clone)]
pub(crate) enum Attestation {
    /// A token signed by either key. For a group, the signing key is derived from either key.
    SymmetricKeys([Vec<u8>; 2]),
    /// A certificate equal to a certificate of the list.
    Certificates(Vec<CertificateDer<'static>>),
    /// A certificate signed by a certificate of the list, directly or through intermediates.
    SignedBy(Vec<CertificateDer<'static>>),
}

/// The reason for denying a registration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistrationDenied {
    #[error("unknown id scope '{0}'")]
    Scope(String),
    #[error("the device presented neither a token nor a certificate")]
    Nothing,
    #[error("no enrolment matches this registration")]
    NoEnrollment,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token is for '{0}', not for this registration")]
    OtherRegistration(String),
    #[error("the certificate's common name is {0:?}, not the registration id")]
    CommonName(Option<String>),
    #[error("the certificate is not a certificate of the enrolment")]
    OtherCertificate,
    #[error("the certificate is not signed by a certificate of the group: {0}")]
    Signer(String),
}

/// A device asking for registration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RegistrationAttempt<'a> {
    pub(crate) id_scope: &'a str,
    pub(crate) registration_id: &'a str,
    pub(crate) proof: Proof<'a>,
    pub(crate) now_s: u64,
}

impl Attestation {
    /// Whether the attestation accepts this kind of proof: tokens for keys, certificates for
    /// certificates.
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

    /// Checks the proof of an attempt. Returns the device's authentication at the hub: the keys, or
    /// the certificate's thumbprint.
    pub(crate) fn check(
        &self,
        attempt: RegistrationAttempt<'_>,
        is_group: bool,
    ) -> Result<Authentication, RegistrationDenied> {
        match (self, attempt.proof) {
            (Self::SymmetricKeys(keys), Proof::Token(token)) => {
                let keys = keys.each_ref().map(|key| {
                    if is_group {
                        derived_key(key, attempt.registration_id)
                    } else {
                        key.clone()
                    }
                });
                check_token(token, &keys, attempt)?;
                Ok(Authentication::Sas(keys.map(|key| STANDARD.encode(key))))
            }
            (Self::Certificates(known), Proof::Certificate(certificate)) => {
                if !known.iter().any(|known| certificate.is(known)) {
                    return Err(RegistrationDenied::OtherCertificate);
                }
                of_certificate(certificate, attempt.registration_id)
            }
            (Self::SignedBy(signers), Proof::Certificate(certificate)) => {
                DeviceAuthorities::new(signers)
                    .and_then(|signers| signers.check(certificate, attempt.now_s))
                    .map_err(RegistrationDenied::Signer)?;
                of_certificate(certificate, attempt.registration_id)
            }
            _ => Err(RegistrationDenied::NoEnrollment),
        }
    }
}

/// Derives a device's key from the key of a group.
pub(crate) fn derived_key(group_key: &[u8], registration_id: &str) -> Vec<u8> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(group_key).expect("HMAC takes a key of any length");
    mac.update(registration_id.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Checks a token for `{idScope}/registrations/{registrationId}`.
fn check_token(
    token: &str,
    keys: &[Vec<u8>],
    attempt: RegistrationAttempt<'_>,
) -> Result<(), RegistrationDenied> {
    let token = Token::read(token)?;
    if !keys.iter().any(|key| token.is_signed_by(key)) {
        return Err(TokenError::BadSignature.into());
    }
    let scope = token.scope(&[attempt.id_scope.to_ascii_lowercase()])?;
    let path = scope.split_once('/').map_or("", |(_, path)| path);
    if !path.eq_ignore_ascii_case(&format!("registrations/{}", attempt.registration_id)) {
        return Err(RegistrationDenied::OtherRegistration(scope));
    }
    Ok(token.check_time(attempt.now_s)?)
}

/// Checks that the certificate's common name is the registration id. Returns the thumbprint as
/// authentication.
fn of_certificate(
    certificate: &ClientCertificate,
    registration_id: &str,
) -> Result<Authentication, RegistrationDenied> {
    let name = certificate.common_name();
    if !name
        .as_ref()
        .is_some_and(|name| name.eq_ignore_ascii_case(registration_id))
    {
        return Err(RegistrationDenied::CommonName(name));
    }
    let [_, sha256] = certificate.thumbprints();
    Ok(Authentication::SelfSigned([Some(sha256), None]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_group_gives_the_documented_key_of_a_device() {
        // The example in the documentation of symmetric key attestation.
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
