//! Messages on `$cbs`: answers to the client, and requests to the emulator. The client reads the
//! emulator's answers.

#![no_main]

use std::sync::LazyLock;

use twincast_emulator::HubConfig;
use twincast_emulator::fuzzing::Hub;
use twincast_iothub::fuzzing::{message, status};

static HUB: LazyLock<Hub> = LazyLock::new(|| Hub::new(HubConfig::default()));

twincast_fuzz::bytes!(|payload| {
    if let Some(Ok(answer)) = message(payload) {
        let (_, description) = status(&answer);
        assert!(description.len() <= 1024 + 4);
    }
    let answer = HUB.put_token(payload);
    if message(payload).is_some() {
        let answer = message(&answer).expect("the answer is a message");
        let (status, _) = status(&answer.expect("the answer decodes"));
        assert!(matches!(status, Some(200 | 400 | 401)), "{status:?}");
    }
});
