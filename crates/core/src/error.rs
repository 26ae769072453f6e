//! Errors as human-readable text.

use std::error::Error;

/// Returns an error with its causes in one line, without the error codes of the operating system.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(": ");
        words.push_str(&error.to_string());
        source = error.source();
    }
    without_os_codes(&words)
}

/// Removes the error codes of the operating system, as appended by the standard library: ` (os
/// error 2)`.
#[must_use]
pub fn without_os_codes(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    let mut rest = words;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        out.push_str(before);
        match after.split_once(')') {
            Some((code, after)) if code.bytes().all(|b| b.is_ascii_digit()) => rest = after,
            _ => {
                out.push_str(" (os error ");
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_system_are_left_out() {
        for (text, expected) in [
            (
                "a: No such file or directory (os error 2)",
                "a: No such file or directory",
            ),
            ("x (os error 111): y (os error 2)!", "x: y!"),
            ("x (os error x) (os error ", "x (os error x) (os error "),
            ("", ""),
        ] {
            assert_eq!(without_os_codes(text), expected);
        }
    }
}
