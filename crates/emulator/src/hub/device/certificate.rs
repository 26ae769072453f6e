//! Device certificates, and the authorities that sign them.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificate chain a client has presented in the TLS handshake, starting with the client's
/// own certificate. The handshake has proved possession of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate(Vec<CertificateDer<'static>>);

impl ClientCertificate {
    /// Returns `None` for an empty chain.
    pub(crate) fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let chain: Vec<_> = chain
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        (!chain.is_empty()).then_some(Self(chain))
    }

    fn own(&self) -> &CertificateDer<'static> {
        // Never empty: see `new`.
        &self.0[0]
    }

    /// Whether the client's own certificate equals `other`.
    pub(crate) fn is(&self, other: &CertificateDer<'_>) -> bool {
        self.own().as_ref() == other.as_ref()
    }

    /// Returns the SHA-1 and the SHA-256 of the DER, in lower-case hexadecimal digits.
    pub(crate) fn thumbprints(&self) -> [String; 2] {
        use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
        [&SHA1_FOR_LEGACY_USE_ONLY, &SHA256]
            .map(|algorithm| hex::encode(digest(algorithm, self.own()).as_ref()))
    }

    /// Returns the subject's first common name, if present and valid text.
    pub(crate) fn common_name(&self) -> Option<String> {
        let (_, certificate) = X509Certificate::from_der(self.own()).ok()?;
        let mut names = certificate.subject().iter_common_name();
        names.next()?.as_str().ok().map(ToOwned::to_owned)
    }
}

/// The certificate authorities for device certificates.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeviceAuthorities(Option<Arc<dyn ClientCertVerifier>>);

impl DeviceAuthorities {
    /// Builds the set from the authorities' certificates, in DER. An error names the position of
    /// the bad certificate in the list, counted from 1.
    pub(crate) fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, String> {
        if certificates.is_empty() {
            return Ok(Self(None));
        }
        let mut roots = RootCertStore::empty();
        for (at, certificate) in certificates.iter().enumerate() {
            roots
                .add(certificate.clone())
                .map_err(|error| format!("certificate {}: {error}", at + 1))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self(Some(verifier)))
    }

    /// Checks that one of the authorities has signed the certificate, directly or through presented
    /// intermediates.
    pub(crate) fn check(&self, certificate: &ClientCertificate, now_s: u64) -> Result<(), String> {
        let verifier = self
            .0
            .as_ref()
            .ok_or("no device certificate authority is registered")?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        verifier
            .verify_client_cert(certificate.own(), &certificate.0[1..], now)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}
