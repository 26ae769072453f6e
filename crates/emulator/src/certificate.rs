//! A certificate authority of the hub's own, and a server certificate signed by it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The hub's TLS identity.
pub(crate) struct Identity {
    /// The authority's certificate, to be trusted by clients.
    pub(crate) ca_pem: String,
    /// What the listeners present.
    pub(crate) server: Arc<ServerConfig>,
}

/// Why no identity could be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificates could not be made; the host name may not be a DNS name.
    #[error("making certificates for the names {names:?}")]
    Certificate {
        /// The names the certificate was to carry.
        names: Vec<String>,
        /// The cause.
        source: rcgen::Error,
    },
    /// The TLS library refused the certificate.
    #[error("configuring TLS")]
    Tls(#[from] rustls::Error),
}

/// Makes a fresh authority and a leaf for `names`.
pub(crate) fn make(names: &[String]) -> Result<Identity, IdentityError> {
    let certificate = |source| IdentityError::Certificate {
        names: names.to_vec(),
        source,
    };
    let ca_key = KeyPair::generate().map_err(certificate)?;
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
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf_certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der())),
        )?;
    Ok(Identity {
        ca_pem: ca_certificate.pem(),
        server: Arc::new(server),
    })
}
