//! `/twins/{id}/methods`: direct methods called by services.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{ApiError, empty_response};
use super::serve::{Answer, Call, admit};
use crate::hub::{Invocation, MethodAnswer, Operation, Refusal};

/// The largest payload of a call or an answer (`iot-hub-devguide-direct-methods`).
const PAYLOAD_BYTES_MAX: usize = 128 * 1024;
/// The number of bytes metered as one operation.
const METER_BYTES: usize = 4 * 1024;
/// The allowed times for a device's answer, in seconds.
const RESPONSE_S: std::ops::RangeInclusive<u64> = 5..=300;
const RESPONSE_S_DEFAULT: u64 = 30;
/// The longest wait for the device to connect, in seconds. The hub's limit is not documented.
const CONNECT_S_MAX: u64 = 300;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    method_name: String,
    #[serde(default)]
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    response_timeout_in_seconds: Option<u64>,
    #[serde(default)]
    connect_timeout_in_seconds: Option<u64>,
}

impl Body {
    fn invocation(self) -> Result<Invocation, Refusal> {
        let bad = |text: String| Err(Refusal::bad_argument(text));
        let name = self.method_name;
        let allowed = |c: char| {
            c.is_ascii_graphic()
                && !matches!(
                    c,
                    '(' | ')'
                        | '<'
                        | '>'
                        | '@'
                        | ','
                        | ';'
                        | ':'
                        | '\\'
                        | '"'
                        | '/'
                        | '['
                        | ']'
                        | '?'
                        | '='
                        | '{'
                        | '}'
                )
        };
        if name.is_empty() || !name.chars().all(allowed) {
            return bad(format!(
                "the methodName '{name:.100}' must have one or more characters of printable ASCII without separators"
            ));
        }
        let response_s = self
            .response_timeout_in_seconds
            .unwrap_or(RESPONSE_S_DEFAULT);
        if !RESPONSE_S.contains(&response_s) {
            return bad(format!(
                "responseTimeoutInSeconds is {response_s}; {} to {} are allowed",
                RESPONSE_S.start(),
                RESPONSE_S.end()
            ));
        }
        let connect_s = self.connect_timeout_in_seconds.unwrap_or(0);
        if connect_s > CONNECT_S_MAX {
            return bad(format!(
                "connectTimeoutInSeconds is {connect_s}; at most {CONNECT_S_MAX} are allowed"
            ));
        }
        let payload = self
            .payload
            .map_or_else(|| "null".to_owned(), |payload| payload.get().to_owned());
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refusal::too_large(payload.len(), PAYLOAD_BYTES_MAX));
        }
        Ok(Invocation {
            name,
            payload: payload.into(),
            response_time_out: Duration::from_secs(response_s),
            connect_time_out: Duration::from_secs(connect_s),
        })
    }
}

/// Calls a method and answers with the device's answer.
pub(crate) async fn invoke(call: &Call, id: &str) -> Answer {
    let body: Body = serde_json::from_slice(&call.body)
        .map_err(|error| ApiError::bad_request(format!("the body is not a call: {error}")))?;
    let invocation = body
        .invocation()
        .map_err(|refusal| ApiError::from(&refusal))?;
    let count = invocation.payload.len().div_ceil(METER_BYTES).max(1) as u64;
    admit(&call.hub, Operation::Method, count).await?;
    let answer = call.hub.invoke(id, &invocation).await;
    let answer = answer.map_err(|refusal| ApiError::from(&refusal))?;
    let mut response = empty_response(StatusCode::OK);
    *response.body_mut() = document(&answer).into();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    Ok(response)
}

/// Builds the response body. A JSON payload is copied unchanged, including number formats; any
/// other payload becomes a string.
fn document(answer: &MethodAnswer) -> Bytes {
    let payload = match serde_json::from_slice::<Box<RawValue>>(&answer.payload) {
        Ok(payload) => payload.get().to_owned(),
        Err(_) if answer.payload.is_empty() => "null".to_owned(),
        Err(_) => {
            let text = String::from_utf8_lossy(&answer.payload);
            serde_json::Value::from(text).to_string()
        }
    };
    format!("{{\"status\":{},\"payload\":{payload}}}", answer.status).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_within_their_bounds() {
        let read = |text: &str| serde_json::from_str::<Body>(text).unwrap().invocation();
        let call = read(r#"{"methodName":"a.b-1","payload":{"x":1.50}}"#).unwrap();
        assert_eq!(&call.payload[..], br#"{"x":1.50}"#);
        assert_eq!(call.response_time_out, Duration::from_secs(30));
        assert_eq!(call.connect_time_out, Duration::ZERO);
        let call =
            r#"{"methodName":"a","responseTimeoutInSeconds":5,"connectTimeoutInSeconds":300}"#;
        let call = read(call).unwrap();
        assert_eq!(&call.payload[..], b"null");
        for bad in [
            r#"{"methodName":""}"#,
            r#"{"methodName":"a b"}"#,
            r#"{"methodName":"a/b"}"#,
            r#"{"methodName":"a","responseTimeoutInSeconds":4}"#,
            r#"{"methodName":"a","responseTimeoutInSeconds":301}"#,
            r#"{"methodName":"a","connectTimeoutInSeconds":301}"#,
        ] {
            assert_eq!(read(bad).unwrap_err().code, 400_004, "{bad}");
        }
        let large = "x".repeat(PAYLOAD_BYTES_MAX);
        let large = format!(r#"{{"methodName":"a","payload":"{large}"}}"#);
        assert_eq!(read(&large).unwrap_err().code, 413_001);
    }

    #[test]
    fn method_answers_are_returned_as_json() {
        for (payload, json) in [
            (&b"[1.50]"[..], "[1.50]"),
            (b"", "null"),
            (b"oops", "\"oops\""),
        ] {
            let payload = Bytes::from_static(payload);
            let answer = MethodAnswer { status: 7, payload };
            let expected = format!("{{\"status\":7,\"payload\":{json}}}");
            assert_eq!(document(&answer), expected);
        }
    }
}
