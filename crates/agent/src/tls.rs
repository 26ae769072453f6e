//! TLS as a client: rustls on ring, the system's authorities and those of the configuration, the device's certificate, and
//! the agent's own clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use twincast_tls::{Roots, RootsError};

use crate::clock::Clock;

/// Why TLS cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file with certificates or a key is not what it should be.
    #[error("cannot use {} as PEM of a certificate or a key", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate authorities cannot be loaded.
    #[error("no certificate authorities")]
    Roots(#[from] RootsError),
    /// The library refuses it.
    #[error("cannot configure TLS")]
    Config(#[from] rustls::Error),
}

/// What connections are made with. `certificate` is the device's, with its key.
pub(crate) fn client(
    ca_file: Option<&Path>,
    certificate: Option<(&Path, &Path)>,
    clock: &Clock,
) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let roots = ca_file.map(Path::to_owned);
    let roots = twincast_tls::root_store(&roots.map_or(Roots::System, Roots::SystemAndFile))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let pem = |source| TlsError::Pem {
                path: key.to_owned(),
                source,
            };
            builder.with_client_auth_cert(
                certificates(certificate)?,
                PrivateKeyDer::from_pem_file(key).map_err(pem)?,
            )?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem {
        path: path.to_owned(),
        source,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(pem)?
        .collect::<Result<_, _>>()
        .map_err(pem)?;
    if found.is_empty() {
        Err(pem(rustls::pki_types::pem::Error::NoItemsFound))
    } else {
        Ok(found)
    }
}
