//! Values of tags and reported properties: the distributions in the fleet file, and the value for
//! one device.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::permutation::{Permutation, mix};

/// The distribution of a value over the devices of a group. Null stands for a missing property.
///
/// In the file, a plain value is the same for every device, and a map is a nested object. A map
/// with a single key starting with `$` (not allowed in names of tags) is a distribution.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueSpec {
    /// The same value for every device.
    Constant(Value),
    /// `$choice: [a, b]`: each value equally often, scattered.
    Choice(Vec<Value>),
    /// `$weighted: {a: 70, b: 30}` or `$weighted: [{value: a, weight: 70}, …]`: in these proportions, scattered.
    Weighted(Vec<(Value, f64)>),
    /// `$cycle: [a, b]`: the values in turn, along the device numbers.
    Cycle(Vec<Value>),
    /// `$range: [1, 40]`: an integer within the range, bounds included.
    Range(i64, i64),
    /// `$sequence: 100`: this number for the first device, increasing by one for each following
    /// device.
    Sequence(i64),
    /// `$text: "site-{index/100:04}"`: a text containing the device's number.
    Text(String),
    /// A nested object.
    Object(Vec<(String, ValueSpec)>),
}

impl ValueSpec {
    fn from_value(value: Value) -> Result<Self, String> {
        let Value::Object(map) = value else {
            return Ok(Self::Constant(value));
        };
        if !map.keys().any(|key| key.starts_with('$')) {
            let fields = map
                .into_iter()
                .map(|(key, value)| Ok((key, Self::from_value(value)?)))
                .collect::<Result<_, String>>()?;
            return Ok(Self::Object(fields));
        }
        let mut entries = map.into_iter();
        match (entries.next(), entries.next()) {
            (Some((key, value)), None) => Self::distribution(&key, value),
            _ => Err("a map with a '$' key can have no other key".to_owned()),
        }
    }

    fn distribution(key: &str, value: Value) -> Result<Self, String> {
        match (key, value) {
            ("$choice", Value::Array(values)) if !values.is_empty() => Ok(Self::Choice(values)),
            ("$cycle", Value::Array(values)) if !values.is_empty() => Ok(Self::Cycle(values)),
            ("$weighted", weights) => weighted(weights),
            ("$range", Value::Array(bounds)) => {
                match bounds.iter().map(Value::as_i64).collect::<Vec<_>>()[..] {
                    [Some(from), Some(to)] if from <= to => Ok(Self::Range(from, to)),
                    _ => Err("'$range' takes two integers, the smaller first".to_owned()),
                }
            }
            ("$sequence", Value::Number(start)) if start.is_i64() => {
                Ok(Self::Sequence(start.as_i64().unwrap_or_default()))
            }
            ("$text", Value::String(text)) => Pattern::parse(&text).map(|_| Self::Text(text)),
            ("$choice" | "$cycle", _) => Err(format!("'{key}' takes a list of at least one value")),
            ("$range", _) => Err("'$range' takes a list of two integers".to_owned()),
            ("$sequence", _) => Err("'$sequence' takes an integer".to_owned()),
            ("$text", _) => Err("'$text' takes a text such as \"site-{index/100:04}\"".to_owned()),
            _ => Err(format!(
                "unknown key '{key}'; allowed: $choice, $weighted, $cycle, $range, $sequence, $text"
            )),
        }
    }
}

fn weighted(value: Value) -> Result<ValueSpec, String> {
    let wrong =
        || "'$weighted' takes a map of values to weights, or a list of {value, weight}".to_owned();
    let pairs: Vec<(Value, f64)> = match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, weight)| Some((Value::String(key), weight.as_f64()?)))
            .collect::<Option<_>>(),
        Value::Array(items) => items
            .into_iter()
            .map(|item| Some((item.get("value")?.clone(), item.get("weight")?.as_f64()?)))
            .collect::<Option<_>>(),
        _ => None,
    }
    .ok_or_else(wrong)?;
    let total: f64 = pairs.iter().map(|(_, weight)| *weight).sum();
    if pairs.iter().any(|(_, weight)| *weight < 0.0) || total <= 0.0 || !total.is_finite() {
        return Err("'$weighted' takes weights that are not negative and not all zero".to_owned());
    }
    Ok(ValueSpec::Weighted(pairs))
}

impl<'de> Deserialize<'de> for ValueSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(value).map_err(D::Error::custom)
    }
}

/// A distribution prepared for one group.
#[derive(Debug, Clone)]
pub(crate) enum Generator {
    Constant(Value),
    /// Values, each with the upper end of the value's share of devices.
    Shares {
        values: Vec<(f64, Value)>,
        order: Permutation,
    },
    Cycle(Vec<Value>),
    Range {
        from: i64,
        width: u64,
        key: u64,
    },
    Sequence(i64),
    Text {
        pattern: Pattern,
        first: u64,
    },
    Object(Vec<(String, Generator)>),
}

