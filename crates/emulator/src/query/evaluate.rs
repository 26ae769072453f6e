//! Evaluates conditions on one device's values. An undefined comparison is neither true nor false.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::tree::{Comparison, Condition, Operand, Operator};

/// A value read for one device; `None` if the device has no such property.
pub(crate) type Found<'a> = Option<Cow<'a, Value>>;

/// Whether the condition holds; `None` if undefined. `get` returns the value of a query path.
pub(crate) fn holds<'a>(
    condition: &'a Condition,
    get: &impl Fn(usize) -> Found<'a>,
) -> Option<bool> {
    match condition {
        Condition::And(left, right) => match holds(left, get) {
            Some(false) => Some(false),
            left => match (left, holds(right, get)) {
                (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
        },
        Condition::Or(left, right) => match holds(left, get) {
            Some(true) => Some(true),
            left => match (left, holds(right, get)) {
                (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        },
        Condition::Not(inner) => holds(inner, get).map(|truth| !truth),
        Condition::Compare(left, comparison, right) => {
            compare(&*value(left, get)?, *comparison, &*value(right, get)?)
        }
        Condition::In {
            operand,
            values,
            negated,
        } => {
            let found = value(operand, get)?;
            Some(values.iter().any(|value| equal(&found, value)) != *negated)
        }
        Condition::IsDefined(path) => Some(get(*path).is_some()),
        Condition::StartsWith(text, part) => Some(
            value(text, get)?
                .as_str()?
                .starts_with(value(part, get)?.as_str()?),
        ),
        Condition::EndsWith(text, part) => Some(
            value(text, get)?
                .as_str()?
                .ends_with(value(part, get)?.as_str()?),
        ),
    }
}

fn value<'a>(operand: &'a Operand, get: &impl Fn(usize) -> Found<'a>) -> Found<'a> {
    match operand {
        Operand::Literal(value) => Some(Cow::Borrowed(value)),
        Operand::Path(path) => get(*path),
        Operand::Arithmetic(first, rest) => {
            let mut result = value(first, get)?.into_owned();
            for (operator, operand) in rest {
                result = calculate(&result, *operator, &*value(operand, get)?)?.into_owned();
            }
            Some(Cow::Owned(result))
        }
    }
}

/// Applies an operator. The result is an integer if both values are integers and the result is
/// exact. The result is undefined for values other than numbers, and for operations without a
/// result.
fn calculate(left: &Value, operator: Operator, right: &Value) -> Found<'static> {
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        let exact = match operator {
            Operator::Add => left.checked_add(right),
            Operator::Subtract => left.checked_sub(right),
            Operator::Multiply => left.checked_mul(right),
            Operator::Divide if left.checked_rem(right) == Some(0) => left.checked_div(right),
            Operator::Divide => None,
            Operator::Remainder => left.checked_rem(right),
        };
        if let Some(exact) = exact {
            return Some(Cow::Owned(exact.into()));
        }
    }
    let (left, right) = (left.as_f64()?, right.as_f64()?);
    let result = match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::Remainder => left % right,
    };
    serde_json::Number::from_f64(result).map(|number| Cow::Owned(Value::Number(number)))
}

fn compare(left: &Value, comparison: Comparison, right: &Value) -> Option<bool> {
    let ordered = |predicate: fn(Ordering) -> bool| order(left, right).map(predicate);
    match comparison {
        Comparison::Equal => Some(equal(left, right)),
        Comparison::NotEqual => Some(!equal(left, right)),
        Comparison::Less => ordered(Ordering::is_lt),
        Comparison::Greater => ordered(Ordering::is_gt),
        Comparison::LessOrEqual => ordered(Ordering::is_le),
        Comparison::GreaterOrEqual => ordered(Ordering::is_ge),
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(_), Value::Number(_)) => order(left, right) == Some(Ordering::Equal),
        _ => left == right,
    }
}

pub(super) fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => Some(left.cmp(&right)),
            _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
        },
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tree::Query;
    use super::*;

    fn check(condition: &str, twin: &Value) -> Option<bool> {
        let query = Query::parse(&format!("SELECT * FROM devices WHERE {condition}")).unwrap();
        let get = |path: usize| {
            query.paths[path]
                .iter()
                .try_fold(twin, |value, name| value.get(name))
                .map(Cow::Borrowed)
        };
        holds(query.condition.as_ref().unwrap(), &get)
    }

    #[test]
    fn conditions_come_out_as_documented() {
        let twin = json!({"deviceId": "fridge-1", "tags": {"a": "x", "n": 5, "t": true}});
        for (condition, expected) in [
            ("tags.a = 'x'", Some(true)),
            ("tags.a = 'X'", Some(false)),
            ("tags.n = 5.0", Some(true)),
            ("tags.n > 4 AND tags.n <= 5", Some(true)),
            ("tags.n < 'x'", None),
            ("tags.a = 5", Some(false)),
            ("tags.missing = 1", None),
            ("NOT tags.missing = 1", None),
            ("tags.missing != 1", None),
            ("tags.missing = 1 OR tags.t = true", Some(true)),
            ("tags.missing = 1 AND tags.t = false", Some(false)),
            ("NOT IS_DEFINED(tags.missing)", Some(true)),
            ("tags.a IN ['y', 'x']", Some(true)),
            ("tags.a NIN ['y', 'x']", Some(false)),
            ("tags.missing NIN ['y']", None),
            (
                "STARTSWITH(deviceId, 'fri') AND ENDSWITH(deviceId, '-1')",
                Some(true),
            ),
            ("STARTSWITH(tags.n, '5')", None),
            ("tags.a = 'y' OR tags.a = 'x' AND tags.n = 5", Some(true)),
            ("tags.n + 1 = 6", Some(true)),
            ("1 + 2 * 3 - 4 = 3", Some(true)),
            ("(1 + 2) * 3 = 9", Some(true)),
            ("10 - 3 - 2 = tags.n", Some(true)),
            ("tags.n -1 = 4 AND tags.n - -1 = 6", Some(true)),
            ("tags.n / 2 = 2.5 AND tags.n % 3 = 2", Some(true)),
            ("-7 % 3 = -1 AND 7.5 % 2 = 1.5 AND 8 / 2 = 0x4", Some(true)),
            ("((tags.n)) > (4) AND (tags.n % 2) IN [1]", Some(true)),
            ("(tags.n > 4) AND ((tags.a = 'x'))", Some(true)),
            ("tags.n / 0 = 1", None),
            ("tags.n % 0 = 1", None),
            ("tags.a + 1 = 2", None),
            ("tags.missing * 0 = 0", None),
            ("9223372036854775807 + 1 > 9.2e18", Some(true)),
            ("-9223372036854775807 - 2 < 0", Some(true)),
        ] {
            assert_eq!(check(condition, &twin), expected, "{condition}");
        }
    }
}
