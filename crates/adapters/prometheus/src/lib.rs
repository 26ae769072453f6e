//! The metrics port on the HTTP API of a Prometheus server, or of any compatible server (Thanos,
//! Mimir, VictoriaMetrics, Azure Monitor managed service for Prometheus).
//!
//! A query is one `POST /api/v1/query`, bounded in time and size. Failed queries are not retried:
//! the caller asks again anyway.

mod answer;

use async_trait::async_trait;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, Url};
use twincast_core::ports::{MetricSource, MetricSourceError};
use url::form_urlencoded;

use crate::answer::QueryError;

/// The largest response read: samples of a few thousand series. A gate needs only one or a few.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// Returns the current headers of a request.
type HeaderSource = Box<dyn Fn() -> Result<HeaderMap, BoxError> + Send + Sync>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A Prometheus server.
pub struct Prometheus {
    http: Client,
    query: Url,
    headers: HeaderSource,
    /// The address as displayed.
    display_address: String,
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prometheus({})", self.display_address)
    }
}

impl Prometheus {
    /// Creates the port of the server at `url`, a URL without `/api/v1` and without a user, because
    /// the address is displayed. The time-out of `http` bounds the wait for a response. `headers`
    /// is called for each request. No connection is opened yet.
    #[must_use]
    pub fn new(
        http: Client,
        url: Url,
        headers: impl Fn() -> Result<HeaderMap, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let mut display_address = url.clone();
        display_address.set_path("");
        let display_address = display_address.as_str().trim_end_matches('/');
        let display_address = format!("the Prometheus server at {display_address}");
        let mut query = url;
        let path = format!("{}/api/v1/query", query.path().trim_end_matches('/'));
        query.set_path(&path);
        Self {
            http,
            query,
            headers: Box::new(headers),
            display_address,
        }
    }

    async fn samples(&self, query: &str) -> Result<Vec<f64>, QueryError> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", query)
            .finish();
        let headers = (self.headers)().map_err(QueryError::Headers)?;
        let response = self
            .http
            .post(self.query.clone())
            .headers(headers)
            .header(CONTENT_TYPE, FORM)
            .body(form)
            .send()
            .await
            .map_err(|error| QueryError::Transit(error.without_url()))?;
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
            server: self.display_address.clone(),
            source: error.into(),
        })
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, QueryError> {
    let mut body = Vec::new();
    let transit = |error: reqwest::Error| QueryError::Transit(error.without_url());
    while let Some(chunk) = response.chunk().await.map_err(transit)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(QueryError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
