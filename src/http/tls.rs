//! The certificate of a server, as its files say now.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use twincast_core::error::in_words;

use crate::textfile;

/// How often the files are looked at. The whole of them: a mounted secret changes by a link to another folder, and the
/// times of its files say nothing.
const EVERY: Duration = Duration::from_secs(5);

/// A certificate with its key, from files that may change.
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    held: RwLock<Held>,
}

struct Held {
    files: Files,
    config: Arc<ServerConfig>,
}

/// What the files say.
#[derive(PartialEq)]
struct Files {
    certificate: String,
    key: String,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// One cannot be read.
    #[error(transparent)]
    Read(#[from] anyhow::Error),
    /// There is no certificate.
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    /// There is no key.
    #[error("{} holds no private key in PEM", path.display())]
    NoKey { path: PathBuf },
    /// They do not belong together, or are of a kind that nobody uses.
    #[error("the certificate and the key cannot be used together")]
    Pair(#[source] rustls::Error),
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        // The library asks for one that the whole process uses; there may be one already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let files = read(&certificate, &key)?;
        let config = config(&files, &certificate, &key)?;
        Ok(Self {
            certificate,
            key,
            held: RwLock::new(Held { files, config }),
        })
    }

    /// What encrypts a new connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&held.config))
    }

    /// Reads the files again and again, until dropped. If they are bad, what was good goes on: one may be written
    /// before the other.
    pub(crate) async fn follow(&self) {
        let mut told = None;
        loop {
            tokio::time::sleep(EVERY).await;
            let file = self.certificate.display();
            match self.renew() {
                Ok(false) => told = None,
                Ok(true) => {
                    told = None;
                    tracing::info!(%file, "the certificate of the API has changed");
                }
                Err(error) => {
                    let error = in_words(&error);
                    if told.as_ref() != Some(&error) {
                        tracing::error!(%file, error, "the certificate of the API cannot be used; it stays as it was");
                        told = Some(error);
                    }
                }
            }
        }
    }

    /// Whether the files say something new.
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

/// They are small, and read at once; a mounted secret is in memory.
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
    fn a_new_certificate_is_taken_and_half_of_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        let new = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (old, new) = (new(), new());
        write("crt", &old.cert.pem());
        write("key", &old.signing_key.serialize_pem());
        let tls = Tls::open(path("crt"), path("key")).unwrap();
        let held = || tls.held.read().unwrap().files.certificate.clone();
        assert!(!tls.renew().unwrap(), "nothing is new");
        write("crt", &new.cert.pem());
        let error = tls.renew().unwrap_err();
        assert!(matches!(error, TlsError::Pair(_)), "{error}");
        write("key", "");
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("holds no private key"), "{error}");
        assert_eq!(held(), old.cert.pem());
        write("key", &new.signing_key.serialize_pem());
        assert!(tls.renew().unwrap());
        assert_eq!(held(), new.cert.pem());
        write("crt", "no certificate");
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
        std::fs::write(path("crt"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("is larger than"), "{error}");
        std::fs::remove_file(path("crt")).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("cannot read"), "{error}");
    }
}
