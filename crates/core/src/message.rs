//! The message of a rollout, and the message ids.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twincast_hub_limits::{MAX_ENCODED_ID_BYTES, MessageSize, property};

use crate::ids::{
    Attempt, BatchId, DeviceId, RolloutId, RolloutName, StageIndex, base36, from_base36,
};

/// The lifetime of a message without a configured time to live: the default of the hub
/// (`iot-hub-devguide-messages-c2d`).
pub const TTL: Duration = Duration::from_secs(3600);

/// Which feedback the hub is asked to give on a message (`iothub-ack`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// No feedback.
    #[default]
    None,
    /// Feedback when the device completes the message.
    Positive,
    /// Feedback when the message expires, is rejected, or cannot be delivered.
    Negative,
    /// Both.
    Full,
}

/// The content of a rollout's messages. All devices get the same content, so it is shared and never
/// copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The body, at most 64 KiB together with properties and ids.
    pub body: Bytes,
    /// For example `application/json`.
    pub content_type: Option<String>,
    /// For example `utf-8`.
    pub content_encoding: Option<String>,
    /// Application properties, in the order in which they were written.
    pub properties: Vec<(String, String)>,
    /// How long the hub keeps the message for an absent device, from the send on. `None` means the
    /// hub's own default (1 hour unless the hub is configured otherwise).
    pub ttl: Option<Duration>,
    /// The requested feedback.
    pub ack: Ack,
}

impl Content {
    /// Returns the [`size`](Self::size) for the longest device id.
    #[must_use]
    pub fn largest(&self, rollout: &RolloutName) -> usize {
        self.size(rollout, MAX_ENCODED_ID_BYTES)
    }

    /// Returns the upper bound of the message's size, as counted against the hub's limit, for a
    /// rollout with this name. `device_id` is the length of the percent-encoded device id, in
    /// bytes.
    #[must_use]
    pub fn size(&self, rollout: &RolloutName, device_id: usize) -> usize {
        let length = |field: &Option<String>| field.as_ref().map(String::len);
        let properties = self.properties.iter();
        let size = MessageSize {
            device_id,
            message_id: MessageId::longest(rollout),
            correlation_id: None,
            content_type: length(&self.content_type),
            content_encoding: length(&self.content_encoding),
            properties: properties.map(|(k, v)| property(k.len(), v.len())).sum(),
            ack: (self.ack != Ack::None).then_some("positive".len()),
            body: self.body.len(),
        };
        size.encoded()
    }
}

/// The deterministic id of one message. A device can recognise a repeated message (after a crash)
/// by the id, and a feedback record leads to its device without a look-up table.
///
/// The form is `<rollout>.<id>.<stage>.<batch>.<index>.<attempt>`, with the numbers in base 36: at
/// most 104 of the 128 characters allowed by the hub. The [id](RolloutId) distinguishes rollouts of
/// the same name, so a device dropping repeated messages never mistakes a message of one rollout
/// for a message of the other. The ids of a stage, and of a batch, share a [prefix](Self::prefix);
/// by the prefix, a hub counts the devices with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageId {
    /// The rollout.
    pub rollout: RolloutName,
    /// The id of the rollout.
    pub id: RolloutId,
    /// The stage.
    pub stage: StageIndex,
    /// The batch.
    pub batch: BatchId,
    /// The device's position in the batch's manifest.
    pub index: u32,
    /// The attempt.
    pub attempt: Attempt,
}

impl MessageId {
    /// Returns the length of the longest message id of a rollout.
    #[must_use]
    pub fn longest(rollout: &RolloutName) -> usize {
        let longest = Self {
            rollout: rollout.clone(),
            id: RolloutId(u64::MAX),
            stage: StageIndex(u16::MAX),
            batch: BatchId(u32::MAX),
            index: u32::MAX,
            attempt: Attempt(u16::MAX),
        };
        longest.to_string().len()
    }

    /// Returns the common prefix of the message ids of a stage, ending with a dot.
    #[must_use]
    pub fn prefix(rollout: &RolloutName, id: RolloutId, stage: StageIndex) -> String {
        format!("{rollout}.{id}.{}.", base36(stage.0.into()))
    }

