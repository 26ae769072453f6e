//! Bounds on the values of a spec.

use std::time::Duration;

/// The size of the largest cloud-to-device message that a hub accepts, including properties and
/// ids.
pub const MAX_MESSAGE_BYTES: usize = twincast_hub_limits::MAX_MESSAGE_BYTES;
/// The longest time to live.
pub const MAX_TTL: Duration = twincast_hub_limits::MAX_TTL;
/// The shortest time to live. A hub's own setting accepts no less, and a shorter-lived message
/// expires in transit.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// The maximum number of device ids in a spec. More devices belong into a file.
pub const MAX_DEVICES_INLINE: usize = 10_000;

/// The largest weight of a rollout's share of a hub. The smallest is 1.
pub const MAX_WEIGHT: u32 = 100;

/// The maximum length of a stored text for people, in characters: a description, or the reason for
/// an action.
pub const MAX_TEXT_CHARS: usize = 1_000;
/// The maximum length of the name of the person or system behind an action, in characters.
pub const MAX_ACTOR_CHARS: usize = 128;

/// The maximum number of stages of a rollout.
pub const MAX_STAGES: usize = 50;
/// The largest `max_devices`: planning holds these devices in memory.
pub(super) const MAX_COUNTED: u32 = 100_000;
/// The longest deadline, bake or wait for an approval.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Returns the problem of a text longer than `max_chars` characters.
#[must_use]
pub fn length_problem(text: &str, max_chars: usize) -> Option<String> {
    let found = text.chars().count();
    (found > max_chars).then(|| format!("has {found} characters; at most {max_chars} are allowed"))
}
