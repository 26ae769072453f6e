//! The metrics of a gate, as written by a user.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::Problem;
use super::limits::MAX_WAIT;
use super::quantity::HumanDuration;
use crate::ids::MetricName;

/// The maximum number of metrics of a gate.
pub const MAX_METRICS: usize = 10;
/// The maximum length of a query, in characters.
pub const MAX_PROMQL_CHARS: usize = 4_096;
/// The maximum for the required and for the tolerated measurements: the rollout's record keeps each
/// of these measurements.
pub const MAX_MEASUREMENTS: u32 = 100;
/// The shortest interval between two queries of a metric.
pub const MIN_EVERY: Duration = Duration::from_secs(5);

/// A number queried from a Prometheus server, with conditions. The server is queried from the
/// stage's start until the gate has passed.
///
/// A measurement *fails* when a sample fulfils `failure`, or, without `failure`, when a number does
/// not fulfil `success`. A measurement is *not measured* when the server does not answer, or when
/// the query returns no sample or a sample that is not a number. Otherwise, a measurement
/// *succeeds* when all samples fulfil `success`, or when `success` is not given. All other
/// measurements are *inconclusive*.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// The metric's name.
    pub name: MetricName,
    /// The query in PromQL. Returns a scalar, or a vector of samples.
    #[schemars(length(max = MAX_PROMQL_CHARS))]
    pub query: String,
    /// The condition for every sample: `>= 0.99`. At least one of `success` and `failure` is
    /// needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<Condition>,
    /// The condition that no sample may fulfil: `< 0.95`. Checked first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Condition>,
    /// The interval between two queries. Default: `1m`. 5s to 90d.
    #[serde(default = "default_interval")]
    pub every: HumanDuration,
    /// The number of measurements that must succeed after the last send of the stage.
    /// Default: 5. 1 to 100.
    #[serde(default = "default_count")]
    #[schemars(range(min = 1, max = 100))]
    pub count: u32,
    /// The gate fails when more measurements than this have failed. Default: 0. 0 to 100.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub failure_limit: u32,
    /// The rollout is paused when more measurements than this were inconclusive.
    /// Default: 0. 0 to 100.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub inconclusive_limit: u32,
    /// The rollout is paused when the metric could not be measured more often than this in a row.
    /// Default: 4. 0 to 100.
    #[serde(default = "default_error_limit")]
    #[schemars(range(max = 100))]
    pub error_limit: u32,
    /// The time from the stage's start to the first query. Default: none. 90d at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<HumanDuration>,
}

fn default_interval() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}

fn default_count() -> u32 {
    5
}

fn default_error_limit() -> u32 {
    4
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `==`
    Is,
    /// `!=`
    IsNot,
    /// `>=`
    AtLeast,
    /// `>`
    Above,
}

impl Comparison {
    /// Longer signs come first, because `<` is also the beginning of `<=`.
    const ALL: [(Self, &'static str); 6] = [
        (Self::AtMost, "<="),
        (Self::Is, "=="),
        (Self::IsNot, "!="),
        (Self::AtLeast, ">="),
        (Self::Below, "<"),
        (Self::Above, ">"),
    ];

    fn sign(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(one, _)| *one == self);
        found.expect("all are listed").1
    }
}

/// The condition for a sample: a comparison and a number, written like `>= 0.99`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Condition {
    comparison: Comparison,
    with: f64,
}

/// The error for a text that is not a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a condition; write a comparison (<, <=, ==, !=, >=, >) and a number, for example \">= 0.99\""
)]
pub struct InvalidCondition(String);

impl Condition {
    /// Returns whether a sample fulfils the condition. NaN fulfils no condition.
    #[must_use]
    pub fn holds(self, sample: f64) -> bool {
        if sample.is_nan() {
            return false;
        }
        match self.comparison {
            Comparison::Below => sample < self.with,
            Comparison::AtMost => sample <= self.with,
            Comparison::Is => sample == self.with,
            Comparison::IsNot => sample != self.with,
            Comparison::AtLeast => sample >= self.with,
            Comparison::Above => sample > self.with,
        }
    }
}

impl FromStr for Condition {
    type Err = InvalidCondition;

