//! Requests to the collector.

use std::fmt;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

use crate::Headers;

/// An HTTP client that adds the current headers to each request.
pub(crate) struct HeaderClient {
    pub(crate) http: reqwest::Client,
    pub(crate) headers: Headers,
}

impl fmt::Debug for HeaderClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderClient").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for HeaderClient {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // Replaces headers of the same name, read by the exporter from the environment.
        request.headers_mut().extend((self.headers)()?);
        self.http.send_bytes(request).await
    }
}
