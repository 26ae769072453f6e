//! The hub's certificate authority, and a server certificate signed by the authority.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::policy::seeded_key;

/// The hub's TLS identity.
pub(crate) struct Identity {
    /// The authority's certificate, for clients to trust.
    pub(crate) ca_pem: String,
    /// The TLS configuration of the listeners.
    pub(crate) server: Arc<ServerConfig>,
}

/// The reason why no identity could be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificates could not be made, possibly because the host name is not a DNS name.
    #[error("cannot create certificates for the names {names:?}")]
    Certificate {
        /// The names for the certificate.
        names: Vec<String>,
        /// The cause.
        source: rcgen::Error,
    },
    /// The TLS library refused the certificate.
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
}

/// The bytes before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Returns the authority's key. The key follows from the seed. The certificate does so too, byte
/// for byte, since Ed25519 signatures are deterministic: clients that trust a hub still trust the
/// hub after a restart.
fn authority_key(seed: u64) -> Result<KeyPair, rcgen::Error> {
    let key = [&ED25519_PKCS8[..], &seeded_key(seed, &["authority"])].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key), &rcgen::PKCS_ED25519)
}

/// Makes the authority of the seed, and a new leaf certificate for `names`.
pub(crate) fn make(names: &[String], seed: u64) -> Result<Identity, IdentityError> {
    let certificate = |source| IdentityError::Certificate {
        names: names.to_vec(),
        source,
    };
    let ca_key = authority_key(seed).map_err(certificate)?;
    let mut ca = CertificateParams::new(Vec::<String>::new()).map_err(certificate)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "Twincast hub emulator CA");
    let ca_certificate = ca.self_signed(&ca_key).map_err(certificate)?;
    let issuer = Issuer::new(ca, ca_key);

    let leaf_key = KeyPair::generate().map_err(certificate)?;
    let mut leaf = CertificateParams::new(names.to_vec()).map_err(certificate)?;
    let common_name = names.first().map_or("localhost", String::as_str);
    leaf.distinguished_name
        .push(DnType::CommonName, common_name);
    leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let leaf_certificate = leaf.signed_by(&leaf_key, &issuer).map_err(certificate)?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let asks = Arc::new(AsksForCertificates(Arc::clone(&provider)));
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(asks)
        .with_single_cert(
            vec![leaf_certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der())),
        )?;
    Ok(Identity {
        ca_pem: ca_certificate.pem(),
        server: Arc::new(server),
    })
}

/// Requests client certificates, and accepts any certificate or none: the expected certificate is
/// known only once the client names the device. The handshake proves possession of the
/// certificate's key.
#[derive(Debug)]
struct AsksForCertificates(Arc<CryptoProvider>);

impl ClientCertVerifier for AsksForCertificates {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Reads the certificates in a PEM text. A text without certificates is an error.
pub(crate) fn read_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    use rustls_pki_types::pem::PemObject as _;
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err("no PEM certificate found".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_authority() {
        let ca = |seed| {
            let identity = make(&["localhost".to_owned()], seed);
            identity.expect("a name").ca_pem
        };
        assert_eq!(ca(1), ca(1));
        assert_ne!(ca(1), ca(2));
        assert_eq!(read_pem(&ca(1)).map(|found| found.len()), Ok(1));
        assert!(read_pem("").is_err() && read_pem("nonsense").is_err());
    }
}
