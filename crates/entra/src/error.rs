//! Errors of identities and tokens.

use std::sync::Arc;

use azure_core::error::ErrorKind;

/// The longest text kept from Entra's answer, in characters.
const TEXT_CHARS: usize = 300;

/// Why a configured identity is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A mandatory value is missing.
    #[error("{identity} needs {value}: set {setting}, or the environment variable {variable}")]
    Missing {
        /// The kind of identity.
        identity: &'static str,
        /// The missing value.
        value: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// The environment variable with the same meaning.
        variable: &'static str,
    },
    /// A value is invalid.
    #[error("{setting} of {identity} is {found:?}: {allowed}")]
    Invalid {
        /// The kind of identity.
        identity: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// The value found.
        found: String,
        /// The allowed values.
        allowed: &'static str,
    },
}

/// Why no token is available. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Microsoft Entra ID, or the metadata endpoint, refused the identity.
    #[error("Microsoft Entra ID refused a token for {identity}: {text}")]
    Refused {
        /// The requesting identity.
        identity: String,
        /// The answer's status.
        status: u16,
        /// The answer's text.
        text: String,
    },
    /// No answer, an answer with a transient status, or an unreadable secret.
    #[error("no token for {identity}: {text}")]
    Unavailable {
        /// The requesting identity.
        identity: String,
        /// The failure.
        text: String,
        /// The cause.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
}

impl TokenError {
    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(crate) fn from_azure(identity: &str, error: azure_core::Error) -> Self {
        let identity = identity.to_owned();
        let Some((status, text)) = answer(&error) else {
            return Self::Unavailable {
                identity,
                text: "the request failed".to_owned(),
                source: Some(Arc::new(error)),
            };
        };
        match status {
            // The metadata endpoint answers 404 and 410 while starting or being updated, so these
            // statuses count as transient.
            400 | 401 | 403 => Self::Refused {
                identity,
                status,
                text,
            },
            status => Self::Unavailable {
                identity,
                text: format!("the answer has status {status}: {text}"),
                source: None,
            },
        }
    }
}

/// Returns the status and text of an answer without a token.
fn answer(error: &azure_core::Error) -> Option<(u16, String)> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let found = error.downcast_ref::<azure_core::Error>();
        if let Some(ErrorKind::HttpResponse {
            status,
            raw_response,
            ..
        }) = found.map(azure_core::Error::kind)
        {
            let body = raw_response.as_ref().map(|response| response.body());
            let text = body.map(|body| description(body)).unwrap_or_default();
            return Some((u16::from(*status), text));
        }
        next = error.source();
    }
    None
}

/// Returns the first line of `error_description`, without the request's ids.
fn description(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = body["error_description"]
        .as_str()
        .unwrap_or("no reason given");
    let text = text.lines().next().unwrap_or_default();
    let text = text.split(" Trace ID:").next().unwrap_or_default();
    text.chars().take(TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_is_the_first_line_without_trace_id() {
        let body = br#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided. Trace ID: a Correlation ID: b\r\nTimestamp: c"}"#;
        assert_eq!(
            description(body),
            "AADSTS7000215: Invalid client secret provided."
        );
        assert_eq!(description(b"<html>"), "no reason given");
    }
}
