//! The limits of tags and properties ("Tags and properties format" and "Device twin size" of the
//! hub's documentation of device twins).

use serde_json::{Map, Number, Value};

/// The largest size of tags, in bytes as counted by the hub.
pub(crate) const TAGS_BYTES_MAX: usize = 8 * 1024;
/// The largest size of desired properties, in bytes as counted by the hub.
pub(crate) const DESIRED_BYTES_MAX: usize = 32 * 1024;
/// The largest size of reported properties, in bytes as counted by the hub.
pub(crate) const REPORTED_BYTES_MAX: usize = 32 * 1024;
/// The deepest nesting of objects below a section.
const DEPTH_MAX: usize = 10;
const KEY_BYTES_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 4 * 1024;
const INTEGERS: std::ops::RangeInclusive<i64> = -4_503_599_627_370_496..=4_503_599_627_370_495;

/// Checks `values` against the limits of a twin's section. The error names the section, the
/// property and the rule.
pub(crate) fn check_section(
    section: &str,
    values: &Map<String, Value>,
    bytes_max: usize,
) -> Result<(), String> {
    let size = size_of_object(values);
    if size > bytes_max {
        return Err(format!(
            "the {section} have {size} bytes; at most {bytes_max} are allowed"
        ));
    }
    check_object(section, values, 0)
}

fn check_object(section: &str, values: &Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("the {section} nest deeper than {DEPTH_MAX}"));
    }
    for (key, value) in values {
        let bad = |c: char| c.is_control() || matches!(c, '.' | '$' | '#' | ' ');
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(bad) {
            return Err(format!("'{key}' in the {section} is not an allowed name"));
        }
        check_value(section, key, value, depth)?;
    }
    Ok(())
}

fn check_value(section: &str, key: &str, value: &Value, depth: usize) -> Result<(), String> {
    match value {
        Value::Object(inner) => check_object(section, inner, depth + 1),
        // The recursion is bounded: serde_json reads at most 128 levels.
        Value::Array(values) => values
            .iter()
            .try_for_each(|value| check_value(section, key, value, depth)),
        Value::String(text) if text.len() > TEXT_BYTES_MAX => Err(format!(
            "'{key}' in the {section} has a text of {} bytes; at most {TEXT_BYTES_MAX} are allowed",
            text.len()
        )),
        Value::Number(number) if !is_allowed(number) => Err(format!(
            "'{key}' in the {section} has the integer {number}; {} to {} are allowed",
            INTEGERS.start(),
            INTEGERS.end()
        )),
        _ => Ok(()),
    }
}

fn is_allowed(number: &Number) -> bool {
    match (number.as_i64(), number.as_f64()) {
        (Some(integer), _) => INTEGERS.contains(&integer),
        // An integer beyond 64 bits is read as a float.
        (None, Some(float)) => float.fract() != 0.0 || float.abs() < *INTEGERS.end() as f64,
        (None, None) => false,
    }
}

fn size_of_object(values: &Map<String, Value>) -> usize {
    values
        .iter()
        .map(|(key, value)| size_of_text(key) + size_of_value(value))
        .sum()
}

fn size_of_value(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => size_of_text(text),
        Value::Array(values) => values.iter().map(size_of_value).sum(),
        Value::Object(values) => size_of_object(values),
    }
}

fn size_of_text(text: &str) -> usize {
    text.chars()
        .filter(|c| !c.is_control())
        .map(char::len_utf8)
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(values: &Value) -> Result<(), String> {
        check_section("tags", values.as_object().unwrap(), TAGS_BYTES_MAX)
    }

    #[test]
    fn integers_are_limited_to_52_bits_at_any_depth() {
        let most = 4_503_599_627_370_495i64;
        for number in [
            json!(most),
            json!(-most - 1),
            json!(0.5),
            json!(1e300 / 3.0 * 1e-290),
        ] {
            for values in [json!({ "a": number }), json!({ "a": [{ "b": [number] }] })] {
                assert_eq!(check(&values), Ok(()), "{values}");
            }
        }
        for number in [
            "4503599627370496",
            "-4503599627370497",
            "18446744073709551615",
            "1e20",
            "-99999999999999999999",
        ] {
            for text in [
                format!("{{\"a\": {number}}}"),
                format!("{{\"a\": [{{\"b\": [{number}]}}]}}"),
            ] {
                let error = check(&serde_json::from_str(&text).unwrap()).unwrap_err();
                assert!(
                    error.contains("has the integer") && error.contains("4503599627370495"),
                    "{text}: {error}"
                );
            }
        }
    }

    #[test]
    fn names_and_texts_are_limited() {
        let name = |name: &str| json!({ name: 1 });
        assert_eq!(check(&name(&"k".repeat(1024))), Ok(()));
        for bad in [
            "",
            "a.b",
            "$a",
            "a#",
            "a b",
            "a\u{7}",
            "a\u{85}",
            &"k".repeat(1025),
        ] {
            assert!(check(&name(bad)).is_err(), "{bad:?}");
            assert!(check(&json!({ "a": [{ bad: 1 }] })).is_err(), "{bad:?}");
        }
        assert_eq!(check(&json!({ "a": "x".repeat(4096) })), Ok(()));
        for values in [
            json!({ "a": "x".repeat(4097) }),
            json!({ "a": ["é".repeat(2049)] }),
        ] {
            assert!(check(&values).unwrap_err().contains("at most 4096"));
        }
    }

    #[test]
    fn ten_objects_nest_as_in_the_documentations_example() {
        let nested = |levels| {
            (0..levels).fold(
                json!({ "property": "value" }),
                |inner, _| json!({ "a": inner }),
            )
        };
        assert_eq!(check(&nested(10)), Ok(()));
        assert!(check(&nested(11)).unwrap_err().contains("deeper than 10"));
        assert!(check(&json!({ "a": [nested(10)] })).is_err());
    }

    #[test]
    fn size_counts_only_keys_and_values() {
        for (values, size) in [
            (json!({}), 0),
            (json!({ "ab": "xyz" }), 5),
            (json!({ "é": "a\u{1}b" }), 4),
            (json!({ "n": 1, "f": 1.5, "t": true }), 9 + 9 + 5),
            (json!({ "o": { "p": "q" }, "l": [1, "xx"] }), 3 + 11),
        ] {
            assert_eq!(
                size_of_object(values.as_object().unwrap()),
                size,
                "{values}"
            );
        }
        let full = |bytes: usize| json!({ "a": "x".repeat(4095), "b": "x".repeat(bytes) });
        assert_eq!(check(&full(4095)), Ok(()));
        assert!(check(&full(4096)).unwrap_err().contains("8193 bytes"));
    }
}
