//! Parses a server's response to a query.

use serde::Deserialize;
use serde_json::Value;

/// Why a query returned no samples.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("the connection failed")]
    Transit(#[source] reqwest::Error),
    #[error("cannot get the credentials for the request")]
    Headers(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer is larger than 1 MiB: aggregate in the query")]
    TooLarge,
    #[error("it answers {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("its answer is not the result of a query: {found}")]
    Strange { found: String },
    #[error("the query returns a {found}, not a scalar or a vector")]
    OtherType { found: String },
}

/// The relevant fields of a response. An error response has no data.
#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default, rename = "errorType")]
    error_type: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    result_type: String,
    result: Value,
}

/// Time and value; the value is text, so that all floats are representable.
type Sample = (f64, String);

#[derive(Deserialize)]
struct Series {
    value: Option<Sample>,
}

/// Parses a response.
pub(crate) fn samples(status: u16, body: &[u8]) -> Result<Vec<f64>, QueryError> {
    let strange = || QueryError::Strange {
        found: brief(&String::from_utf8_lossy(body)),
    };
    let answer: Result<Answer, _> = serde_json::from_slice(body);
    let is_success = (200..300).contains(&status);
    let data = match answer {
        Ok(Answer {
            status: word,
            data: Some(data),
            ..
        }) if is_success && word == "success" => data,
        Ok(answer) if answer.status == "error" => {
            let message = format!("{}: {}", answer.error_type, answer.error);
            let message = brief(&message);
            return Err(QueryError::Refused { status, message });
        }
        _ if !is_success => {
            let message = brief(&String::from_utf8_lossy(body));
            return Err(QueryError::Refused { status, message });
        }
        _ => return Err(strange()),
    };
    match data.result_type.as_str() {
        "scalar" => {
            let sample: Sample = serde_json::from_value(data.result).map_err(|_| strange())?;
            Ok(vec![float(&sample).ok_or_else(strange)?])
        }
        "vector" => {
            let series: Vec<Series> = serde_json::from_value(data.result).map_err(|_| strange())?;
            // A sample without a value is a native histogram.
            let values = series.iter().map(|series| float(series.value.as_ref()?));
            values.collect::<Option<_>>().ok_or_else(strange)
        }
        other => Err(QueryError::OtherType {
            found: brief(other),
        }),
    }
}

/// Rust parses all of Prometheus's float formats, including `+Inf`, `-Inf` and `NaN`.
fn float((_, text): &Sample) -> Option<f64> {
    text.parse().ok()
}

/// Shortens a text to fit into one line.
fn brief(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(161)
        .collect();
    if line.chars().count() > 160 {
        line = line.chars().take(157).chain("...".chars()).collect();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> String {
        match samples(status, body.as_bytes()) {
            Ok(samples) => format!("{samples:?}"),
            Err(error) => error.to_string(),
        }
    }

    fn result(kind: &str, result: &str) -> String {
        let data = format!(r#"{{"resultType":"{kind}","result":{result}}}"#);
        format!(r#"{{"status":"success","data":{data},"warnings":["w"]}}"#)
    }

    #[test]
    fn answers_are_read() {
        let series = |values: &[&str]| {
            let all: Vec<_> = values
                .iter()
                .map(|value| {
                    format!(r#"{{"metric":{{"a":"b"}},"value":[1435781451.781,"{value}"]}}"#)
                })
                .collect();
            format!("[{}]", all.join(","))
        };
        for (answer, found) in [
            (result("scalar", r#"[1435781451.781,"0.5"]"#), "[0.5]"),
            (result("vector", "[]"), "[]"),
            (
                result("vector", &series(&["1", "NaN", "+Inf", "-Inf"])),
                "[1.0, NaN, inf, -inf]",
            ),
            (
                result("matrix", "[]"),
                "the query returns a matrix, not a scalar or a vector",
            ),
            (
                result("string", r#"[1,"x"]"#),
                "the query returns a string, not a scalar or a vector",
            ),
        ] {
            assert_eq!(read(200, &answer), found);
        }
        let histogram = r#"[{"metric":{},"histogram":[1,{"count":"1"}]}]"#;
        assert!(read(200, &result("vector", histogram)).contains("not the result of a query"));
    }

    #[test]
    fn refusals_are_reported() {
        let bad = r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#;
        for (status, body, found) in [
            (400, bad, "it answers 400: bad_data: 1:3: parse error"),
            (401, "Unauthorized\n", "it answers 401: Unauthorized "),
            (
                200,
                "<html>",
                "its answer is not the result of a query: <html>",
            ),
            (200, "{}", "its answer is not the result of a query: {}"),
        ] {
            assert_eq!(read(status, body), found);
        }
        assert!(read(502, &"x".repeat(10_000)).len() < 200);
    }
}
