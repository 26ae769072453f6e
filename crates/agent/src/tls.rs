//! The TLS client: rustls on ring, the certificate authorities of system and configuration, the
//! device's certificate, and the agent's own clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use twincast_tls::{Roots, RootsError};

use crate::clock::Clock;

/// Errors of the TLS configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file does not contain certificates or a key in PEM.
    #[error("cannot read a PEM certificate or key from {}", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The error of the PEM parser.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate authorities cannot be loaded.
    #[error("cannot load the certificate authorities")]
    Roots(#[from] RootsError),
    /// The library rejects the configuration.
    #[error("cannot configure TLS")]
    Config(#[from] rustls::Error),
}

/// Returns the configuration of TLS connections. `certificate` has the files of the device's
/// certificate and key.
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