impl Generator {
    /// Prepares `spec` for a group of `count` devices, starting with the number `first`.
    pub(crate) fn new(spec: &ValueSpec, count: u32, first: u64, key: u64) -> Self {
        match spec {
            ValueSpec::Constant(value) => Self::Constant(value.clone()),
            ValueSpec::Choice(values) => {
                let weights = values.iter().map(|value| (value.clone(), 1.0));
                Self::shares(weights.collect(), Permutation::new(count, key))
            }
            ValueSpec::Weighted(pairs) => Self::shares(pairs.clone(), Permutation::new(count, key)),
            ValueSpec::Cycle(values) => Self::Cycle(values.clone()),
            ValueSpec::Range(from, to) => Self::Range {
                from: *from,
                width: to.abs_diff(*from).saturating_add(1),
                key,
            },
            ValueSpec::Sequence(start) => Self::Sequence(*start),
            ValueSpec::Text(text) => match Pattern::parse(text) {
                Ok(pattern) => Self::Text { pattern, first },
                // Files are checked on reading; a spec built in code may hold any text.
                Err(_) => Self::Constant(Value::String(text.clone())),
            },
            ValueSpec::Object(fields) => Self::Object(
                fields
                    .iter()
                    .map(|(name, spec)| {
                        let key = mix(key ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes()));
                        (name.clone(), Self::new(spec, count, first, key))
                    })
                    .collect(),
            ),
        }
    }

    fn shares(pairs: Vec<(Value, f64)>, order: Permutation) -> Self {
        let total: f64 = pairs.iter().map(|(_, weight)| *weight).sum();
        let mut end = 0.0;
        let values = pairs
            .into_iter()
            .map(|(value, weight)| {
                end += weight / total;
                (end, value)
            })
            .collect();
        Self::Shares { values, order }
    }

    /// Returns the value for the device at `position` in the group.
    #[inline]
    pub(crate) fn value(&self, position: u32) -> Cow<'_, Value> {
        match self {
            Self::Constant(value) => Cow::Borrowed(value),
            Self::Shares { values, order } => {
                let share = order.share(position);
                let found = values
                    .iter()
                    .find(|(end, _)| share < *end)
                    .or(values.last());
                found.map_or(Cow::Owned(Value::Null), |(_, value)| Cow::Borrowed(value))
            }
            Self::Cycle(values) => Cow::Borrowed(&values[position as usize % values.len()]),
            Self::Range { from, width, key } => {
                let offset = mix(key ^ u64::from(position)) % width;
                Cow::Owned(Value::from(from.wrapping_add_unsigned(offset)))
            }
            Self::Sequence(start) => {
                Cow::Owned(Value::from(start.saturating_add(i64::from(position))))
            }
            Self::Text { pattern, first } => {
                Cow::Owned(Value::String(pattern.text(first + u64::from(position))))
            }
            Self::Object(_) => Cow::Owned(Value::Object(self.object(position))),
        }
    }

    /// Returns the fields of an object for one device, without missing properties.
    pub(crate) fn object(&self, position: u32) -> Map<String, Value> {
        let Self::Object(fields) = self else {
            return Map::new();
        };
        fields
            .iter()
            .map(|(name, field)| (name.clone(), field.value(position).into_owned()))
            .filter(|(_, value)| !value.is_null())
            .collect()
    }

    /// Returns the generator at `path`, if any.
    pub(crate) fn at(&self, path: &[String]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        let Self::Object(fields) = self else {
            return None;
        };
        fields
            .iter()
            .find(|(name, _)| name == first)
            .and_then(|(_, field)| field.at(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(json: &str, count: u32) -> Result<Generator, String> {
        let spec = ValueSpec::from_value(serde_json::from_str(json).unwrap())?;
        Ok(Generator::new(&spec, count, 0, 99))
    }

    #[test]
    fn weights_give_exact_device_counts() {
        let region = generator(r#"{"$weighted":{"eu":70,"us":30}}"#, 1000).unwrap();
        let eu = (0..1000).filter(|i| *region.value(*i) == "eu").count();
        assert_eq!(eu, 700);
    }

    #[test]
    fn every_distribution_gives_a_value() {
        let all = r#"{"a":1,"b":{"$cycle":["x","y"]},"c":{"$range":[5,6]},"d":{"$sequence":100},
            "e":{"$text":"s-{index/2:02}"},"f":{"g":{"$choice":[true]}},"h":{"$choice":[null]}}"#;
        let value = generator(all, 10).unwrap().value(3).into_owned();
        let floor = value["c"].as_i64().unwrap();
        assert!((5..=6).contains(&floor));
        assert_eq!(
            value,
            serde_json::json!({"a":1,"b":"y","c":floor,"d":103,"e":"s-01","f":{"g":true}})
        );
    }

    #[test]
    fn generator_errors_name_the_problem() {
        for (json, expected) in [
            (r#"{"$pick":[1]}"#, "$pick"),
            (r#"{"$choice":[]}"#, "at least one"),
            (r#"{"$range":[2,1]}"#, "smaller first"),
            (r#"{"$weighted":{"a":0}}"#, "all zero"),
            (r#"{"$choice":[1],"x":2}"#, "no other key"),
            (r#"{"$text":"{nope}"}"#, "{nope}"),
        ] {
            let error = generator(json, 1).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
