//! The HTTP client of the official crate, on the caller's.

use azure_core::http::{AsyncRawResponse, HttpClient, Request};
use reqwest::Client;
use url::Url;

/// An HTTP client, and another place for its requests.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    /// Scheme, host and port that replace those of each request.
    instead: Option<Url>,
}

impl Http {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            instead: None,
        }
    }

    pub(crate) fn with_instead(client: Client, instead: Option<Url>) -> Self {
        Self { client, instead }
    }

    fn place(&self, url: &Url) -> Option<Url> {
        let instead = self.instead.as_ref()?;
        let mut url = url.clone();
        url.set_scheme(instead.scheme()).ok()?;
        url.set_host(instead.host_str()).ok()?;
        url.set_port(instead.port()).ok()?;
        Some(url)
    }
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        match self.place(request.url()) {
            None => self.client.execute_request(request).await,
            Some(url) => {
                let mut request = request.clone();
                *request.url_mut() = url;
                self.client.execute_request(&request).await
            }
        }
    }
}
