//! The certificate authorities trusted by TLS connections: from the system, from a text, or from a
//! replaceable file.
//!
//! All configurations use rustls on ring, passed explicitly: no process-wide provider is needed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;
use tracing::{info, warn};
use twincast_secret::{FileError, read_text};

/// The certificate authorities trusted to sign a server's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Roots {
    /// The operating system's authorities.
    #[default]
    System,
    /// The operating system's authorities and the authorities in this PEM text.
    SystemAnd(String),
    /// The operating system's authorities and the authorities in this PEM file, which may be
    /// replaced at any time.
    SystemAndFile(PathBuf),
    /// Only the authorities in this PEM text.
    Only(String),
    /// Only the authorities in this PEM file, which may be replaced at any time.
    OnlyFile(PathBuf),
}

/// Why the certificate authorities could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The text is not PEM.
    #[error("certificate authorities are not PEM")]
    NotPem(#[source] rustls_pki_types::pem::Error),
    /// The text contains no certificate.
    #[error("no PEM certificate found")]
    NoCertificate,
    /// A certificate cannot be an authority.
    #[error("certificate {index} cannot be used as a certificate authority")]
    NotUsable {
        /// The certificate's position, counted from one.
        index: usize,
        /// The TLS library's error.
        source: rustls::Error,
    },
    /// The operating system has no loadable certificate authorities.
    #[error("system has no certificate authorities; install them, or configure custom ones")]
    NoSystemRoots,
    /// The file of authorities cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The content of the file of authorities cannot be used.
    #[error("cannot use certificate authorities in {}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// The error in the content.
        source: Box<RootsError>,
    },
    /// The authorities cannot be used.
    #[error("certificate authorities cannot be used")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// The cryptography provider supports none of the TLS versions.
    #[error("TLS configuration failed")]
    Config(#[source] rustls::Error),
}

