//! The message sent to each device, as written by a user.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::MAX_MESSAGE_BYTES;
use super::quantity::HumanDuration;
use crate::json::Json;
use crate::message::{Ack, Content};

/// The message sent to each device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageSpec {
    /// The body.
    pub body: Body,
    /// The `content-type` property. Default: `application/json` for a JSON body, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE_BYTES))]
    pub content_type: Option<String>,
    /// The `content-encoding` property. Default: `utf-8` for a JSON or text body, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE_BYTES))]
    pub content_encoding: Option<String>,
    /// Application properties. The hub accepts only texts as values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = { "type": "string", "maxLength": MAX_MESSAGE_BYTES }))]
    pub properties: BTreeMap<String, String>,
    /// How long the hub keeps the message for an offline device, from the send on: 1 minute to 2
    /// days. Default: the hub's own setting (1 hour unless changed by the owner of the hub).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
    /// The feedback requested from the hub.
    #[serde(default)]
    pub ack: Ack,
}

/// A message's body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Any JSON value, sent in compact form. Every number keeps all digits.
    Json(Json),
    /// A text, sent as UTF-8.
    Text(#[schemars(length(max = MAX_MESSAGE_BYTES))] String),
    /// The bytes of a file beside the spec, read when the rollout is accepted.
    File(PathBuf),
    /// Bytes, in base64. A `file` takes this form when the rollout is accepted.
    Base64(#[schemars(length(max = MAX_MESSAGE_BYTES.div_ceil(3) * 4))] String),
}

/// The reason why there is no message yet.
#[derive(Debug, thiserror::Error)]
pub enum NoContent {
    /// The body is in a file not read so far.
    #[error("the body has not been read yet from {}", .0.display())]
    File(PathBuf),
    /// The body is not base64.
    #[error("the body is not base64")]
    Base64(#[source] base64::DecodeError),
}

impl MessageSpec {
    /// Returns whether the hub is asked for feedback on the message.
    #[must_use]
    pub fn wants_feedback(&self) -> bool {
        self.ack != Ack::None
    }

    /// Returns the content of the message.
    ///
    /// # Errors
    /// Returns an error if the body is a file that was not inlined, or is not base64.
    pub fn content(&self) -> Result<Content, NoContent> {
        use base64::Engine as _;
        let (body, content_type, encoding) = match &self.body {
            Body::Json(value) => (
                value.as_str().to_owned().into(),
                Some("application/json"),
                Some("utf-8"),
            ),
            Body::Text(text) => (text.clone().into(), None, Some("utf-8")),
            Body::File(path) => return Err(NoContent::File(path.clone())),
            Body::Base64(text) => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .map_err(NoContent::Base64)?;
                (bytes.into(), None, None)
            }
        };
        Ok(Content {
            body,
            content_type: self
                .content_type
                .clone()
                .or(content_type.map(str::to_owned)),
            content_encoding: self
                .content_encoding
                .clone()
                .or(encoding.map(str::to_owned)),
            properties: self
                .properties
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            ttl: self.ttl.map(|ttl| ttl.0),
            ack: self.ack,
        })
    }
}
