//! Pages of answers, written by devices into the twins.

#![no_main]

use serde_json::Value;
use twincast_core::answer::outcome_of;
use twincast_hub_adapter::fuzzing::answers;

twincast_fuzz::bytes!(|page| {
    let page = String::from_utf8_lossy(page);
    let Some(answers) = answers(&page) else {
        return;
    };
    for answer in &answers {
        let error = &answer.error;
        assert!(error.code.chars().count() <= 65 && error.text.chars().count() <= 257);
        assert!(!error.to_string().contains(char::is_control), "{error}");
        assert_ne!(error.number(), 0);
        _ = outcome_of(&answer.state);
    }
    // Every row with an id in a valid page is an answer.
    if let Ok(rows) = serde_json::from_str::<Vec<Value>>(&page) {
        let with_id = rows.iter().filter(|row| row["id"].is_string());
        assert_eq!(with_id.count(), answers.len());
    }
});
