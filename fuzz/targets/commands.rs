//! Commands, in the format of the queue.

#![no_main]

use twincast_fuzz::split_mode;
use twincast_orchestrator::command::Command;

twincast_fuzz::bytes!(|input| {
    let (mode, body) = split_mode(input);
    let text = String::from_utf8_lossy(body);
    let content_type = (mode == 1).then_some(&*text);
    let command = match Command::read(body, content_type) {
        Ok(command) => command,
        Err(refusal) => {
            assert!(!refusal.error.is_empty());
            return;
        }
    };
    let json = serde_json::to_vec(&command).expect("a command can be written");
    assert_eq!(Command::read(&json, None).as_ref(), Ok(&command));
    _ = command.attribution();
    assert!(!command.reason_text().is_empty() || command.reason.is_some());
    if command.spec.is_some() {
        match command.spec() {
            Ok(spec) => assert_eq!(spec.problems(), []),
            Err(refusal) => assert!(!refusal.details.is_empty()),
        }
    }
});
