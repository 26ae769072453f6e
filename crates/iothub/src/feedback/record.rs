//! The body of a feedback message: a JSON array of records.

use std::fmt;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;

use crate::hub_message::cut;

/// The fate of one message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FeedbackStatus {
    /// The device has completed the message.
    Success,
    /// The message expired before a device fetched it.
    Expired,
    /// The device gave the message back too often.
    DeliveryCountExceeded,
    /// The device rejected the message.
    Rejected,
    /// The message was purged from the queue.
    Purged,
    /// A status unknown to this version, as written by the hub.
    Other(String),
}

/// One record of a feedback message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedbackRecord {
    /// The id of the sent message.
    pub original_message_id: String,
    /// When the message reached this status, by the hub's clock; `None` if the hub's text is not a
    /// time.
    pub enqueued_time: Option<SystemTime>,
    /// The message's fate.
    pub status: FeedbackStatus,
    /// The hub's text.
    pub description: String,
    /// The device.
    pub device_id: String,
    /// The device's generation: distinguishes a device from an earlier, deleted device with the
    /// same id.
    pub generation: String,
}

/// An element of a feedback message that is not a record.
#[derive(Debug)]
#[non_exhaustive]
pub struct UnreadableRecord {
    /// The element's JSON, cut to 1024 bytes.
    pub raw: String,
    /// The parse error.
    pub error: serde_json::Error,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    original_message_id: String,
    #[serde(default)]
    enqueued_time_utc: Option<String>,
    status_code: String,
    #[serde(default)]
    description: Option<String>,
    device_id: String,
    #[serde(default)]
    device_generation_id: Option<String>,
}

/// Parses the body of a feedback message into records and unreadable elements. Fails when the body
/// is not an array.
pub(crate) fn read_records(
    body: &[u8],
) -> Result<(Vec<FeedbackRecord>, Vec<UnreadableRecord>), serde_json::Error> {
    let elements: Vec<Value> = serde_json::from_slice(body)?;
    let (mut records, mut unreadable) = (Vec::with_capacity(elements.len()), Vec::new());
    for element in elements {
        match Raw::deserialize(&element) {
            Ok(raw) => records.push(raw.into()),
            Err(error) => {
                unreadable.push(UnreadableRecord {
                    raw: cut(&element.to_string()),
                    error,
                });
            }
        }
    }
    Ok((records, unreadable))
}

impl From<Raw> for FeedbackRecord {
    fn from(raw: Raw) -> Self {
        Self {
            original_message_id: raw.original_message_id,
            enqueued_time: raw.enqueued_time_utc.as_deref().and_then(time),
            status: raw.status_code.as_str().into(),
            description: raw.description.unwrap_or_default(),
            device_id: raw.device_id,
            generation: raw.device_generation_id.unwrap_or_default(),
        }
    }
}

impl From<&str> for FeedbackStatus {
    fn from(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "success" => Self::Success,
            "expired" => Self::Expired,
            "deliverycountexceeded" => Self::DeliveryCountExceeded,
            "rejected" => Self::Rejected,
            "purged" => Self::Purged,
            _ => Self::Other(cut(text)),
        }
    }
}

impl fmt::Display for FeedbackStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "Success",
            Self::Expired => "Expired",
            Self::DeliveryCountExceeded => "DeliveryCountExceeded",
            Self::Rejected => "Rejected",
            Self::Purged => "Purged",
            Self::Other(text) => text,
        })
    }
}

/// Parses ISO 8601; the hub mostly, but not always, writes a `Z`.
fn time(text: &str) -> Option<SystemTime> {
    let stamp = text.parse::<jiff::Timestamp>().ok();
    let stamp = stamp.or_else(|| {
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        civil
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
            .map(|zoned| zoned.timestamp())
    });
    stamp.map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn records_are_read_and_invalid_records_are_kept() {
        let body = br#"[
            {"originalMessageId":"m1","enqueuedTimeUtc":"1970-01-01T00:01:00.5Z","statusCode":"Success",
             "description":"Success","deviceId":"d","deviceGenerationId":"g"},
            {"originalMessageId":"m2","enqueuedTimeUtc":"1970-01-01T00:00:01","statusCode":"Expired","deviceId":"d"},
            {"originalMessageId":"m3","enqueuedTimeUtc":"?","statusCode":"Teleported","deviceId":"d"},
            {"statusCode":"Success"}
        ]"#;
        let (records, unreadable) = read_records(body).unwrap();
        assert_eq!(records.len(), 3);
        assert_eq!(
            records[0].enqueued_time,
            Some(UNIX_EPOCH + Duration::from_millis(60_500))
        );
        assert_eq!(records[0].generation, "g");
        assert_eq!(records[1].status, FeedbackStatus::Expired);
        assert_eq!(
            records[1].enqueued_time,
            Some(UNIX_EPOCH + Duration::from_secs(1))
        );
        assert_eq!(
            records[2].status,
            FeedbackStatus::Other("Teleported".into())
        );
        assert_eq!(records[2].enqueued_time, None);
        assert_eq!(unreadable.len(), 1);
        assert!(
            unreadable[0]
                .error
                .to_string()
                .contains("originalMessageId")
        );
        assert!(read_records(b"{}").is_err());
        assert!(read_records(b"[").is_err());
    }

    #[test]
    fn every_status_is_parsed_and_displayed_unchanged() {
        for word in [
            "Success",
            "Expired",
            "DeliveryCountExceeded",
            "Rejected",
            "Purged",
            "X",
        ] {
            assert_eq!(FeedbackStatus::from(word).to_string(), word);
        }
    }
}
