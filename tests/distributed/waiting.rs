//! Waiting for slow conditions.

use std::time::{Duration, Instant};

/// The polling interval: long, because most polls start another process.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns true if the tests run at full size.
pub(crate) fn is_long() -> bool {
    std::env::var_os("TWINCAST_LONG").is_some_and(|value| !value.is_empty())
}

/// Returns `long` at full size, otherwise `short`.
pub(crate) fn long_or<T>(long: T, short: T) -> T {
    if is_long() { long } else { short }
}

/// Polls until `poll` returns a value.
///
/// # Panics
/// After `limit`.
#[track_caller]
pub(crate) fn poll_until<T>(limit: Duration, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        pause();
    }
}

/// Polls a condition for a period; the condition must hold every time.
pub(crate) fn poll_for(time: Duration, mut poll: impl FnMut()) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        poll();
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "other processes are looked at, there is nothing to await"
)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}
