//! The offset between the hub's clock and this machine's.
//!
//! The hub judges the expiry of messages and tokens by its own clock. The `Date` header of every
//! HTTP response gives the hub's time to the second (RFC 9110, section 6.6.1). The hub wrote the
//! header between the moment of the request and the moment of the response, so each response bounds
//! the offset. [`ClockOffset::nearest`] is the smallest offset within the bounds, so a possibly
//! correct clock is never corrected.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

/// The resolution of a `Date` header.
pub(crate) const DATE_RESOLUTION: Duration = Duration::from_secs(1);

/// Interval of explicit time requests to the hub. A `Date` header in any other response restarts
/// the interval.
const CLOCK_QUERY_INTERVAL: Duration = Duration::from_secs(300);

/// Interval of time requests while none is answered.
const CLOCK_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Longest time for reading both clocks of this machine: between two readings further apart, the
/// process was paused.
const READING_TIME: Duration = Duration::from_millis(100);

/// Two clocks at least this far apart disagree.
const DISAGREEMENT_MS: u64 = 5_000;

/// The wall clock counts as set when it differs by more than this from the time predicted by the
/// monotonic clock.
const STEP_MS: u64 = 2_000;

/// How far another machine's clock is ahead of this one's, as a lower and an upper bound in
/// milliseconds. Negative values mean behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    least_ms: i64,
    most_ms: i64,
}

impl ClockOffset {
    /// Returns the bounds derived from one response. The other clock showed `theirs`, rounded down
    /// to `resolution`, at some moment between `before` (request sent) and `after` (response
    /// received) on this machine's clock. `None` when this machine's clock was set back in between.
    #[must_use]
    pub fn observed(
        before: SystemTime,
        theirs: SystemTime,
        resolution: Duration,
        after: SystemTime,
    ) -> Option<Self> {
        let least_ms = unix_ms(theirs).saturating_sub(unix_ms(after));
        let most = unix_ms(theirs).saturating_add(millis(resolution));
        let most_ms = most.saturating_sub(unix_ms(before));
        (after >= before).then_some(Self { least_ms, most_ms })
    }

    /// Returns the intersection of both observations, or `newer` when they are disjoint because a
    /// clock was set in between.
    #[must_use]
    pub fn narrowed_by(self, newer: Self) -> Self {
        let both = Self {
            least_ms: self.least_ms.max(newer.least_ms),
            most_ms: self.most_ms.min(newer.most_ms),
        };
        if both.least_ms <= both.most_ms {
            both
        } else {
            newer
        }
    }

    /// Returns the smallest offset within the bounds, in milliseconds: zero for a possibly correct
    /// clock.
    #[must_use]
    pub fn nearest(self) -> i64 {
        0_i64.clamp(self.least_ms, self.most_ms)
    }

    /// Whether the two clocks are at least five seconds apart, so that an operator should set one
    /// of them.
    #[must_use]
    pub fn is_disagreement(self) -> bool {
        disagree(self.nearest())
    }

    /// Returns the earliest moment on this machine's clock at which the other clock may have shown
    /// `theirs`.
    #[must_use]
    pub fn earliest(self, theirs: SystemTime) -> SystemTime {
        shifted(theirs, self.most_ms.saturating_neg())
    }
}

/// Formats this machine's clock relative to the other: `900 s behind`, `12 s ahead of`.
impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.nearest();
        let seconds = (ms.unsigned_abs() + 500) / 1_000;
        let way = if ms > 0 { "behind" } else { "ahead of" };
        write!(f, "{seconds} s {way}")
    }
}

/// A hub's clock, as far as observed.
#[derive(Debug, Default)]
pub(crate) struct HubClock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    /// `None` before the first query.
    next_query_at: Option<Instant>,
    /// The offset of the latest log line, in milliseconds.
    logged_ms: i64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    offset: ClockOffset,
    /// The moment of the observation, on the wall clock and on the monotonic clock.
    at: (SystemTime, Instant),
}

impl Known {
    /// Returns the offset, or `None` if this machine's clock was set or the machine slept since the
    /// observation.
    fn offset(&self, (now, ticks): (SystemTime, Instant)) -> Option<ClockOffset> {
        let ticked = millis(ticks.saturating_duration_since(self.at.1));
        let expected = unix_ms(self.at.0).saturating_add(ticked);
        let step = unix_ms(now).abs_diff(expected);
        (step <= STEP_MS).then_some(self.offset)
    }
}

impl HubClock {
    /// Returns the offset, if known.
    pub(crate) fn offset(&self) -> Option<ClockOffset> {
        self.offset_at(this_machine())
    }

    /// Returns the offset, if the two clocks are known to disagree.
    pub(crate) fn disagreement(&self) -> Option<ClockOffset> {
        self.offset().filter(|offset| offset.is_disagreement())
    }

