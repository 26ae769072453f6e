//! Shared parts of all tests: processes killed with their test, an emulator, a user's folder, and
//! the comparison of a report with the hub's message log.

mod chance;
mod collector;
mod hub;
mod message_log;
mod process;
mod refusal;
mod room;

use std::time::{Duration, Instant};

use twincast_core::ports::Clock as _;
use twincast_core::time::Timestamp;
use twincast_embedded::SystemClock;

pub(crate) use chance::Chance;
pub(crate) use collector::{Collector, ReceivedSpan};
pub(crate) use hub::{Fleet, Hub};
pub(crate) use message_log::{MessageLog, Row, assert_report_matches, assert_same_ids, repeats};
pub(crate) use process::{Ended, Running, Signal};
pub(crate) use refusal::{assert_refused, assert_tidy};
pub(crate) use room::Room;

/// The time limit for every expected event. Far beyond the usual time, because a test at the limit
/// has failed.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(180);

/// The polling interval.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Returns the time after `wait` from now, for specs.
pub(crate) fn from_now(wait: Duration) -> Timestamp {
    SystemClock::start().now().plus(wait)
}

/// Polls until `poll` returns a value.
///
/// # Panics
/// After [`MAX_WAIT`].
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "other processes are looked at, there is nothing to await"
)]
pub(crate) fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
