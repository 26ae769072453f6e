//! The metrics port on the HTTP API of a Prometheus server, or of anything that speaks it (Thanos, Mimir,
//! VictoriaMetrics, Azure Monitor managed service for Prometheus).
//!
//! One question is one `POST /api/v1/query`, bounded in time and size. Nothing is tried again: whoever asks does so
//! again anyway. The token is read anew from its file for each question, since such files are rotated.

mod answer;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use twincast_core::ports::{MetricSource, MetricSourceError};
use twincast_core::text;
use url::form_urlencoded;

use crate::answer::Unusable;

/// The largest answer that is read: samples of a few thousand series. A gate needs one, or a few.
const LARGEST_ANSWER: usize = 1024 * 1024;

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// Where the token is.
#[derive(Clone)]
pub enum Token {
    /// Here.
    Text(String),
    /// In a file.
    File(PathBuf),
}

/// Which server is asked, and how.
#[derive(Clone)]
pub struct PrometheusConfig {
    /// Its address, up to and not including `/api/v1`.
    pub url: String,
    /// The bearer token, if it wants one.
    pub token: Option<Token>,
    /// A file with certificates of authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long an answer is waited for.
    pub timeout: Duration,
}

/// Why a server cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address is none.
    #[error(
        "{found:?} is not the address of a Prometheus server; write for example \"http://prometheus:9090\""
    )]
    Url {
        /// What was given.
        found: String,
    },
    /// The address has a user or password in it, which would be shown with it.
    #[error(
        "the address of a Prometheus server must have no user and password in it; give a token"
    )]
    UserInUrl,
    /// The certificates cannot be read.
    #[error("cannot read the certificates in {path}")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The client cannot be made.
    #[error("cannot set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A Prometheus server.
pub struct Prometheus {
    http: Client,
    query: Url,
    token: Option<Token>,
    /// The address as it is shown.
    shown: String,
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prometheus({})", self.shown)
    }
}

impl Prometheus {
    /// A client of a server. Nothing is dialled yet.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: &PrometheusConfig) -> Result<Self, ConfigError> {
        let query = query_url(&config.url)?;
        let mut shown = query.clone();
        shown.set_path("");
        let http = Client::builder()
            .tls_backend_preconfigured(tls(config.ca_file.as_deref())?)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("twincast/", env!("CARGO_PKG_VERSION")))
            .timeout(config.timeout)
            .build()
            .map_err(|error| ConfigError::Tls(error.into()))?;
        Ok(Self {
            http,
            query,
            token: config.token.clone(),
            shown: format!(
                "the Prometheus server at {}",
                shown.as_str().trim_end_matches('/')
            ),
        })
    }

    async fn samples(&self, query: &str) -> Result<Vec<f64>, Unusable> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", query)
            .finish();
        let mut request = self
            .http
            .post(self.query.clone())
            .header(CONTENT_TYPE, FORM)
            .body(form);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, bearer(token)?);
        }
        let response = request
            .send()
            .await
            .map_err(|error| Unusable::Transit(error.without_url()))?;
        let status = response.status();
        let body = read(response).await?;
        answer::samples(status.as_u16(), &body)
    }
}

#[async_trait]
impl MetricSource for Prometheus {
    async fn ask(&self, query: &str) -> Result<Vec<f64>, MetricSourceError> {
        let answered = self.samples(query).await;
        answered.map_err(|error| MetricSourceError {
            server: self.shown.clone(),
            source: error.into(),
        })
    }
}

fn query_url(text: &str) -> Result<Url, ConfigError> {
    let invalid = || ConfigError::Url {
        found: text.chars().take(200).collect(),
    };
    let mut url = Url::parse(text.trim()).map_err(|_| invalid())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConfigError::UserInUrl);
    }
    let is_plain = url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !is_plain {
        return Err(invalid());
    }
    let path = format!("{}/api/v1/query", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

fn tls(ca_file: Option<&std::path::Path>) -> Result<rustls::ClientConfig, ConfigError> {
    let mut roots = rustls::RootCertStore::empty();
    // Some may be unreadable on a system; what is missing shows when the server's is not trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let error = |source: Box<dyn std::error::Error + Send + Sync>| ConfigError::Certificates {
            path: path.to_owned(),
            source,
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| error(e.into()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| error(e.into()))?;
            roots.add(certificate).map_err(|e| error(e.into()))?;
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls(error.into()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn bearer(token: &Token) -> Result<HeaderValue, Unusable> {
    let text = match token {
        Token::Text(text) => text.clone(),
        Token::File(path) => {
            let unusable = |source: Box<dyn std::error::Error + Send + Sync>| Unusable::TokenFile {
                path: path.clone(),
                source,
            };
            let bytes = std::fs::read(path).map_err(|error| unusable(error.into()))?;
            let text = text::of_file(&bytes).map_err(|error| unusable(error.into()))?;
            text.to_owned()
        }
    };
    let mut value =
        HeaderValue::try_from(format!("Bearer {}", text.trim())).map_err(|_| Unusable::Token)?;
    // Keeps it out of every Debug output of the HTTP libraries.
    value.set_sensitive(true);
    Ok(value)
}

async fn read(mut response: Response) -> Result<Vec<u8>, Unusable> {
    let mut body = Vec::new();
    let transit = |error: reqwest::Error| Unusable::Transit(error.without_url());
    while let Some(chunk) = response.chunk().await.map_err(transit)? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Unusable::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
