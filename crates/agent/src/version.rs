//! Device versions, compared like semantic versions. The order is total over all texts.

use std::cmp::Ordering;

/// The longest version, in characters.
pub const MAX_CHARS: usize = 64;

/// Returns whether a text is a version: 1 to [`MAX_CHARS`] visible ASCII characters.
#[must_use]
pub fn is_version(text: &str) -> bool {
    (1..=MAX_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns whether a text is a version beginning with a number, perhaps after a `v`. Only such
/// versions have a useful order.
#[must_use]
pub fn is_numbered(text: &str) -> bool {
    let numbers = split(text).0;
    is_version(text) && numbers.starts_with(|first: char| first.is_ascii_digit())
}

/// Compares two versions by the rules of semantic versions with any number of parts. `1.2` equals
/// `1.2.0`, a leading `v` and the text after a `+` do not count, and a version with a `-` precedes
/// the version without.
#[must_use]
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left, left_pre) = split(left);
    let (right, right_pre) = split(right);
    parts(left, right, "0").then_with(|| match (left_pre, right_pre) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(left), Some(right)) => parts(left, right, ""),
    })
}

/// Splits a version into the numbers and the text after the `-`.
fn split(version: &str) -> (&str, Option<&str>) {
    let version = version.split('+').next().unwrap_or(version);
    let version = version.strip_prefix(['v', 'V']).unwrap_or(version);
    match version.split_once('-') {
        Some((numbers, pre)) => (numbers, Some(pre)),
        None => (version, None),
    }
}

/// Compares part by part. `missing` stands for the missing parts of the shorter version.
fn parts(left: &str, right: &str, missing: &str) -> Ordering {
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (left, right) => part(left.unwrap_or(missing), right.unwrap_or(missing)),
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Compares two parts. An empty part precedes numbers, and numbers precede words. Numbers may have
/// any length.
fn part(left: &str, right: &str) -> Ordering {
    let rank = |text: &str| match text {
        "" => 0,
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => 1,
        _ => 2,
    };
    rank(left).cmp(&rank(right)).then_with(|| match rank(left) {
        1 => {
            let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        }
        _ => left.cmp(right),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn order() {
        let rising = [
            "",
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "1.2",
            "1.10",
            "2",
            "2.0.0.1",
            "2024.11.30",
            "99999999999999999999999999",
            "build",
        ];
        for (at, left) in rising.iter().enumerate() {
            for (other, right) in rising.iter().enumerate() {
                assert_eq!(compare(left, right), at.cmp(&other), "{left:?} {right:?}");
            }
        }
        for (left, right) in [
            ("1.2", "1.2.0"),
            ("v1.4.2", "1.4.2"),
            ("1.0+a", "1.0+b"),
            ("01.2", "1.2"),
        ] {
            assert_eq!(compare(left, right), Ordering::Equal, "{left:?} {right:?}");
        }
    }

    proptest! {
        #[test]
        fn is_an_order(versions in prop::collection::vec("[v0-2a.+-]{0,6}", 3)) {
            let [a, b, c] = [&versions[0], &versions[1], &versions[2]];
            prop_assert_eq!(compare(a, a), Ordering::Equal);
            prop_assert_eq!(compare(a, b), compare(b, a).reverse());
            if compare(a, b).is_le() && compare(b, c).is_le() {
                prop_assert!(compare(a, c).is_le());
            }
        }
    }
}
