//! Errors of REST requests.

use std::time::Duration;

use thiserror::Error;

use crate::connect_error::ConnectError;
use crate::credentials::CredentialsError;
use crate::hub_message::HubMessage;

/// An error response of the hub.
///
/// The name comes from the header `iothub-errorcode`, else from the body. The other fields come
/// from the body, which has one of several forms. The status decides when header and body carry no
/// information.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("hub answered {status} {}{}: {message}{}", name.as_deref().unwrap_or(""), code_text(*code), tracking_text(tracking_id.as_deref()))]
#[non_exhaustive]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Name of the error, e.g. `DeviceNotFound`.
    pub name: Option<String>,
    /// Numeric code, e.g. 404001.
    pub code: Option<u32>,
    /// The hub's text, cut to 1024 bytes.
    pub message: String,
    /// The incident's id for the hub's support.
    pub tracking_id: Option<String>,
    /// The value of the response's `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// Why a REST request failed, after all its retries.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestError {
    /// No connection.
    #[error("failed to connect to the hub")]
    Connect(#[source] ConnectError),
    /// No token could be obtained.
    #[error("no credentials for the hub")]
    NoToken(#[source] CredentialsError),
    /// The identity service's token is not printable ASCII.
    #[error("token for the hub contains characters other than printable ASCII")]
    TokenNotAscii,
    /// The request or the response broke or took too long in transit.
    #[error("request to the hub failed in transit")]
    Transit(#[source] reqwest::Error),
    /// The hub answered with an error.
    #[error("hub refused the request")]
    Api(#[source] ApiError),
    /// The hub refused a page named by its own continuation. The query is valid but the
    /// continuation is not, e.g. because of its age.
    #[error("hub refused the continuation of a query")]
    Continuation(#[source] ApiError),
    /// The response does not have the documented form.
    #[error("hub's answer to {request} does not have the expected form")]
    Answer {
        /// The kind of request.
        request: &'static str,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The response is larger than any documented response.
    #[error("hub's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The query exceeds the hub's limit.
    #[error("query has {found} characters; the hub allows at most {limit}")]
    QueryTooLong {
        /// Characters found.
        found: usize,
        /// The limit in characters.
        limit: usize,
    },
    /// A query keeps giving empty pages with a continuation.
    #[error("query gave {0} empty pages in a row")]
    EndlessPaging(u32),
}

impl RestError {
    /// Returns the hub's error response of an [`Api`](Self::Api) error.
    #[must_use]
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the hub reports the device or resource as missing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.api().is_some_and(|error| error.status == 404)
    }

    /// Whether the hub refused the client's credentials.
    #[must_use]
    pub fn is_unauthorised(&self) -> bool {
        self.api().is_some_and(ApiError::is_unauthorised)
    }

    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            Self::NoToken(error) => error.is_transient(),
            Self::Transit(_) => true,
            Self::Api(error) => error.is_transient(),
            _ => false,
        }
    }
}

impl ApiError {
    /// Whether the hub refused the client's credentials or permissions.
    #[must_use]
    pub fn is_unauthorised(&self) -> bool {
        self.status == 401
    }

    /// Parses a response: header first, then body, then status.
    pub(crate) fn read(
        status: u16,
        header: Option<&str>,
        body: &str,
        retry_after: Option<Duration>,
    ) -> Self {
        let message = HubMessage::parse(body);
        let header = header.map(str::trim).filter(|name| !name.is_empty());
        // The header carries a name on some gateways and a number on others.
        let (header_code, header_name) = match header.map(|text| (text.parse::<u32>(), text)) {
            Some((Ok(code), _)) => (Some(code), None),
            Some((Err(_), name)) => (None, Some(crate::hub_message::cut(name))),
            None => (None, None),
        };
        Self {
            status,
            name: header_name.or(message.name),
            code: header_code.or(message.code),
            message: message.text,
            tracking_id: message.tracking_id,
            retry_after,
        }
    }

    /// Whether the hub throttled the request.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.status == 429 || self.code.is_some_and(|code| code / 1_000 == 429)
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.is_throttled() || matches!(self.status, 408 | 500 | 502..=504)
    }
}

fn code_text(code: Option<u32>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

fn tracking_text(id: Option<&str>) -> String {
    id.map(|id| format!(" [tracking id {id}]"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_name_in_the_header_wins_over_the_body() {
        let body = r#"{"Message":"ErrorCode:ThrottlingException;slow down","ExceptionMessage":"Tracking ID:t"}"#;
        let error = ApiError::read(429, Some("ThrottlingBacklogLimitExceeded"), body, None);
        assert_eq!(
            error.name.as_deref(),
            Some("ThrottlingBacklogLimitExceeded")
        );
        assert_eq!(error.message, "slow down");
        assert_eq!(
            ApiError::read(429, None, body, None).name.as_deref(),
            Some("ThrottlingException")
        );
        let nested =
            r#"{"Message":"{\"errorCode\":404001,\"trackingId\":\"T\",\"message\":\"no\"}"}"#;
        let error = ApiError::read(404, Some(""), nested, None);
        assert_eq!(
            (error.code, error.tracking_id.as_deref()),
            (Some(404_001), Some("T"))
        );
        let bare = ApiError::read(503, None, "", None);
        assert!(bare.is_transient() && !bare.is_throttled());
        assert_eq!(
            ApiError::read(403, Some("403002"), "", None).code,
            Some(403_002)
        );
        assert!(error.to_string().contains("404"), "{error}");
    }
}
