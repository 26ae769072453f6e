//! Why there is no identity, or no token.

use std::sync::Arc;

use azure_core::error::ErrorKind;

/// The longest text of Entra's that is kept.
const TEXT_CHARS: usize = 300;

/// Why an identity cannot be used as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A value is missing.
    #[error("{identity} needs {what}: set {setting}, or the environment variable {variable}")]
    Missing {
        /// The kind of identity.
        identity: &'static str,
        /// What is missing.
        what: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// The environment variable that has the same meaning.
        variable: &'static str,
    },
    /// A value cannot be used.
    #[error("{setting} of {identity} is {found:?}: {allowed}")]
    Invalid {
        /// The kind of identity.
        identity: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

/// Why there is no token. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Microsoft Entra ID, or the metadata endpoint, refuses the identity.
    #[error("Microsoft Entra ID gives no token to {identity}: {text}")]
    Refused {
        /// Who asked.
        identity: String,
        /// The status of the answer.
        status: u16,
        /// What it says.
        text: String,
    },
    /// No answer, or one that says that it is busy.
    #[error("no token for {identity}: {text}")]
    Unavailable {
        /// Who asked.
        identity: String,
        /// What happened.
        text: String,
        /// The cause.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
}

impl TokenError {
    /// Whether the same request may succeed later with nothing changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(crate) fn of(identity: &str, error: azure_core::Error) -> Self {
        let identity = identity.to_owned();
        let Some((status, text)) = answer(&error) else {
            return Self::Unavailable {
                identity,
                text: "it cannot be asked for".to_owned(),
                source: Some(Arc::new(error)),
            };
        };
        match status {
            // The metadata endpoint answers 404 and 410 while it starts or is updated.
            400 | 401 | 403 => Self::Refused {
                identity,
                status,
                text,
            },
            status => Self::Unavailable {
                identity,
                text: format!("the answer is {status}: {text}"),
                source: None,
            },
        }
    }
}

/// The status and the text of an answer that was not a token.
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

/// The first line of `error_description`, without the ids of the request.
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
    fn an_answer_is_told_by_its_first_line() {
        let body = br#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided. Trace ID: a Correlation ID: b\r\nTimestamp: c"}"#;
        assert_eq!(
            description(body),
            "AADSTS7000215: Invalid client secret provided."
        );
        assert_eq!(description(b"<html>"), "no reason given");
    }
}
