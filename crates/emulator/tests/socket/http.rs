//! A small client of the REST interface for the tests.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use twincast_emulator::RunningHub;

use crate::client::{FAR_FUTURE_S, token};

/// The REST interface, with the permissions of a policy.
pub(crate) struct Rest<'a> {
    pub(crate) hub: &'a RunningHub,
    pub(crate) http: reqwest::Client,
    pub(crate) policy: &'a str,
}

impl<'a> Rest<'a> {
    pub(crate) fn new(hub: &'a RunningHub) -> Self {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let ca = reqwest::Certificate::from_pem(hub.ca_pem().as_bytes()).unwrap();
        let http = reqwest::Client::builder()
            .add_root_certificate(ca)
            .build()
            .unwrap();
        Self {
            hub,
            http,
            policy: "iothubowner",
        }
    }

    /// Returns a request with the API version of current SDKs.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.raw(method, &format!("{path}?api-version=2021-04-12"))
    }

    /// Returns a request with unmodified path and query.
    pub(crate) fn raw(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let port = self.hub.https_addr().port();
        self.http
            .request(method, format!("https://localhost:{port}{path}"))
            .header("Authorization", token(self.hub, self.policy, FAR_FUTURE_S))
    }

    /// Returns the document at `path`.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    /// Sends a device's identity: a new identity, or with an ETag an update.
    pub(crate) async fn put_device(&self, device: &Value, etag: Option<&str>) -> Response {
        let id = device["deviceId"].as_str().unwrap();
        let mut request = self
            .request(Method::PUT, &format!("/devices/{id}"))
            .json(device);
        if let Some(etag) = etag {
            request = request.header("If-Match", etag);
        }
        request.send().await.unwrap()
    }

    pub(crate) async fn query(
        &self,
        query: &str,
        page: Option<i64>,
        continuation: Option<&str>,
    ) -> Response {
        let mut request = self
            .request(Method::POST, "/devices/query")
            .json(&json!({ "query": query }));
        if let Some(page) = page {
            request = request.header("x-ms-max-item-count", page);
        }
        if let Some(continuation) = continuation {
            request = request.header("x-ms-continuation", continuation);
        }
        request.send().await.unwrap()
    }

    /// Returns all rows, and the number of pages.
    pub(crate) async fn rows(&self, query: &str, page: Option<i64>) -> (Vec<Value>, usize) {
        let (mut rows, mut pages, mut continuation) = (Vec::new(), 0, None);
        loop {
            let answer = self.query(query, page, continuation.as_deref()).await;
            assert_eq!(answer.status(), StatusCode::OK, "{query}");
            continuation = answer
                .headers()
                .get("x-ms-continuation")
                .map(|token| token.to_str().unwrap().to_owned());
            rows.extend(answer.json::<Vec<Value>>().await.unwrap());
            pages += 1;
            if continuation.is_none() {
                return (rows, pages);
            }
        }
    }
}

/// Returns the status, the error's name and the text.
pub(crate) async fn error_name(answer: Response) -> (StatusCode, String, String) {
    let status = answer.status();
    let name = answer.headers()["iothub-errorcode"]
        .to_str()
        .unwrap()
        .to_owned();
    let body: Value = answer.json().await.unwrap();
    (status, name, body["Message"].as_str().unwrap().to_owned())
}
