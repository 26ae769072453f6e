//! Requests to the collector.

use std::fmt;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

use crate::Headers;

/// A client that adds the current headers to each request.
pub(crate) struct Shown {
    pub(crate) http: reqwest::Client,
    pub(crate) headers: Headers,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Shown {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // Replaces headers of the same name that the exporter reads from the environment.
        request.headers_mut().extend((self.headers)()?);
        self.http.send_bytes(request).await
    }
}
