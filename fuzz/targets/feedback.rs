//! Feedback: whole messages, and the JSON in the messages.

#![no_main]

use twincast_fuzz::split_mode;
use twincast_iothub::fuzzing::{feedback, message, records, refusal};

twincast_fuzz::bytes!(|input| {
    let (mode, rest) = split_mode(input);
    match mode % 3 {
        0 => {
            if let Some(Ok(message)) = message(rest) {
                let (body, _) = feedback(&message);
                read(&body);
            }
        }
        1 => read(rest),
        _ => {
            let (text, error) = refusal(&String::from_utf8_lossy(rest));
            assert!(text.len() <= 1024 + 4, "a text of {} bytes", text.len());
            assert!(error.len() <= 4 * 1100, "an error of {} bytes", error.len());
        }
    }
});

fn read(body: &[u8]) {
    let Ok((records, unreadable)) = records(body) else {
        return;
    };
    let elements: Vec<serde_json::Value> = serde_json::from_slice(body).expect("it was read");
    assert_eq!(elements.len(), records.len() + unreadable.len());
    for record in &records {
        assert!(record.status.to_string().len() <= 1024 + 4);
    }
    for odd in &unreadable {
        assert!(odd.raw.len() <= 1024 + 4);
        assert!(!odd.error.to_string().is_empty());
    }
}
