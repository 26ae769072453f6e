//! The metrics port on the HTTP API of a Prometheus server, or of anything that speaks it (Thanos, Mimir,
//! VictoriaMetrics, Azure Monitor managed service for Prometheus).
//!
//! One question is one `POST /api/v1/query`, bounded in time and size. Nothing is tried again: whoever asks does so
//! again anyway.

mod answer;

use async_trait::async_trait;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, Url};
use twincast_core::ports::{MetricSource, MetricSourceError};
use url::form_urlencoded;

use crate::answer::Unusable;

/// The largest answer that is read: samples of a few thousand series. A gate needs one, or a few.
const LARGEST_ANSWER: usize = 1024 * 1024;

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// What each request shows, as it is now.
type Shown = Box<dyn Fn() -> Result<HeaderMap, BoxError> + Send + Sync>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A Prometheus server.
pub struct Prometheus {
    http: Client,
    query: Url,
    headers: Shown,
    /// The address as it is shown.
    shown: String,
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prometheus({})", self.shown)
    }
}

impl Prometheus {
    /// The server at `url`, which is without `/api/v1`, and without a user: it is shown. `http` bounds how long an answer
    /// is waited for. `headers` are those of a request, and are asked for each. Nothing is dialled yet.
    #[must_use]
    pub fn new(
        http: Client,
        url: Url,
        headers: impl Fn() -> Result<HeaderMap, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let mut shown = url.clone();
        shown.set_path("");
        let shown = shown.as_str().trim_end_matches('/');
        let shown = format!("the Prometheus server at {shown}");
        let mut query = url;
        let path = format!("{}/api/v1/query", query.path().trim_end_matches('/'));
        query.set_path(&path);
        Self {
            http,
            query,
            headers: Box::new(headers),
            shown,
        }
    }

    async fn samples(&self, query: &str) -> Result<Vec<f64>, Unusable> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", query)
            .finish();
        let headers = (self.headers)().map_err(Unusable::Headers)?;
        let response = self
            .http
            .post(self.query.clone())
            .headers(headers)
            .header(CONTENT_TYPE, FORM)
            .body(form)
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
