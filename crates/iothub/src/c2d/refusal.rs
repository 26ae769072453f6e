//! Rejected deliveries: parsing the hub's error and deriving the disposition.
//!
//! The hub gives a condition symbol, a description in JSON or prose, and an info map with
//! `com.microsoft:tracking-id` and `com.microsoft:error-code` (seen in traces in the SDKs' issue
//! trackers).

use std::fmt;
use std::time::SystemTime;

use fe2o3_amqp_types::definitions::Error as AmqpError;
use serde_amqp::Value;

use crate::hub_message::HubMessage;

use super::outcome::{
    DeviceReason, Disposition, HubUnavailableReason, THROTTLE_PAUSE, next_utc_midnight,
};

/// Why the hub refused one message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The AMQP condition, e.g. `amqp:not-found`; empty if missing.
    pub condition: String,
    /// The numeric code, e.g. 404001, from the info map or the description.
    pub code: Option<u32>,
    /// The hub's text, cut to 1024 bytes.
    pub description: String,
    /// The incident's id for the hub's support.
    pub tracking_id: Option<String>,
}

impl Refusal {
    /// Creates a refusal from a condition and the hub's description (JSON or prose).
    #[must_use]
    pub fn new(condition: impl Into<String>, description: &str, code: Option<u32>) -> Self {
        let message = HubMessage::parse(description);
        Self {
            condition: condition.into(),
            code: code.or(message.code),
            description: message.text,
            tracking_id: message.tracking_id,
        }
    }

    pub(crate) fn from_amqp(error: Option<AmqpError>) -> Self {
        let Some(error) = error else {
            return Self::new(String::new(), "", None);
        };
        let condition = symbol(&error);
        let mut refusal = Self::new(condition, error.description.as_deref().unwrap_or(""), None);
        for (key, value) in error.info.map(|info| *info).unwrap_or_default() {
            match key.as_str() {
                "com.microsoft:error-code" => refusal.code = number(&value).or(refusal.code),
                "com.microsoft:tracking-id" => {
                    if let Value::String(id) = value {
                        refusal.tracking_id = Some(id);
                    }
                }
                _ => {}
            }
        }
        refusal
    }

    /// Returns the caller's next step at `now`. Pure. The condition decides first, then the code,
    /// then the text.
    #[must_use]
    pub fn disposition_at(&self, now: SystemTime) -> Disposition {
        let unavailable = |reason| Disposition::HubUnavailable {
            reason,
            until: None,
        };
        let quota = || Disposition::HubUnavailable {
            reason: HubUnavailableReason::DailyQuota,
            until: Some(next_utc_midnight(now)),
        };
        let slow = Disposition::SlowHubDown {
            retry_after: THROTTLE_PAUSE,
        };
        match self.condition.as_str() {
            "amqp:not-found" => match self.code {
                // The hub is failing over to another region: the device will be found again.
                Some(404_012) => Disposition::Retry,
                // The code concerns the address of the link, not the device.
                Some(404_006) => self.refused(),
                _ => Disposition::PermanentForDevice(DeviceReason::NotFound),
            },
            "amqp:resource-limit-exceeded" => {
                let text = self.description.to_ascii_lowercase();
                match self.code {
                    Some(403_002) => quota(),
                    Some(code) if code / 1_000 == 429 => slow,
                    None if text.contains("quota") && !text.contains("queue") => quota(),
                    _ => Disposition::PermanentForDevice(DeviceReason::QueueFull),
                }
            }
            "com.microsoft:quota-exceeded" => quota(),
            "com.microsoft:device-container-throttled" | "com.microsoft:server-busy" => slow,
            "amqp:unauthorized-access" => match self.code {
                Some(403_010) => unavailable(HubUnavailableReason::NotInTier),
                _ => unavailable(HubUnavailableReason::Unauthorised),
            },
            "amqp:not-allowed" if self.code == Some(403_010) => {
                unavailable(HubUnavailableReason::NotInTier)
            }
            "amqp:not-allowed"
            | "amqp:link:message-size-exceeded"
            | "com.microsoft:argument-error"
            | "com.microsoft:argument-out-of-range"
            | "com.microsoft:message-lock-lost"
            | "com.microsoft:precondition-failed"
            | "amqp:precondition-failed" => self.refused(),
            "com.microsoft:timeout" | "amqp:link:detach-forced" | "amqp:connection:forced" => {
                Disposition::Unknown
            }
            "amqp:internal-error" => Disposition::Retry,
            "com.microsoft:iot-hub-suspended" => unavailable(HubUnavailableReason::Suspended),
            "com.microsoft:iot-hub-not-found-error" => unavailable(HubUnavailableReason::NotFound),
            _ => self.disposition_by_code(now),
        }
    }

