//! One TLS configuration for AMQP and HTTPS: rustls on ring, passed explicitly, no process-wide default needed.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;
use tracing::{info, warn};
use twincast_secret::{FileError, read_text};

use crate::options::Roots;

/// Why the certificate authorities could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The text is not PEM.
    #[error("custom certificate authorities are not PEM")]
    NotPem(#[source] rustls_pki_types::pem::Error),
    /// There is no certificate in the text.
    #[error("custom certificate authorities hold no certificate")]
    NoCertificate,
    /// One of the certificates cannot be an authority.
    #[error("custom certificate authority {index} is not usable")]
    NotUsable {
        /// Which one, from one.
        index: usize,
        /// What the TLS library says.
        source: rustls::Error,
    },
    /// The operating system has no certificate authorities that can be loaded.
    #[error("system has no certificate authorities; install them or give custom ones")]
    NoSystemRoots,
    /// The file with custom authorities cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// What the file with custom authorities holds cannot be used.
    #[error("cannot use {}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<RootsError>,
    },
    /// The authorities cannot be used.
    #[error("certificate authorities cannot be used")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// The cryptography provider supports none of the TLS versions.
    #[error("TLS configuration failed")]
    Config(#[source] rustls::Error),
}

/// How the certificates of servers are checked: against these authorities. Those of a file are read again for each
/// handshake, so that a file that is replaced takes effect without a restart.
///
/// # Errors
/// [`RootsError`].
pub fn client_config(roots: &Roots) -> Result<Arc<rustls::ClientConfig>, RootsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(RootsError::Config)?;
    let config = match roots {
        Roots::SystemAndFile(path) => {
            let verifier = FileVerifier::new(path.clone(), provider)?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth()
        }
        Roots::System => builder
            .with_root_certificates(store(true, None)?)
            .with_no_client_auth(),
        Roots::SystemAnd(pem) => builder
            .with_root_certificates(store(true, Some(pem))?)
            .with_no_client_auth(),
        Roots::Only(pem) => builder
            .with_root_certificates(store(false, Some(pem))?)
            .with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The authorities of the system, of a PEM text, or both.
fn store(system: bool, custom: Option<&str>) -> Result<RootCertStore, RootsError> {
    let mut store = RootCertStore::empty();
    if system {
        let loaded = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(loaded.certs);
        if store.is_empty() && custom.is_none() {
            return Err(RootsError::NoSystemRoots);
        }
    }
    if let Some(pem) = custom {
        add_pem(&mut store, pem)?;
    }
    Ok(store)
}

/// The library's own verifier, made anew when the file of authorities has changed.
struct FileVerifier {
    path: PathBuf,
    provider: Arc<CryptoProvider>,
    held: Mutex<Held>,
}

struct Held {
    /// The file as it was read last, good or bad.
    text: String,
    verifier: Arc<WebPkiServerVerifier>,
}

impl FileVerifier {
    fn new(path: PathBuf, provider: Arc<CryptoProvider>) -> Result<Self, RootsError> {
        let text = read_text(&path)?;
        let verifier = verifier(&text, &provider).map_err(|source| RootsError::InFile {
            path: path.clone(),
            source: Box::new(source),
        })?;
        Ok(Self {
            path,
            provider,
            held: Mutex::new(Held { text, verifier }),
        })
    }

    /// The verifier of what the file says now, or of what it last said that could be used.
    fn current(&self) -> Arc<WebPkiServerVerifier> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // A file that cannot be read is being replaced, or will be.
        if let Ok(text) = read_text(&self.path)
            && text != held.text
        {
            let file = self.path.display();
            match verifier(&text, &self.provider) {
                Ok(verifier) => {
                    info!(%file, "certificate authorities have changed");
                    held.verifier = verifier;
                }
                Err(error) => {
                    warn!(%file, %error, "certificate authorities cannot be used; the last ones serve");
                }
            }
            held.text = text;
        }
        Arc::clone(&held.verifier)
    }
}

fn verifier(
    pem: &str,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, RootsError> {
    let roots = Arc::new(store(true, Some(pem))?);
    let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
    builder.build().map_err(RootsError::Verifier)
}

impl fmt::Debug for FileVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileVerifier({})", self.path.display())
    }
}

impl ServerCertVerifier for FileVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.current().verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn add_pem(store: &mut RootCertStore, pem: &str) -> Result<(), RootsError> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        count += 1;
        store
            .add(certificate.map_err(RootsError::NotPem)?)
            .map_err(|source| RootsError::NotUsable {
                index: count,
                source,
            })?;
    }
    if count == 0 {
        Err(RootsError::NoCertificate)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_roots_are_checked() {
        let only = |pem: &str| {
            client_config(&Roots::Only(pem.into()))
                .map(|_| ())
                .unwrap_err()
        };
        assert!(matches!(only(""), RootsError::NoCertificate));
        assert!(matches!(only("hello"), RootsError::NoCertificate));
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(only(bad), RootsError::NotUsable { index: 1, .. }));
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        assert!(client_config(&Roots::Only(made.cert.pem())).is_ok());
    }

    #[test]
    fn authorities_are_those_of_the_file_at_each_handshake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let made = || rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (old, new) = (made(), made());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        assert!(FileVerifier::new(path.clone(), Arc::clone(&provider)).is_err());
        std::fs::write(&path, old.cert.pem()).unwrap();
        let verifier = FileVerifier::new(path.clone(), provider).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let trusts = |of: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            let (certificate, now) = (of.cert.der(), UnixTime::now());
            verifier
                .verify_server_cert(certificate, &[], &name, &[], now)
                .is_ok()
        };
        assert!(trusts(&old) && !trusts(&new));
        for bad in ["", "hello"] {
            std::fs::write(&path, bad).unwrap();
            assert!(trusts(&old), "the last ones serve");
        }
        std::fs::write(&path, new.cert.pem()).unwrap();
        assert!(trusts(&new) && !trusts(&old));
        std::fs::remove_file(&path).unwrap();
        assert!(trusts(&new));
    }
}
