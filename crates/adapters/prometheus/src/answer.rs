//! What a server says to a query.

use serde::Deserialize;
use serde_json::Value;

/// Why there are no samples.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("the connection failed")]
    Transit(#[source] reqwest::Error),
    #[error("it cannot be shown who asks")]
    Headers(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer is larger than 1 MiB: let the query sum up")]
    TooLarge,
    #[error("it answers {status}: {said}")]
    Refused { status: u16, said: String },
    #[error("it answers something else than the result of a query: {found}")]
    Strange { found: String },
    #[error("the query gives a {found}, not a scalar or a vector")]
    OtherType { found: String },
}

/// The answer, as far as it is of interest. With an error, there is no data.
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

/// The time and the value, as a text so that all floats can be written.
type Sample = (f64, String);

#[derive(Deserialize)]
struct Series {
    value: Option<Sample>,
}

/// Reads an answer.
pub(crate) fn samples(status: u16, body: &[u8]) -> Result<Vec<f64>, Unusable> {
    let strange = || Unusable::Strange {
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
            let said = format!("{}: {}", answer.error_type, answer.error);
            let said = brief(&said);
            return Err(Unusable::Refused { status, said });
        }
        _ if !is_success => {
            let said = brief(&String::from_utf8_lossy(body));
            return Err(Unusable::Refused { status, said });
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
            // A native histogram has no value.
            let values = series.iter().map(|series| float(series.value.as_ref()?));
            values.collect::<Option<_>>().ok_or_else(strange)
        }
        other => Err(Unusable::OtherType {
            found: brief(other),
        }),
    }
}

/// Rust reads all that Prometheus writes: `+Inf`, `-Inf` and `NaN` too.
fn float((_, text): &Sample) -> Option<f64> {
    text.parse().ok()
}

/// A text cut to what fits into a line.
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
                "the query gives a matrix, not a scalar or a vector",
            ),
            (
                result("string", r#"[1,"x"]"#),
                "the query gives a string, not a scalar or a vector",
            ),
        ] {
            assert_eq!(read(200, &answer), found);
        }
        let histogram = r#"[{"metric":{},"histogram":[1,{"count":"1"}]}]"#;
        assert!(read(200, &result("vector", histogram)).contains("something else"));
    }

    #[test]
    fn refusals_are_told() {
        let bad = r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#;
        for (status, body, found) in [
            (400, bad, "it answers 400: bad_data: 1:3: parse error"),
            (401, "Unauthorized\n", "it answers 401: Unauthorized "),
            (
                200,
                "<html>",
                "it answers something else than the result of a query: <html>",
            ),
            (
                200,
                "{}",
                "it answers something else than the result of a query: {}",
            ),
        ] {
            assert_eq!(read(status, body), found);
        }
        assert!(read(502, &"x".repeat(10_000)).len() < 200);
    }
}
