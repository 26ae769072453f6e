//! One request to the hub: address, token, time-outs, retries, and error classification.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use reqwest::{Method, Response};
use thiserror::Error;
use tokio::time::timeout;
use tracing::debug;

use crate::client::{ClientInner, Target};
use crate::connect_error::{ConnectError, causes};
use crate::credentials::Permission;
use crate::options::ClientOptions;

use super::error::{ApiError, RestError};
use super::retry::{Retries, RetryNotice, RetryReason, retry_after};

/// The interface version requested by all official SDKs.
const API_VERSION: &str = "2021-04-12";

/// The largest response body read into memory. A page has at most 100 twins of at most ~100 KB;
/// this is several times as much.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The HTTP part of a client.
pub(crate) struct Http {
    http: reqwest::Client,
    host: String,
    base: String,
    target: Target,
}

/// The description of a request, repeatable for retries.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    /// Starts with `/`; already encoded.
    pub(crate) path: &'a str,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    /// The permission needed for the request.
    pub(crate) permission: Permission,
}

/// The hub's `2xx` response.
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Marks failures of name resolution inside the HTTP library's error chain.
#[derive(Debug, Error)]
#[error("failed to resolve {host}")]
struct ResolveError {
    host: String,
    source: io::Error,
}

/// Resolves the hub's name to the configured address, which may differ; resolves a proxy's name as
/// usual.
struct Resolver {
    host: String,
    target: Target,
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let target = if name.as_str().eq_ignore_ascii_case(&self.host) {
            self.target.clone()
        } else {
            Target {
                host: name.as_str().to_owned(),
                // The library replaces the port by the URL's port.
                port: 0,
            }
        };
        Box::pin(async move {
            let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
            let addresses: Vec<SocketAddr> = found
                .map_err(|source| ResolveError {
                    host: target.host.clone(),
                    source,
                })?
                .collect();
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

impl Http {
    pub(crate) fn new(
        host: &str,
        target: Target,
        tls: &Arc<rustls::ClientConfig>,
        options: &ClientOptions,
    ) -> Result<Self, reqwest::Error> {
        let mut headers = HeaderMap::new();
        if let Ok(agent) = HeaderValue::try_from(options.agent()) {
            headers.insert(USER_AGENT, agent);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(rustls::ClientConfig::clone(tls))
            .dns_resolver(Arc::new(Resolver {
                host: host.to_owned(),
                target: target.clone(),
            }))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(options.connect_timeout)
            .timeout(options.request_timeout);
        let http = options.proxy.apply(http)?.build()?;
        let base = match target.port {
            443 => format!("https://{host}"),
            port => format!("https://{host}:{port}"),
        };
        Ok(Self {
            http,
            host: host.to_owned(),
            base,
            target,
        })
    }

    /// The address dialled for HTTPS.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends to a scripted server without TLS.
    #[cfg(test)]
    pub(crate) fn plain_for_tests(&mut self, base: String) {
        self.base = base;
    }

    async fn send_once(
        &self,
        client: &ClientInner,
        request: &Request<'_>,
    ) -> Result<Answer, RestError> {
        let join = if request.path.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}{}{join}api-version={API_VERSION}",
            self.base, request.path
        );
        let token = client
            .credentials
            .token()
            .await
            .map_err(RestError::NoToken)?;
        let mut token =
            HeaderValue::try_from(token.text.expose()).map_err(|_| RestError::TokenNotAscii)?;
        // Keeps the token out of the HTTP libraries' `Debug` output.
        token.set_sensitive(true);
        let mut builder = self
            .http
            .request(request.method.clone(), url)
            .headers(request.headers.clone())
            .header(AUTHORIZATION, token);
        if let Some(body) = &request.body {
            builder = builder
                .header(
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/json; charset=utf-8"),
                )
                .body(body.clone());
        }
        let requested_at = SystemTime::now();
        let response = match builder.send().await {
            Ok(response) => response,
            Err(error) => return Err(self.classify_error(error, client).await),
        };
        client.record_time(requested_at, response.headers());
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_body(response).await?;
        if status.is_success() {
            return Ok(Answer { headers, body });
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let now = client.clock.hub_time(SystemTime::now());
        let after = text(RETRY_AFTER.as_str()).and_then(|value| retry_after(value, now));
        let body = String::from_utf8_lossy(&body);
        let mut error = ApiError::read(status.as_u16(), text("iothub-errorcode"), &body, after);
        if error.is_unauthorised() {
            let missing = client.credentials.missing_permission(request.permission);
            error.message = format!("{}; {missing}", error.message);
        }
        Err(RestError::Api(error))
    }

    /// Requests the hub's time: any response will do, because only the `Date` header matters. The
    /// request carries no token, because a token is subject to the hub's clock check, and its path
    /// counts against no quota.
    async fn request_time(&self) -> Result<HeaderMap, reqwest::Error> {
        let url = format!("{}/?api-version={API_VERSION}", self.base);
        Ok(self.http.get(url).send().await?.headers().clone())
    }

    /// Converts the HTTP library's error into an actionable one. The library hides the proxy's
    /// response, so this method dials the proxy once more.
    async fn classify_error(&self, error: reqwest::Error, client: &ClientInner) -> RestError {
        let options = &client.options;
        let port = self.target.port;
        let is_on_the_way = error.is_connect() || error.is_request();
        if is_on_the_way && options.proxy.is_for(&self.host, port) {
            let attempt = twincast_tunnel::connect(&self.host, port, &options.proxy);
            if let Ok(Err(refused)) = timeout(options.connect_timeout, attempt).await {
                return RestError::Connect(ConnectError::from_dial(refused));
            }
        }
        self.classify_without_proxy(error, client)
    }

    /// Classifies an error without a proxy, or from beyond the proxy.
    fn classify_without_proxy(&self, error: reqwest::Error, client: &ClientInner) -> RestError {
        let error = error.without_url();
        if !error.is_connect() {
            return RestError::Transit(error);
        }
        if error.is_timeout() {
            let limit = client.options.connect_timeout;
            return RestError::Connect(ConnectError::Timeout {
                stage: "connecting",
                limit,
            });
        }
        let mut tcp = None;
        for cause in causes(&error) {
            if let Some(found) = cause.downcast_ref::<ResolveError>() {
                let source = io::Error::new(found.source.kind(), found.source.to_string());
                let (host, source) = (found.host.clone(), Arc::new(source));
                return RestError::Connect(ConnectError::Dns { host, source });
            }
            if let Some(found) = cause.downcast_ref::<rustls::Error>() {
                let source = io::Error::other(found.clone());
                return RestError::Connect(ConnectError::from_tls(self.host.clone(), source));
            }
            if let Some(found) = cause.downcast_ref::<io::Error>() {
                tcp = Some(io::Error::new(found.kind(), found.to_string()));
            }
        }
        if let Some(source) = tcp {
            return RestError::Connect(ConnectError::from_tcp(self.target.to_string(), source));
        }
        RestError::Transit(error)
    }
}

/// Interval of the check whether a time request is due; short, to react soon after this machine's
/// clock was set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Time limit of a time request.
const CLOCK_QUERY_TIMEOUT: Duration = Duration::from_secs(3);

impl ClientInner {
    /// Requests the hub's time, unless known for less than a few minutes. After a failed request,
    /// the next request follows after half a minute.
    ///
    /// Cancel safety: a dropped call leaves the time unknown.
    pub(crate) async fn refresh_clock(&self) {
        if !self.clock.begin_query_if_due() {
            return;
        }
        let requested_at = SystemTime::now();
        match timeout(CLOCK_QUERY_TIMEOUT, self.http.request_time()).await {
            Ok(Ok(headers)) => self.record_time(requested_at, &headers),
            Ok(Err(error)) => {
                let error = error.without_url();
                debug!(hub = %self.host_name, %error, "failed to get the hub's time");
            }
            Err(_) => debug!(hub = %self.host_name, "request for the hub's time timed out"),
        }
    }

    /// Calls [`refresh_clock`](Self::refresh_clock) periodically, for ever.
    pub(crate) async fn refresh_clock_forever(&self) -> Infallible {
        loop {
            tokio::time::sleep(CLOCK_CHECK_INTERVAL).await;
            self.refresh_clock().await;
        }
    }

    fn record_time(&self, requested_at: SystemTime, headers: &HeaderMap) {
        if let Some(date) = headers.get(DATE).and_then(|date| date.to_str().ok()) {
            self.clock.observe(&self.host_name, requested_at, date);
        }
    }

    /// Sends `request`, with retries as the policies allow. All requests of this crate are safe to
    /// repeat.
    pub(crate) async fn request(&self, request: &Request<'_>) -> Result<Answer, RestError> {
        let mut retries = Retries::new(&self.options);
        loop {
            let error = match self.http.send_once(self, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let attempt = retries.attempts();
            let Some((reason, wait)) = retries.decide(&error) else {
                return Err(error);
            };
            if reason == RetryReason::TokenRefused {
                self.credentials.refused();
            }
            debug!(?reason, ?wait, attempt, %error, "hub request will be retried");
            if let Some(hook) = &self.options.on_retry {
                hook.call(&RetryNotice {
                    reason,
                    wait,
                    attempt,
                    error: &error,
                });
            }
            tokio::time::sleep(wait).await;
        }
    }
}

async fn read_body(mut response: Response) -> Result<Bytes, RestError> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| RestError::Transit(error.without_url()))?
    {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(RestError::TooLarge {
                limit: MAX_ANSWER_BYTES,
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
