//! A failure as a user meets it: one message that names the place and what to do, and the
//! documented exit code.

use super::{Ended, Room};

/// The command must fail with this code and these words, for people and for machines alike, and
/// without a trace of the program's inside.
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
    let told = format!(
        "{}\n{}",
        error["message"].as_str().expect("a message"),
        error["hint"].as_str().unwrap_or_default()
    );
    for word in words {
        assert!(
            told.contains(word) || json.stderr.contains(word),
            "{word:?} is missing: {json}"
        );
    }
}

/// Nothing that only a programmer understands.
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
            assert!(!text.contains(inside), "{inside:?} shows: {ended}");
        }
    }
}
