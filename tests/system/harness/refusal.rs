//! A failure as shown to a user: a single message with the place and the advice, and the documented
//! exit code.

use super::{Ended, Room};

/// Asserts that the command fails with this code and these words, as text and as JSON, without
/// exposing the program's internals.
#[track_caller]
pub(crate) fn assert_refused(room: &Room, arguments: &[&str], code: i32, words: &[&str]) {
    let plain = room.run(arguments).expect(code).says(words);
    assert_tidy(&plain);
    assert_eq!(plain.stdout, "", "a failure has no result: {plain}");
    assert_eq!(
        plain.stderr.matches("error: ").count(),
        1,
        "one message: {plain}"
    );
    let mut json = vec!["--json"];
    json.extend(arguments);
    let json = room.run(&json).expect(code);
    assert_tidy(&json);
    let error = &json.json()["error"];
    assert_eq!(error["exit_code"], code, "{json}");
    let printed = format!(
        "{}\n{}",
        error["message"].as_str().expect("a message"),
        error["hint"].as_str().unwrap_or_default()
    );
    for word in words {
        assert!(
            printed.contains(word) || json.stderr.contains(word),
            "{word:?} is missing: {json}"
        );
    }
}

/// Asserts that the output exposes no internals of the program.
#[track_caller]
pub(crate) fn assert_tidy(ended: &Ended) {
    for text in [&ended.stdout, &ended.stderr] {
        for inside in [
            "panicked",
            "backtrace",
            "src/",
            "unwrap",
            "Err(",
            "Error {",
            "Some(",
        ] {
            assert!(!text.contains(inside), "the output has {inside:?}: {ended}");
        }
    }
}
