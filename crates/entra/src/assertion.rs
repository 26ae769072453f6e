//! Client assertions: a token from a file, or a token signed with a certificate's key.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use azure_core::error::ErrorKind;
use azure_core::http::ClientMethodOptions;
use azure_identity::ClientAssertion;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PSS_SHA256, RsaKeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use twincast_secret::{FileError, Secret, read_text};

/// The lifetime of an assertion. Entra accepts up to 10 minutes, counted from `nbf`.
const LIFETIME: Duration = Duration::from_secs(9 * 60);

/// A token in a file, read for each request, because the kubelet replaces the file.
#[derive(Debug)]
pub(crate) struct FileAssertion {
    pub(crate) path: PathBuf,
}

/// A token signed by this process, with a certificate and its key from a PEM file, read for each
/// request.
///
/// The form follows Entra's documentation ("Microsoft identity platform application authentication
/// certificate credentials"): PS256, and the SHA-256 of the certificate as `x5t#S256`.
#[derive(Debug)]
pub(crate) struct CertificateAssertion {
    pub(crate) path: PathBuf,
    pub(crate) client_id: String,
    /// The address of the token endpoint.
    pub(crate) audience: String,
}

#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} has no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} has no private key in PEM", path.display())]
    NoKey { path: PathBuf },
    #[error("the key in {} is not an RSA key of 2048 bits or more, as required by Entra", path.display())]
    NotRsa { path: PathBuf },
}

#[async_trait::async_trait]
impl ClientAssertion for FileAssertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let text = read_text(&self.path).map_err(local)?;
        Ok(text.trim().to_owned())
    }
}

#[async_trait::async_trait]
impl ClientAssertion for CertificateAssertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        self.sign(SystemTime::now()).map_err(local)
    }
}

impl CertificateAssertion {
    fn sign(&self, now: SystemTime) -> Result<String, CertificateError> {
        let path = || self.path.clone();
        let pem = Secret::new(read_text(&self.path)?);
        let pem = pem.expose().as_bytes();
        let certificate = CertificateDer::from_pem_slice(pem)
            .map_err(|_| CertificateError::NoCertificate { path: path() })?;
        let key = PrivateKeyDer::from_pem_slice(pem)
            .map_err(|_| CertificateError::NoKey { path: path() })?;
        let key = match &key {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(CertificateError::NotRsa { path: path() }),
        };
        let key = key.map_err(|_| CertificateError::NotRsa { path: path() })?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = json!({
            "alg": "PS256",
            "typ": "JWT",
            "x5t#S256": encode(&Sha256::digest(&certificate)),
        });
        let claims = json!({
            "aud": self.audience,
            "iss": self.client_id,
            "sub": self.client_id,
            "jti": uuid::Uuid::new_v4().to_string(),
            "nbf": now.as_secs(),
            "iat": now.as_secs(),
            "exp": (now + LIFETIME).as_secs(),
        });
        let signed = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(
            &RSA_PSS_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut signature,
        )
        .map_err(|_| CertificateError::NotRsa { path: path() })?;
        Ok(format!("{signed}.{}", encode(&signature)))
    }
}

/// Wraps a local failure; a change of the file may end the failure.
fn local(error: impl std::error::Error + Send + Sync + 'static) -> azure_core::Error {
    azure_core::Error::new(ErrorKind::Io, error)
}
