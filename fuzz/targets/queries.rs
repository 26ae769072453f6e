//! Queries as text: the emulator's parser, and the evaluation over a few devices.

#![no_main]

use std::sync::LazyLock;

use twincast_emulator::fuzzing::Hub;
use twincast_emulator::{Fleet, HubConfig};

const FLEET: &str = r#"
groups:
  - count: 3
    id: "a-{index}"
    tags:
      region: { $cycle: [north, south] }
      floor: { $cycle: [1, 2.5, 3] }
      site: { name: "o'hare", open: true }
  - count: 2
    id: "b-{index}"
    reported: { version: "1.4", load: 7 }
"#;

static HUB: LazyLock<Hub> = LazyLock::new(|| {
    let fleet = Fleet::from_yaml(FLEET).expect("the fleet is sound");
    Hub::new(HubConfig::with_fleet(fleet))
});

twincast_fuzz::text!(|text: &str| match HUB.query(text, 2) {
    Ok((rows, _)) => assert!(rows.len() <= 2, "{} rows", rows.len()),
    Err((position, problem)) => {
        assert!(position <= text.chars().count().max(8192) + 1, "{position}");
        assert!(!problem.is_empty());
    }
});
