//! Errors in the hub's wording over HTTP.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::amqp::tracking_id;
use crate::hub::Refusal;

/// A refused request.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct ApiError {
    status: StatusCode,
    name: &'static str,
    text: String,
    retry_after_s: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, name: &'static str, text: impl Into<String>) -> Self {
        Self {
            status,
            name,
            text: text.into(),
            retry_after_s: None,
        }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ArgumentInvalid", text)
    }

    pub(crate) fn unauthorized(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess", text)
    }

    pub(crate) fn not_found(id: &str) -> Self {
        Self::from(&Refusal::device_not_found(id))
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", text)
    }

    pub(crate) fn throttled(operation: &str, retry_after_s: Option<u64>) -> Self {
        Self {
            retry_after_s,
            ..Self::from(&Refusal::throttled(operation))
        }
    }

    /// Returns the HTTP response.
    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let body = json!({
            "Message": format!("ErrorCode:{};{}", self.name, self.text),
            "ExceptionMessage": format!("Tracking ID:{}", tracking_id()),
        });
        let mut response = json_response(self.status, &body);
        let headers = response.headers_mut();
        headers.insert("iothub-errorcode", HeaderValue::from_static(self.name));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<&Refusal> for ApiError {
    fn from(refusal: &Refusal) -> Self {
        // An error code begins with the HTTP status.
        let status = u16::try_from(refusal.code / 1000)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok());
        Self::new(
            status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            refusal.name,
            refusal.text.clone(),
        )
    }
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// An answer without a body.
pub(crate) fn empty_response(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}
