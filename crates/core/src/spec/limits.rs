//! Bounds of what a spec may say.

use std::time::Duration;

/// The largest message that a hub takes from the cloud to a device, with its properties and ids.
pub const MAX_MESSAGE_BYTES: usize = twincast_hub_limits::LARGEST_MESSAGE;
/// The longest time to live.
pub const MAX_TTL: Duration = twincast_hub_limits::LONGEST_TTL;
/// The shortest time to live that a hub's own setting takes; shorter ones expire on the way.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// More devices belong into a file.
pub const MAX_DEVICES_INLINE: usize = 10_000;

/// The largest share of a hub, compared with the smallest.
pub const MAX_WEIGHT: u32 = 100;

/// The longest text for people that is stored, in characters: a description, or why something is done.
pub const MAX_TEXT_CHARS: usize = 1_000;
/// The longest name of whoever does something, in characters.
pub const MAX_BY_CHARS: usize = 128;

/// Stages that a rollout may have.
pub const MAX_STAGES: usize = 50;
/// The largest `max_devices`: those devices are held in memory while the rollout is planned.
pub(super) const MAX_COUNTED: u32 = 100_000;
/// The longest deadline, bake or wait for an approval.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(90 * 24 * 3600);

/// What is wrong with a text, if it is longer than that.
#[must_use]
pub fn too_long(text: &str, most: usize) -> Option<String> {
    let found = text.chars().count();
    (found > most).then(|| format!("has {found} characters; at most {most} are allowed"))
}