/// Creates the TLS configuration of a client that trusts these authorities and presents no
/// certificate. Authorities in a file are read again for each handshake, so a replaced file takes
/// effect without a restart. While the file is unusable, the last usable authorities stay trusted.
///
/// # Errors
/// [`RootsError`].
///
/// # Example
/// ```
/// use twincast_tls::{Roots, RootsError, client_config, root_store};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("ca.pem");
/// let roots = Roots::OnlyFile(path.clone());
/// std::fs::write(&path, "not a certificate")?;
/// assert!(matches!(client_config(&roots), Err(RootsError::InFile { .. })));
///
/// let authority = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
/// std::fs::write(&path, authority.cert.pem())?;
/// let config = client_config(&roots)?;
/// assert!(!config.client_auth_cert_resolver.has_certs());
/// assert_eq!(root_store(&roots)?.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn client_config(roots: &Roots) -> Result<Arc<ClientConfig>, RootsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(RootsError::Config)?;
    let builder = match roots {
        Roots::SystemAndFile(path) | Roots::OnlyFile(path) => {
            let system = matches!(roots, Roots::SystemAndFile(_));
            let verifier = FileVerifier::new(path.clone(), system, provider)?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
        _ => builder.with_root_certificates(root_store(roots)?),
    };
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// Loads the current authorities.
///
/// # Errors
/// [`RootsError`].
pub fn root_store(roots: &Roots) -> Result<RootCertStore, RootsError> {
    match roots {
        Roots::System => store(true, None),
        Roots::SystemAnd(pem) => store(true, Some(pem)),
        Roots::SystemAndFile(path) => of_file(path, |pem| store(true, Some(pem))),
        Roots::Only(pem) => store(false, Some(pem)),
        Roots::OnlyFile(path) => of_file(path, |pem| store(false, Some(pem))),
    }
}

/// Reads the text of a PEM file of authorities, for libraries unable to take a [`RootCertStore`].
///
/// # Errors
/// [`RootsError`]: the file cannot be read, or a certificate in it cannot be used.
pub fn authorities_in(path: &Path) -> Result<String, RootsError> {
    of_file(path, |pem| store(false, Some(pem)).map(|_| pem.to_owned()))
}

fn of_file<T>(
    path: &Path,
    made: impl FnOnce(&str) -> Result<T, RootsError>,
) -> Result<T, RootsError> {
    made(&read_text(path)?).map_err(|source| RootsError::InFile {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Loads the authorities of the system, of a PEM text, or both.
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

/// The library's own verifier, rebuilt after each change of the authorities' file.
struct FileVerifier {
    path: PathBuf,
    /// Whether the system's authorities are trusted as well.
    system: bool,
    provider: Arc<CryptoProvider>,
    held: Mutex<Held>,
}

struct Held {
    /// The last text of the file, usable or not.
    text: String,
    verifier: Arc<WebPkiServerVerifier>,
}

impl FileVerifier {
    fn new(path: PathBuf, system: bool, provider: Arc<CryptoProvider>) -> Result<Self, RootsError> {
        let held = of_file(&path, |pem| {
            let verifier = verifier(pem, system, &provider)?;
            let text = pem.to_owned();
            Ok(Held { text, verifier })
        })?;
        Ok(Self {
            path,
            system,
            provider,
            held: Mutex::new(held),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verifier of the handshake's first step, reused in the later steps.
    fn last(&self) -> Arc<WebPkiServerVerifier> {
        Arc::clone(&self.held().verifier)
    }

    /// Returns the verifier for the file's current content, or the last usable verifier.
    fn current(&self) -> Arc<WebPkiServerVerifier> {
        let mut held = self.held();
        // An unreadable file is being replaced, or will be.
        if let Ok(text) = read_text(&self.path)
            && text != held.text
        {
            let file = self.path.display();
            match verifier(&text, self.system, &self.provider) {
                Ok(verifier) => {
                    info!(%file, "certificate authorities have changed");
                    held.verifier = verifier;
                }
                Err(error) => {
                    warn!(%file, error = &error as &dyn std::error::Error, "cannot use the changed certificate authorities; the previous ones stay in use");
                }
            }
            held.text = text;
        }
        Arc::clone(&held.verifier)
    }
}

fn verifier(
    pem: &str,
    system: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, RootsError> {
    let roots = Arc::new(store(system, Some(pem))?);
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
        self.last()
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.last()
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.last().supported_verify_schemes()
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
        let good = made.cert.pem();
        assert!(client_config(&Roots::Only(good.clone())).is_ok());

        let file = tempfile::NamedTempFile::new().unwrap();
        let roots = || Roots::OnlyFile(file.path().to_owned());
        for text in ["", "hello", bad] {
            std::fs::write(&file, text).unwrap();
            let refusals = [
                client_config(&roots()).map(drop),
                root_store(&roots()).map(drop),
                authorities_in(file.path()).map(drop),
            ];
            for refusal in refusals {
                let refusal = refusal.unwrap_err();
                assert!(
                    matches!(refusal, RootsError::InFile { .. }),
                    "{text:?}: {refusal:?}"
                );
            }
        }
        std::fs::write(&file, &good).unwrap();
        assert!(client_config(&roots()).is_ok());
        assert_eq!(root_store(&roots()).unwrap().len(), 1);
        assert_eq!(authorities_in(file.path()).unwrap(), good);
    }

    #[test]
    fn authorities_are_reread_at_each_handshake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let made = || rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (old, new) = (made(), made());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        assert!(FileVerifier::new(path.clone(), false, Arc::clone(&provider)).is_err());
        std::fs::write(&path, old.cert.pem()).unwrap();
        let verifier = FileVerifier::new(path.clone(), false, provider).unwrap();
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
            assert!(trusts(&old), "the previous authorities stay in use");
        }
        std::fs::write(&path, new.cert.pem()).unwrap();
        assert!(trusts(&new) && !trusts(&old));
        std::fs::remove_file(&path).unwrap();
        assert!(trusts(&new));
    }
}