    /// Returns the common prefix of the message ids of a batch, ending with a dot.
    #[must_use]
    pub fn batch_prefix(
        rollout: &RolloutName,
        id: RolloutId,
        (stage, batch): (StageIndex, BatchId),
    ) -> String {
        let prefix = Self::prefix(rollout, id, stage);
        format!("{prefix}{}.", base36(batch.0.into()))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rollout, id) = (&self.rollout, self.id);
        let stage = base36(self.stage.0.into());
        let batch = base36(self.batch.0.into());
        let index = base36(self.index.into());
        let attempt = base36(self.attempt.0.into());
        write!(f, "{rollout}.{id}.{stage}.{batch}.{index}.{attempt}")
    }
}

/// A text that is not a Twincast message id: the message belongs to another application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a message id of Twincast")]
pub struct ForeignMessageId;

impl FromStr for MessageId {
    type Err = ForeignMessageId;

    /// Parses a message id. The rollout's name may contain dots, so the numbers are taken from the
    /// end.
    fn from_str(text: &str) -> Result<Self, ForeignMessageId> {
        let mut parts = text.rsplitn(6, '.');
        let mut number = || parts.next().and_then(from_base36).ok_or(ForeignMessageId);
        let (attempt, index, batch) = (number()?, number()?, number()?);
        let (stage, id) = (number()?, number()?);
        let rollout = parts.next().ok_or(ForeignMessageId)?;
        let narrow = |number: u64| u32::try_from(number).map_err(|_| ForeignMessageId);
        let short = |number: u64| u16::try_from(number).map_err(|_| ForeignMessageId);
        Ok(Self {
            rollout: RolloutName::new(rollout).map_err(|_| ForeignMessageId)?,
            id: RolloutId(id),
            stage: StageIndex(short(stage)?),
            batch: BatchId(narrow(batch)?),
            index: narrow(index)?,
            attempt: Attempt(short(attempt)?),
        })
    }
}

/// A message to one device, ready to be sent.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// The device.
    pub device: DeviceId,
    /// The message id, see [`MessageId`].
    pub id: String,
    /// The content; shared by the whole rollout.
    pub content: std::sync::Arc<Content>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_read_back(
            name in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
            id in any::<u64>(), stage in any::<u16>(), batch in any::<u32>(), index in any::<u32>(), attempt in any::<u16>(),
        ) {
            let id = MessageId {
                rollout: RolloutName::new(name).unwrap(),
                id: RolloutId(id),
                stage: StageIndex(stage),
                batch: BatchId(batch), index, attempt: Attempt(attempt),
            };
            let text = id.to_string();
            prop_assert!(text.len() <= MessageId::longest(&id.rollout));
            prop_assert!(text.starts_with(&MessageId::prefix(&id.rollout, id.id, id.stage)));
            let of_batch = MessageId::batch_prefix(&id.rollout, id.id, (id.stage, id.batch));
            prop_assert!(text.starts_with(&of_batch));
            prop_assert_eq!(text.parse::<MessageId>().unwrap(), id);
        }
    }

    #[test]
    fn the_longest_id_fits_a_message() {
        let rollout = RolloutName::new("a".repeat(64)).unwrap();
        assert_eq!(MessageId::longest(&rollout), 104);
    }

    #[test]
    fn foreign_message_ids_are_refused() {
        for text in [
            "",
            "a",
            "a.1.2.3.4",
            ".0.0.1.2.3",
            "a.0.0.01.2.3",
            "a.0.0.1.2.X",
            "a.0.0.1..3",
            "a.0.0.+1.2.3",
            "a.0.zzzz.1.1.1",
            "a.0.0.zzzzzzz.1.1",
            "a.zzzzzzzzzzzzz.0.1.1.1",
            "2f1c9a52-5f5e-4b0c-9f43-0e2f4cf9f5a1",
            "a.0.0.1.2.zzzz",
        ] {
            assert_eq!(text.parse::<MessageId>(), Err(ForeignMessageId), "{text}");
        }
    }
}