    fn offset_at(&self, now: (SystemTime, Instant)) -> Option<ClockOffset> {
        self.state().known.and_then(|known| known.offset(now))
    }

    /// Returns the hub's time at `now` on this machine's clock; `now` itself while the offset is
    /// unknown.
    pub(crate) fn hub_time(&self, now: SystemTime) -> SystemTime {
        let offset = self.offset_at((now, Instant::now()));
        offset.map_or(now, |offset| shifted(now, offset.nearest()))
    }

    /// Records the `Date` header of a response of `hub`, and logs a warning when this machine's
    /// clock is wrong.
    pub(crate) fn observe(&self, hub: &str, before: SystemTime, date: &str) {
        let now = this_machine();
        let observed = http_date(date)
            .and_then(|theirs| ClockOffset::observed(before, theirs, DATE_RESOLUTION, now.0));
        let Some(offset) = observed else { return };
        let mut state = self.state();
        let before = state.known.and_then(|known| known.offset(now));
        let offset = before.map_or(offset, |before| before.narrowed_by(offset));
        state.known = Some(Known { offset, at: now });
        state.next_query_at = Some(now.1 + CLOCK_QUERY_INTERVAL);
        if !should_log(state.logged_ms, offset.nearest()) {
            return;
        }
        state.logged_ms = offset.nearest();
        drop(state);
        if !offset.is_disagreement() {
            info!(
                hub,
                "this machine's clock agrees with the hub's clock again"
            );
        } else {
            warn!(
                hub,
                "this machine's clock is {offset} the hub's clock; messages and tokens expire by the hub's clock; correct this machine's clock"
            );
        }
    }

    /// Whether a request for the hub's time is due. After `true`, the next calls return `false`,
    /// without an answer for a shorter time.
    pub(crate) fn begin_query_if_due(&self) -> bool {
        self.begin_query_if_due_at(this_machine())
    }

