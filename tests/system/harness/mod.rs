//! What all tests share: processes that end with their test, an emulator, a user's folder, and
//! the comparison of a report with the hub's account.

mod account;
mod chance;
mod collector;
mod hub;
mod process;
mod refusal;
mod room;

use std::time::{Duration, Instant};

use twincast_core::ports::Clock as _;
use twincast_core::time::Timestamp;
use twincast_embedded::SystemClock;

pub(crate) use account::{Account, Row, agree, assert_same_ids, repeats};
pub(crate) use chance::Chance;
pub(crate) use collector::{Collector, Told};
pub(crate) use hub::{Fleet, Hub};
pub(crate) use process::{Ended, Running, Signal};
pub(crate) use refusal::{assert_refused, assert_tidy};
pub(crate) use room::Room;

/// How long anything may take that is expected to happen. Far beyond what it takes, because a
/// test that runs into it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A time so far from now, for specs.
pub(crate) fn from_now(wait: Duration) -> Timestamp {
    SystemClock::start().now().plus(wait)
}

/// Looks again and again until `look` gives something.
///
/// # Panics
/// When that takes longer than [`PATIENCE`].
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "other processes are looked at, there is nothing to await"
)]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}
