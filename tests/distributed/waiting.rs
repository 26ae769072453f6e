//! Waiting for what takes its time by its nature.

use std::time::{Duration, Instant};

/// How often a condition is looked at: calmly, since most looks ask another process.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The tests run at their full size.
pub(crate) fn is_long() -> bool {
    std::env::var_os("TWINCAST_LONG").is_some_and(|value| !value.is_empty())
}

/// The first of the two in the long form of a test, else the second.
pub(crate) fn long_or<T>(long: T, short: T) -> T {
    if is_long() { long } else { short }
}

/// Looks again and again until `look` gives something.
///
/// # Panics
/// When that takes longer than `limit`.
#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        pause();
    }
}

/// Looks again and again for a time, at what must hold all the while.
pub(crate) fn throughout(time: Duration, mut look: impl FnMut()) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        look();
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "other processes are looked at, there is nothing to await"
)]
fn pause() {
    std::thread::sleep(LOOK_EVERY);
}
