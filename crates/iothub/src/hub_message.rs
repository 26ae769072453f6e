//! The hub's error texts: JSON, `ErrorCode:Name;text`, JSON inside a JSON string, or prose.

use serde_json::Value;

/// Maximum length of a kept hub text, in bytes: above every message seen, too short to flood a log.
const MAX_TEXT_BYTES: usize = 1_024;

/// The parts of an error text. No text is lost: unrecognised input stays in `text`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HubMessage {
    /// `errorCode` as a number.
    pub(crate) code: Option<u32>,
    /// The name of the error, e.g. `DeviceNotFound`.
    pub(crate) name: Option<String>,
    /// `trackingId`.
    pub(crate) tracking_id: Option<String>,
    /// The human-readable text.
    pub(crate) text: String,
}

impl HubMessage {
    /// Parses `raw` in any of the forms. Never fails.
    pub(crate) fn parse(raw: &str) -> Self {
        Self::parse_nested(raw, 0)
    }

    fn parse_nested(raw: &str, depth: usize) -> Self {
        let raw = raw.trim();
        if depth < 3
            && raw.starts_with(['{', '"'])
            && let Ok(value) = serde_json::from_str::<Value>(raw)
        {
            return Self::from_json(&value, raw, depth);
        }
        Self::from_prose(raw)
    }

    fn from_json(value: &Value, raw: &str, depth: usize) -> Self {
        match value {
            Value::String(inner) => Self::parse_nested(inner, depth + 1),
            Value::Object(fields) => {
                let field = |name: &str| {
                    fields
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, v)| v)
                };
                let text = |name| field(name).and_then(Value::as_str);
                let mut message = match field("message") {
                    Some(Value::String(inner)) => Self::parse_nested(inner, depth + 1),
                    Some(inner @ Value::Object(_)) => Self::from_json(inner, raw, depth + 1),
                    _ => Self {
                        text: cut(raw),
                        ..Self::default()
                    },
                };
                match field("errorCode") {
                    Some(Value::Number(code)) => {
                        message.code = code.as_u64().and_then(|c| c.try_into().ok());
                    }
                    Some(Value::String(code)) => match code.parse() {
                        Ok(code) => message.code = Some(code),
                        Err(_) => message.name = Some(cut(code)),
                    },
                    _ => {}
                }
                if let Some(id) = text("trackingId") {
                    message.tracking_id = Some(cut(id));
                }
                message
            }
            _ => Self {
                text: cut(raw),
                ..Self::default()
            },
        }
    }

    fn from_prose(raw: &str) -> Self {
        let mut message = Self {
            text: cut(raw),
            ..Self::default()
        };
        if let Some(rest) = after(raw, "ErrorCode:") {
            let (code, text) = rest.split_once(';').unwrap_or((rest, ""));
            match code.trim().parse() {
                Ok(code) => message.code = Some(code),
                Err(_) => message.name = Some(cut(code.trim())),
            }
            if !text.trim().is_empty() {
                message.text = cut(text.trim());
            }
        } else if let Some(rest) = after(raw, "(condition='") {
            message.name = rest.split('\'').next().map(cut);
        }
        for marker in ["Tracking ID:", "TrackingId:", "trackingId:"] {
            if let Some(rest) = find(raw, marker) {
                let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | ')' | ']');
                message.tracking_id = rest.trim_start().split(ends).next().map(cut);
                break;
            }
        }
        message
    }
}

fn after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.get(..prefix.len())
        .filter(|p| p.eq_ignore_ascii_case(prefix))?;
    text.get(prefix.len()..)
}

fn find<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    text.find(marker).map(|at| &text[at + marker.len()..])
}

/// Returns at most [`MAX_TEXT_BYTES`] bytes of `text`, cut between two characters; an ellipsis
/// marks the cut.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let mut end = MAX_TEXT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_forms_are_read() {
        let prose =
            HubMessage::parse("ErrorCode:DeviceNotFound;E2E diagnostic. Tracking ID:abc-1-G:0,x");
        assert_eq!(prose.name.as_deref(), Some("DeviceNotFound"));
        assert_eq!(prose.tracking_id.as_deref(), Some("abc-1-G:0"));

        let object =
            r#"{"errorCode":404103,"trackingId":"T","message":"not online","timestampUtc":"x"}"#;
        let nested = serde_json::json!({ "Message": object, "ExceptionMessage": "" }).to_string();
        let direct = format!(r#"{{"Message":{object}}}"#);
        let quoted = serde_json::to_string(object).unwrap();
        for text in [object, &nested, &direct, &quoted] {
            let message = HubMessage::parse(text);
            assert_eq!(message.code, Some(404_103), "{text}");
            assert_eq!(message.tracking_id.as_deref(), Some("T"), "{text}");
            assert_eq!(message.text, "not online", "{text}");
        }

        let body = r#"{"Message":"ErrorCode:ThrottlingException;slow down","ExceptionMessage":"Tracking ID:t"}"#;
        let message = HubMessage::parse(body);
        assert_eq!(message.name.as_deref(), Some("ThrottlingException"));
        assert_eq!(message.text, "slow down");
        assert_eq!(HubMessage::parse("what?").text, "what?");
        assert_eq!(
            HubMessage::parse(&"x".repeat(5_000)).text.len(),
            MAX_TEXT_BYTES + '…'.len_utf8()
        );
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC{0,300}") {
            let _ = HubMessage::parse(&text);
            let _ = HubMessage::parse(&format!("ErrorCode:{text}"));
            let _ = HubMessage::parse(&format!("{{\"Message\":\"{text}\"}}"));
        }
    }
}