    /// Whether the hub refused the client's credentials rather than the message.
    #[must_use]
    pub fn is_unauthorised(&self) -> bool {
        matches!(
            self.disposition_at(SystemTime::UNIX_EPOCH),
            Disposition::HubUnavailable {
                reason: HubUnavailableReason::Unauthorised,
                ..
            }
        )
    }

    fn disposition_by_code(&self, now: SystemTime) -> Disposition {
        let unavailable = |reason, until| Disposition::HubUnavailable { reason, until };
        match self.code {
            Some(403_002) => unavailable(
                HubUnavailableReason::DailyQuota,
                Some(next_utc_midnight(now)),
            ),
            Some(403_004 | 403_007) => Disposition::PermanentForDevice(DeviceReason::QueueFull),
            Some(403_010) => unavailable(HubUnavailableReason::NotInTier, None),
            Some(404_001 | 404_010) => Disposition::PermanentForDevice(DeviceReason::NotFound),
            Some(404_012) => Disposition::Retry,
            Some(code) => match code / 1_000 {
                401 => unavailable(HubUnavailableReason::Unauthorised, None),
                408 | 504 => Disposition::Unknown,
                429 => Disposition::SlowHubDown {
                    retry_after: THROTTLE_PAUSE,
                },
                500..=599 => Disposition::Retry,
                _ => self.refused(),
            },
            None => self.refused(),
        }
    }