    fn from_str(text: &str) -> Result<Self, InvalidCondition> {
        let invalid = || InvalidCondition(text.chars().take(80).collect());
        let trimmed = text.trim();
        let (comparison, rest) = Comparison::ALL
            .into_iter()
            .find_map(|(comparison, sign)| Some((comparison, trimmed.strip_prefix(sign)?)))
            .ok_or_else(invalid)?;
        let rest = rest.trim();
        // Rust also parses "inf", "nan" and "infinity", which make no sense in a comparison.
        let is_plain = rest
            .bytes()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
        let with: f64 = rest.parse().map_err(|_| invalid())?;
        if is_plain && with.is_finite() {
            Ok(Self { comparison, with })
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exact: a stored condition must be read back as the same number.
        write!(f, "{} {}", self.comparison.sign(), self.with)
    }
}

impl TryFrom<String> for Condition {
    type Error = InvalidCondition;
    fn try_from(text: String) -> Result<Self, InvalidCondition> {
        text.parse()
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> String {
        condition.to_string()
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Condition".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^\s*(<|<=|==|!=|>=|>)\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*$",
            "description": "a comparison and a number: `>= 0.99`, `< 5`",
        })
    }
}

/// Collects the problems of the metrics of the gate at `field`.
pub(super) fn check(metrics: &[Metric], field: &str, problems: &mut Vec<Problem>) {
    if metrics.len() > MAX_METRICS {
        problems.push(Problem::new(
            format!("{field}.metrics"),
            format!(
                "{} metrics are too many; at most {MAX_METRICS}",
                metrics.len()
            ),
        ));
    }
    for (index, metric) in metrics.iter().enumerate() {
        let mut wrong = |part: &str, what: String| {
            let field = format!("{field}.metrics[{index}].{part}");
            problems.push(Problem::new(field, what));
        };
        let earlier = &metrics[..index];
        if earlier.iter().any(|other| other.name == metric.name) {
            wrong("name", format!("metric {} is named twice", metric.name));
        }
        if metric.query.trim().is_empty() {
            wrong("query", "is empty".into());
        } else if metric.query.chars().count() > MAX_PROMQL_CHARS {
            let most = format!("is too long; at most {MAX_PROMQL_CHARS} characters");
            wrong("query", most);
        }
        if metric.success.is_none() && metric.failure.is_none() {
            wrong(
                "success",
                format!(
                    "is missing: metric {} has no condition; give success, failure or both",
                    metric.name
                ),
            );
        }
        if !(1..=MAX_MEASUREMENTS).contains(&metric.count) {
            wrong("count", out_of_bounds(metric.count, 1));
        }
        for (part, limit) in [
            ("failure_limit", metric.failure_limit),
            ("inconclusive_limit", metric.inconclusive_limit),
            ("error_limit", metric.error_limit),
        ] {
            if limit > MAX_MEASUREMENTS {
                wrong(part, out_of_bounds(limit, 0));
            }
        }
        if !(MIN_EVERY..=MAX_WAIT).contains(&metric.every.0) {
            let every = metric.every;
            wrong(
                "every",
                format!("{every} is out of bounds; from 5s to 90d is allowed"),
            );
        }
        if let Some(delay) = metric.initial_delay
            && delay.0 > MAX_WAIT
        {
            wrong("initial_delay", format!("{delay} is too long; at most 90d"));
        }
    }
}

fn out_of_bounds(found: u32, least: u32) -> String {
    format!("is {found}; from {least} to {MAX_MEASUREMENTS} is allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_read_write_and_hold() {
        for (text, written, holds) in [
            (">= 0.99", ">= 0.99", [false, true, true]),
            ("> 0.99", "> 0.99", [false, false, true]),
            ("<0.99", "< 0.99", [true, false, false]),
            (" <= 9.9e-1 ", "<= 0.99", [true, true, false]),
            ("==0.99", "== 0.99", [false, true, false]),
            ("!= 0.99", "!= 0.99", [true, false, true]),
        ] {
            let condition: Condition = text.parse().unwrap();
            assert_eq!(condition.to_string(), written);
            assert_eq!(written.parse::<Condition>().unwrap(), condition);
            let found = [0.95, 0.99, 1.0].map(|sample| condition.holds(sample));
            assert_eq!(found, holds, "{text}");
            assert!(!condition.holds(f64::NAN), "{text}");
        }
        let above: Condition = "> -1".parse().unwrap();
        assert!(above.holds(f64::INFINITY) && !above.holds(f64::NEG_INFINITY));
        for text in [
            "", "0.99", ">=", "> x", "=> 1", "= 1", "> 1%", "> inf", "> nan", "> 1e999", "> 1 2",
        ] {
            assert!(text.parse::<Condition>().is_err(), "{text:?}");
        }
    }
}