    fn begin_query_if_due_at(&self, now: (SystemTime, Instant)) -> bool {
        let mut state = self.state();
        let was_set = state.known.is_some_and(|known| known.offset(now).is_none());
        if was_set {
            state.known = None;
        }
        let is_due = was_set || state.next_query_at.is_none_or(|at| now.1 >= at);
        if is_due {
            state.next_query_at = Some(now.1 + CLOCK_RETRY_INTERVAL);
        }
        is_due
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parses a date in the format of HTTP headers.
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    Some(parser.parse_timestamp(text).ok()?.into())
}

/// Whether clocks with an offset of `offset_ms` disagree.
fn disagree(offset_ms: i64) -> bool {
    offset_ms.unsigned_abs() >= DISAGREEMENT_MS
}

/// Whether `offset` differs enough from `logged`, the last logged offset, for another log line.
fn should_log(logged: i64, offset: i64) -> bool {
    match (disagree(logged), disagree(offset)) {
        (false, false) => false,
        // A drifting offset is logged each time it has doubled or halved.
        (true, true) => {
            logged.signum() != offset.signum()
                || logged.unsigned_abs() >= offset.unsigned_abs() * 2
                || offset.unsigned_abs() >= logged.unsigned_abs() * 2
        }
        _ => true,
    }
}

/// Reads the wall clock and the monotonic clock at the same moment.
fn this_machine() -> (SystemTime, Instant) {
    loop {
        let ticks = Instant::now();
        let now = SystemTime::now();
        if ticks.elapsed() <= READING_TIME {
            return (now, ticks);
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unix_ms(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    }
}

/// Returns `time` shifted by `ms` milliseconds, or `time` itself when the result is not
/// representable.
fn shifted(time: SystemTime, ms: i64) -> SystemTime {
    let by = Duration::from_millis(ms.unsigned_abs());
    let shifted = if ms < 0 {
        time.checked_sub(by)
    } else {
        time.checked_add(by)
    };
    shifted.unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_790_000_000_000 + ms)
    }

    /// The offset observed from a request sent at `sent`: after `way` the hub's clock, `ahead` of
    /// this one, stamps the response, which arrives after another `back`. All values in
    /// milliseconds.
    fn answered(ahead: i64, sent: u64, way: u64, back: u64) -> ClockOffset {
        let theirs = shifted(at(sent + way), ahead);
        let ms = unix_ms(theirs);
        let date = shifted(theirs, -ms.rem_euclid(1_000));
        let (before, after) = (at(sent), at(sent + way + back));
        ClockOffset::observed(before, date, DATE_RESOLUTION, after).unwrap()
    }

    #[test]
    fn the_true_offset_is_within_bounds_for_any_latency() {
        let days = 3 * 86_400_000;
        for ahead in [0, 50, -50, 999, 180_000, -180_000, 900_000, -900_000, days] {
            for sent in [0, 1, 499, 500, 998, 999] {
                for (way, back) in [(0, 0), (1, 1), (30, 30), (0, 900), (900, 0), (5_000, 3)] {
                    let seen = answered(ahead, sent, way, back);
                    assert!(
                        (seen.least_ms..=seen.most_ms).contains(&ahead),
                        "{ahead} {sent} {way} {back}: {seen:?}"
                    );
                    let width = i64::try_from(1_000 + way + back).unwrap();
                    assert_eq!(seen.most_ms - seen.least_ms, width);
                    let nearest = seen.nearest();
                    assert!((nearest - ahead).abs() <= width && nearest.abs() <= ahead.abs());
                }
            }
        }
    }

    #[test]
    fn a_possibly_correct_clock_is_not_corrected() {
        for sent in 0..1_000 {
            assert_eq!(answered(0, sent, 3, 3).nearest(), 0);
        }
        assert_eq!(answered(-50, 500, 10, 10).nearest(), 0);
        assert_eq!(
            answered(-50, 20, 10, 10).nearest(),
            -20,
            "an offset of zero is impossible"
        );
        let back = ClockOffset::observed(at(5), at(0), DATE_RESOLUTION, at(4));
        assert_eq!(back, None, "this machine's clock was set back meanwhile");
    }

    #[test]
    fn observations_narrow_each_other_until_a_clock_is_set() {
        let mut known = answered(900_123, 0, 20, 20);
        for sent in (0..40_000).step_by(1_100) {
            known = known.narrowed_by(answered(900_123, sent, 20, 20));
        }
        assert!(known.most_ms - known.least_ms < 200, "{known:?}");
        assert!((known.nearest() - 900_123).abs() < 200, "{known:?}");
        assert_eq!(known.to_string(), "900 s behind");
        let set = answered(-7_000, 50_000, 20, 20);
        assert_eq!(known.narrowed_by(set), set);
        assert_eq!(answered(-7_900, 50_000, 20, 20).to_string(), "7 s ahead of");
    }

    #[test]
    fn a_converted_hub_time_is_never_too_late() {
        for ahead in [0, 900_000, -900_000] {
            let seen = answered(ahead, 400, 30, 30);
            let then = at(777_000);
            let earliest = seen.earliest(shifted(then, ahead));
            assert!(earliest <= then && earliest >= shifted(then, -1_060));
        }
    }

    #[test]
    fn an_offset_is_discarded_when_the_local_clock_is_set() {
        let ticks = Instant::now();
        let offset = answered(900_000, 0, 1, 1);
        let known = Known {
            offset,
            at: (at(0), ticks),
        };
        let after = |system: u64, ticked: u64| {
            known.offset((at(system), ticks + Duration::from_millis(ticked)))
        };
        assert_eq!(after(60_000, 60_000), Some(offset));
        assert_eq!(after(61_500, 60_000), Some(offset), "the clock is slewed");
        assert_eq!(after(960_000, 60_000), None, "the clock was set");
        assert_eq!(after(7_200_000, 60_000), None, "the machine has slept");
    }

    #[test]
    fn the_clock_is_queried_when_due_and_hub_dates_are_recorded() {
        let clock = HubClock::default();
        let now = SystemTime::now();
        assert_eq!((clock.offset(), clock.hub_time(now)), (None, now));
        assert!(clock.begin_query_if_due());
        assert!(!clock.begin_query_if_due(), "the query is not due again");
        clock.observe("h", now, "no date");
        assert_eq!(clock.offset(), None);
        let after = |seconds| {
            let by = Duration::from_secs(seconds);
            (now + by, Instant::now() + by)
        };
        assert!(!clock.begin_query_if_due_at(after(25)), "no answer yet");
        assert!(
            clock.begin_query_if_due_at(after(35)),
            "a query is repeated"
        );
        let then = jiff::Timestamp::try_from(now + Duration::from_secs(900)).unwrap();
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        let date = printer.timestamp_to_rfc9110_string(&then).unwrap();
        clock.observe("h", now, &date);
        let ahead = clock.offset().unwrap().nearest();
        assert!((898_000..=901_000).contains(&ahead), "{ahead}");
        assert!(clock.hub_time(now) >= now + Duration::from_secs(898));
        assert!(!clock.begin_query_if_due_at(after(290)), "after an answer");
        assert!(clock.begin_query_if_due_at(after(310)));
    }

    #[test]
    fn significant_offset_changes_are_logged() {
        for (logged, offset, is) in [
            (0, 4_999, false),
            (0, 5_000, true),
            (0, -5_000, true),
            (900_000, 905_000, false),
            (900_000, -900_000, true),
            (6_000, 12_000, true),
            (12_000, 6_000, true),
            (900_000, 0, true),
        ] {
            assert_eq!(should_log(logged, offset), is, "{logged} {offset}");
        }
    }
}
