//! The certificate of a server, reloaded from files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use twincast_core::error::describe;

use crate::textfile;

/// The interval of reading the files. The whole content is compared: a mounted secret changes by a
/// link to another folder, so the files' times reveal no change.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// A certificate and a key, from files subject to change.
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    held: RwLock<Held>,
}

struct Held {
    files: Files,
    config: Arc<ServerConfig>,
}

/// The content of the files.
#[derive(PartialEq)]
struct Files {
    certificate: String,
    key: String,
}

/// The error of unusable files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] anyhow::Error),
    /// There is no certificate.
    #[error("{} has no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    /// There is no key.
    #[error("{} has no private key in PEM", path.display())]
    NoKey { path: PathBuf },
    /// Certificate and key do not match, or are of an unsupported kind.
    #[error("the certificate and the key cannot be used together")]
    Pair(#[source] rustls::Error),
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        // The TLS library needs a provider for the whole process; a provider may be installed
        // already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let files = read(&certificate, &key)?;
        let config = config(&files, &certificate, &key)?;
        Ok(Self {
            certificate,
            key,
            held: RwLock::new(Held { files, config }),
        })
    }

    /// Returns the acceptor of new connections.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&held.config))
    }

    /// Reloads the files periodically, until dropped. While the files are bad, the last good files
    /// stay in use: a file may be written before the other.
    pub(crate) async fn follow(&self) {
        let mut reported = None;
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let file = self.certificate.display();
            match self.renew() {
                Ok(false) => reported = None,
                Ok(true) => {
                    reported = None;
                    tracing::info!(%file, "the certificate of the API has changed");
                }
                Err(error) => {
                    let error = describe(&error);
                    if reported.as_ref() != Some(&error) {
                        tracing::error!(%file, error, "cannot use the new certificate of the API, keeping the previous certificate");
                        reported = Some(error);
                    }
                }
            }
        }
    }

    /// Reloads the files; returns true if the content is new.
    fn renew(&self) -> Result<bool, TlsError> {
        let files = read(&self.certificate, &self.key)?;
        let is_known = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            held.files == files
        };
        if is_known {
            return Ok(false);
        }
        let config = config(&files, &self.certificate, &self.key)?;
        let held = Held { files, config };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(true)
    }
}

/// Reads both files. Blocking is acceptable: the files are small, and a mounted secret is in
/// memory.
fn read(certificate: &Path, key: &Path) -> anyhow::Result<Files> {
    Ok(Files {
        certificate: textfile::read("the certificate", certificate)?,
        key: textfile::read("the key", key)?,
    })
}

fn config(files: &Files, certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(files.certificate.as_bytes()).collect();
    let chain = chain.unwrap_or_default();
    if chain.is_empty() {
        let path = certificate.to_owned();
        return Err(TlsError::NoCertificate { path });
    }
    let private = PrivateKeyDer::from_pem_slice(files.key.as_bytes());
    let private = private.map_err(|_| TlsError::NoKey {
        path: key.to_owned(),
    })?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_new_certificate_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let new = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (old, new) = (new(), new());
        write("crt", &old.cert.pem());
        write("key", &old.signing_key.serialize_pem());
        let tls = Tls::open(path("crt"), path("key")).unwrap();
        let held = || tls.held.read().unwrap().files.certificate.clone();
        assert!(!tls.renew().unwrap(), "the certificate is unchanged");
        write("crt", &new.cert.pem());
        let error = tls.renew().unwrap_err();
        assert!(matches!(error, TlsError::Pair(_)), "{error}");
        write("key", "");
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("has no private key"), "{error}");
        assert_eq!(held(), old.cert.pem());
        write("key", &new.signing_key.serialize_pem());
        assert!(tls.renew().unwrap());
        assert_eq!(held(), new.cert.pem());
        write("crt", "no certificate");
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("has no certificate"), "{error}");
        std::fs::write(path("crt"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("is larger than"), "{error}");
        std::fs::remove_file(path("crt")).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("cannot read"), "{error}");
    }
}
