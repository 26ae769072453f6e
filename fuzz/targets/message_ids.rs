//! The ids of messages.

#![no_main]

use twincast_core::ids::{Attempt, BatchId, RolloutId, RolloutName, StageIndex};
use twincast_core::message::MessageId;

twincast_fuzz::text!(|text: &str| {
    if let Ok(id) = text.parse::<MessageId>() {
        assert_eq!(id.to_string(), text, "two texts for one id");
        assert!(text.len() <= 128);
    }
    if let Ok(rollout) = RolloutName::new(text) {
        let number = hash(text);
        let id = MessageId {
            id: RolloutId(u64::from(number) << (number % 33)),
            stage: StageIndex((number >> 7) as u16),
            batch: BatchId(number),
            index: number.rotate_left(9),
            attempt: Attempt((number >> 16) as u16),
            rollout,
        };
        let text = id.to_string();
        assert!(text.len() <= MessageId::longest(&id.rollout));
        assert_eq!(text.parse(), Ok(id));
    }
});

/// Returns a number computed from a text.
fn hash(text: &str) -> u32 {
    text.bytes().fold(2_166_136_261, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(16_777_619)
    })
}