    fn refused(&self) -> Disposition {
        Disposition::PermanentForDevice(DeviceReason::Refused {
            code: self.code,
            condition: self.condition.clone(),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.condition)?;
        if let Some(code) = self.code {
            write!(f, " ({code})")?;
        }
        if !self.description.is_empty() {
            write!(f, ": {}", self.description)?;
        }
        if let Some(id) = &self.tracking_id {
            write!(f, " [tracking id {id}]")?;
        }
        Ok(())
    }
}

/// The condition of an AMQP error as text.
pub(crate) fn symbol(error: &AmqpError) -> String {
    serde_amqp::to_value(&error.condition)
        .ok()
        .and_then(|value| match value {
            Value::Symbol(symbol) => Some(symbol.0),
            Value::String(text) => Some(text),
            _ => None,
        })
        .unwrap_or_default()
}

fn number(value: &Value) -> Option<u32> {
    match value {
        Value::Int(n) => u32::try_from(*n).ok(),
        Value::Uint(n) => Some(*n),
        Value::Long(n) => u32::try_from(*n).ok(),
        Value::Ulong(n) => u32::try_from(*n).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn refused(code: Option<u32>, condition: &str) -> Disposition {
        Disposition::PermanentForDevice(DeviceReason::Refused {
            code,
            condition: condition.into(),
        })
    }

    fn device(reason: DeviceReason) -> Disposition {
        Disposition::PermanentForDevice(reason)
    }

    fn unavailable(reason: HubUnavailableReason) -> Disposition {
        let until = (reason == HubUnavailableReason::DailyQuota).then(|| next_utc_midnight(NOW));
        Disposition::HubUnavailable { reason, until }
    }

    #[test]
    fn known_refusals_map_to_dispositions() {
        use DeviceReason::{NotFound, QueueFull};
        use Disposition::{Retry, Unknown};
        use HubUnavailableReason as H;
        let slow = || Disposition::SlowHubDown {
            retry_after: Duration::from_secs(10),
        };
        let size = "amqp:link:message-size-exceeded";
        let table: Vec<(&str, Option<u32>, &str, Disposition)> = vec![
            ("amqp:not-found", Some(404_001), "", device(NotFound)),
            ("amqp:not-found", None, "no such device", device(NotFound)),
            ("amqp:not-found", Some(404_010), "", device(NotFound)),
            ("amqp:not-found", Some(404_012), "failing over", Retry),
            (
                "amqp:not-found",
                Some(404_006),
                "",
                refused(Some(404_006), "amqp:not-found"),
            ),
            (
                "amqp:resource-limit-exceeded",
                Some(403_004),
                "",
                device(QueueFull),
            ),
            ("amqp:resource-limit-exceeded", None, "", device(QueueFull)),
            (
                "amqp:resource-limit-exceeded",
                None,
                "DeviceMaximumQueueDepthExceeded",
                device(QueueFull),
            ),
            (
                "amqp:resource-limit-exceeded",
                Some(403_002),
                "",
                unavailable(H::DailyQuota),
            ),
            (
                "amqp:resource-limit-exceeded",
                None,
                "Total number of messages exceeded the allocated quota",
                unavailable(H::DailyQuota),
            ),
            ("amqp:resource-limit-exceeded", Some(429_002), "", slow()),
            (
                "com.microsoft:quota-exceeded",
                Some(403_002),
                "",
                unavailable(H::DailyQuota),
            ),
            (
                "com.microsoft:device-container-throttled",
                Some(429_001),
                "",
                slow(),
            ),
            ("com.microsoft:device-container-throttled", None, "", slow()),
            (
                "amqp:unauthorized-access",
                Some(401_002),
                "",
                unavailable(H::Unauthorised),
            ),
            (
                "amqp:unauthorized-access",
                Some(401_003),
                "",
                unavailable(H::Unauthorised),
            ),
            (
                "amqp:not-allowed",
                Some(400_003),
                "",
                refused(Some(400_003), "amqp:not-allowed"),
            ),
            (
                "amqp:not-allowed",
                Some(403_010),
                "",
                unavailable(H::NotInTier),
            ),
            (
                "amqp:not-allowed",
                Some(403_012),
                "",
                refused(Some(403_012), "amqp:not-allowed"),
            ),
            (size, Some(413_001), "", refused(Some(413_001), size)),
            (
                "com.microsoft:argument-error",
                Some(400_004),
                "",
                refused(Some(400_004), "com.microsoft:argument-error"),
            ),
            (
                "com.microsoft:argument-out-of-range",
                None,
                "",
                refused(None, "com.microsoft:argument-out-of-range"),
            ),
            (
                "com.microsoft:message-lock-lost",
                Some(412_002),
                "",
                refused(Some(412_002), "com.microsoft:message-lock-lost"),
            ),
            (
                "com.microsoft:precondition-failed",
                Some(412_001),
                "",
                refused(Some(412_001), "com.microsoft:precondition-failed"),
            ),
            (
                "amqp:precondition-failed",
                Some(412_001),
                "",
                refused(Some(412_001), "amqp:precondition-failed"),
            ),
            ("com.microsoft:timeout", Some(408_000), "", Unknown),
            ("com.microsoft:timeout", Some(504_101), "", Unknown),
            ("amqp:internal-error", Some(500_001), "", Retry),
            (
                "com.microsoft:iot-hub-suspended",
                Some(400_020),
                "",
                unavailable(H::Suspended),
            ),
            (
                "com.microsoft:iot-hub-not-found-error",
                Some(401_001),
                "",
                unavailable(H::NotFound),
            ),
            ("amqp:link:detach-forced", None, "", Unknown),
            ("amqp:connection:forced", None, "", Unknown),
            // Conditions missing from all sources are classified by the code.
            (
                "com.microsoft:new",
                Some(403_002),
                "",
                unavailable(H::DailyQuota),
            ),
            ("com.microsoft:new", Some(403_004), "", device(QueueFull)),
            ("com.microsoft:new", Some(403_007), "", device(QueueFull)),
            (
                "com.microsoft:new",
                Some(403_009),
                "",
                refused(Some(403_009), "com.microsoft:new"),
            ),
            ("com.microsoft:new", Some(404_001), "", device(NotFound)),
            (
                "com.microsoft:new",
                Some(401_003),
                "",
                unavailable(H::Unauthorised),
            ),
            ("com.microsoft:new", Some(429_003), "", slow()),
            ("com.microsoft:new", Some(408_001), "", Unknown),
            ("com.microsoft:new", Some(503_005), "", Retry),
            ("com.microsoft:new", Some(504_101), "", Unknown),
            (
                "com.microsoft:new",
                None,
                "",
                refused(None, "com.microsoft:new"),
            ),
            ("", None, "", refused(None, "")),
        ];
        for (condition, code, text, expected) in table {
            let refusal = Refusal::new(condition, text, code);
            assert_eq!(
                refusal.disposition_at(NOW),
                expected,
                "{condition} {code:?} {text}"
            );
        }
    }

    #[test]
    fn the_code_may_be_in_a_json_description() {
        let json = r#"{"errorCode":403002,"trackingId":"T-1","message":"over","timestampUtc":"x"}"#;
        let refusal = Refusal::new("amqp:resource-limit-exceeded", json, None);
        assert_eq!(refusal.code, Some(403_002));
        assert_eq!(refusal.tracking_id.as_deref(), Some("T-1"));
        assert_eq!(refusal.description, "over");
        assert_eq!(
            refusal.disposition_at(NOW),
            unavailable(HubUnavailableReason::DailyQuota)
        );
    }

    #[test]
    fn the_info_map_wins_over_the_text() {
        use fe2o3_amqp_types::definitions::{AmqpError as Condition, ErrorCondition, Fields};
        let mut info = Fields::new();
        info.insert("com.microsoft:error-code".into(), Value::Int(404_001));
        info.insert(
            "com.microsoft:tracking-id".into(),
            Value::String("T-2".into()),
        );
        let error = AmqpError::new(
            ErrorCondition::AmqpError(Condition::NotFound),
            Some("ErrorCode:X;Tracking ID:T-1".into()),
            Some(info),
        );
        let refusal = Refusal::from_amqp(Some(error));
        assert_eq!(refusal.condition, "amqp:not-found");
        assert_eq!(refusal.code, Some(404_001));
        assert_eq!(refusal.tracking_id.as_deref(), Some("T-2"));
    }
}
