//! Texts containing the device's number: `fridge-{index:06}`, `site-{index/100:04}`.

use std::fmt::Write as _;

/// A text with placeholders for the device's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Number { operation: Operation, width: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Plain,
    Divide(u64),
    Remainder(u64),
}

impl Pattern {
    /// Reads a pattern.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (inside, after) = after
                .split_once('}')
                .ok_or_else(|| format!("'{text}' has a '{{' without a '}}'"))?;
            parts.push(placeholder(inside).ok_or_else(|| {
                format!(
                    "unknown placeholder '{{{inside}}}' in '{text}'; allowed, for example: {{index}}, {{index:06}}, {{index/100}}, {{index%100}}"
                )
            })?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Returns the text for number `index`.
    pub(crate) fn text(&self, index: u64) -> String {
        let mut text = String::with_capacity(24);
        for part in &self.parts {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Number { operation, width } => {
                    let number = match operation {
                        Operation::Plain => index,
                        Operation::Divide(by) => index / by,
                        Operation::Remainder(by) => index % by,
                    };
                    // Writing to a string cannot fail.
                    let _ = write!(text, "{number:0width$}");
                }
            }
        }
        text
    }
}

fn placeholder(inside: &str) -> Option<Part> {
    let (expression, width) = match inside.split_once(':') {
        None => (inside, 0),
        Some((expression, width)) => {
            let width: usize = width.strip_prefix('0')?.parse().ok()?;
            (expression, (width <= 20).then_some(width)?)
        }
    };
    let rest = expression.trim().strip_prefix("index")?;
    let by = |text: &str| text.parse().ok().filter(|by| *by > 0);
    let operation = match rest.chars().next() {
        None => Operation::Plain,
        Some('/') => Operation::Divide(by(&rest[1..])?),
        Some('%') => Operation::Remainder(by(&rest[1..])?),
        Some(_) => return None,
    };
    Some(Part::Number { operation, width })
}

/// A pattern for device ids, for formatting and parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdPattern {
    pub(crate) prefix: String,
    pub(crate) suffix: String,
    width: usize,
}

impl IdPattern {
    /// Reads a pattern with exactly one placeholder, for the unmodified device number.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let pattern = Pattern::parse(text)?;
        let texts = |parts: &[Part]| match parts {
            [] => Some(String::new()),
            [Part::Text(fixed)] => Some(fixed.clone()),
            _ => None,
        };
        let at = pattern
            .parts
            .iter()
            .position(|part| {
                matches!(
                    part,
                    Part::Number {
                        operation: Operation::Plain,
                        ..
                    }
                )
            })
            .ok_or_else(|| {
                format!("the id '{text}' has no placeholder for the number, such as {{index:06}}")
            })?;
        let width = match pattern.parts[at] {
            Part::Number { width, .. } => width,
            Part::Text(_) => 0,
        };
        let prefix = texts(&pattern.parts[..at]);
        let suffix = texts(&pattern.parts[at + 1..]);
        match (prefix, suffix) {
            (Some(prefix), Some(suffix)) => Ok(Self {
                prefix,
                suffix,
                width,
            }),
            _ => Err(format!(
                "the id '{text}' has more than one placeholder for a number"
            )),
        }
    }

    /// Returns the id for number `index`.
    pub(crate) fn id(&self, index: u64) -> String {
        let Self {
            prefix,
            suffix,
            width,
        } = self;
        format!("{prefix}{index:0width$}{suffix}")
    }

    /// Returns the number for an id, if the id matches the pattern.
    #[inline]
    pub(crate) fn index(&self, id: &str) -> Option<u64> {
        let digits = id
            .strip_prefix(self.prefix.as_str())?
            .strip_suffix(self.suffix.as_str())?;
        let fits =
            digits.len() == self.width || (digits.len() > self.width && !digits.starts_with('0'));
        let zero = self.width == 0 && digits == "0";
        if digits.is_empty() || !(fits || zero) || !digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            return None;
        }
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_convert_to_ids_and_back() {
        let pattern = IdPattern::parse("fridge-{index:06}x").unwrap();
        assert_eq!(pattern.id(17), "fridge-000017x");
        assert_eq!(pattern.id(1_234_567), "fridge-1234567x");
        assert_eq!(pattern.index("fridge-000017x"), Some(17));
        assert_eq!(pattern.index("fridge-1234567x"), Some(1_234_567));
        for wrong in [
            "fridge-17x",
            "fridge-0000017x",
            "fridge-000017",
            "Fridge-000017x",
            "fridge-x",
            "fridge-00a017x",
        ] {
            assert_eq!(pattern.index(wrong), None, "{wrong}");
        }
        let plain = IdPattern::parse("d{index}").unwrap();
        assert_eq!(plain.index("d0"), Some(0));
        assert_eq!(plain.index("d00"), None);
    }

    #[test]
    fn texts_divide_and_take_remainders() {
        let pattern = Pattern::parse("s{index/100:03}-{index%7}").unwrap();
        assert_eq!(pattern.text(1234), "s012-2");
    }

    #[test]
    fn pattern_errors_name_the_problem() {
        assert!(Pattern::parse("a{index").unwrap_err().contains("without"));
        assert!(Pattern::parse("a{idx}").unwrap_err().contains("{idx}"));
        assert!(Pattern::parse("a{index/0}").is_err());
        assert!(IdPattern::parse("plain").unwrap_err().contains("no place"));
        assert!(
            IdPattern::parse("{index}{index}")
                .unwrap_err()
                .contains("more than one")
        );
    }
}
