//! The official crate's HTTP client trait, on top of the caller's HTTP client.

use azure_core::http::{AsyncRawResponse, HttpClient, Request};
use reqwest::Client;
use url::Url;

/// An HTTP client, with an optional replacement for the address of requests.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    /// Replaces scheme, host and port of each request.
    base_override: Option<Url>,
}

impl Http {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            base_override: None,
        }
    }

    pub(crate) fn with_base_override(client: Client, base_override: Option<Url>) -> Self {
        Self {
            client,
            base_override,
        }
    }

    fn rewrite(&self, url: &Url) -> Option<Url> {
        let base_override = self.base_override.as_ref()?;
        let mut url = url.clone();
        url.set_scheme(base_override.scheme()).ok()?;
        url.set_host(base_override.host_str()).ok()?;
        url.set_port(base_override.port()).ok()?;
        Some(url)
    }
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        match self.rewrite(request.url()) {
            None => self.client.execute_request(request).await,
            Some(url) => {
                let mut request = request.clone();
                *request.url_mut() = url;
                self.client.execute_request(&request).await
            }
        }
    }
}
