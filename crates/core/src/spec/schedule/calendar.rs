//! A schedule in a single zone, as half-open intervals of absolute time.
//!
//! Windows are computed from the civil days around the given time, and from no more days than
//! needed. The order of windows in absolute time matters for speed only: where clocks change around
//! midnight, a window of a day may begin after a window of the next day.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

use super::civil::ZoneName;
use super::{Closed, HORIZON, MAX_WINDOW, Schedule, ScheduleState, Window};
use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Schedule {
    /// Returns whether the schedule is open at `now`, and when this changes. `zone` is the value of
    /// the device's `zone_tag`, if any. An unknown zone counts as no zone.
    ///
    /// # Example
    /// ```
    /// use twincast_core::spec::{Closed, Document, Problems, Schedule, ScheduleState};
    /// use twincast_core::time::Timestamp;
    ///
    /// let text = "{windows: [{from: 22:00, for: 4h}], zone: Europe/Berlin}";
    /// let schedule: Schedule = Document::parse("schedule.yaml", text)?.read()?;
    /// // 16:13:20 in Berlin, 23:13:20 in Tokyo.
    /// let now = Timestamp(1_790_000_000_000);
    /// let ScheduleState::Closed { until: Some(until), why } = schedule.state_at(now, None) else {
    ///     panic!("the window begins at 22:00");
    /// };
    /// assert_eq!(why, Closed::OutsideWindow);
    /// assert_eq!(until.to_string(), "2026-09-21T20:00:00Z");
    /// let in_tokyo = schedule.state_at(now, Some("Asia/Tokyo"));
    /// assert!(matches!(in_tokyo, ScheduleState::Open { .. }));
    /// # Ok::<(), Problems>(())
    /// ```
    #[must_use]
    pub fn state_at(&self, now: Timestamp, zone: Option<&str>) -> ScheduleState {
        let zone = zone
            .and_then(ZoneName::find)
            .or_else(|| self.zone.as_ref().map(|name| name.zone().clone()))
            .unwrap_or(TimeZone::UTC);
        Calendar::new(self, zone).state_at(now)
    }

    /// Returns why the schedule is of no use from `now` on: closed, and not open again within
    /// [`HORIZON`] of `now`, or of a later start. The zones of devices are not considered.
    #[must_use]
    pub fn never_opens(&self, now: Timestamp) -> Option<String> {
        let now = now.max(self.start_at.unwrap_or_default());
        match self.state_at(now, None) {
            ScheduleState::Closed { until: None, why } => Some(format!(
                "is {why} at {now}, and does not open within 400 days; shorten its freezes"
            )),
            _ => None,
        }
    }
}

struct Calendar<'a> {
    zone: TimeZone,
    start: Timestamp,
    /// Sorted by time of day, so that a single pass mostly suffices.
    windows: Vec<&'a Window>,
    /// The number of days before today on which a still open window may have begun.
    lookback: i64,
    /// The frozen intervals. No interval is empty.
    frozen: Vec<Frozen<'a>>,
}

/// A frozen interval, `[from, to)`.
struct Frozen<'a> {
    from: Timestamp,
    to: Timestamp,
    reason: Option<&'a String>,
}

impl<'a> Calendar<'a> {
    fn new(schedule: &'a Schedule, zone: TimeZone) -> Self {
        let midnight = |date: Date| instant(&zone, date.to_datetime(Time::midnight()));
        let frozen = schedule.freeze.iter().map(|freeze| Frozen {
            from: midnight(freeze.from.date()),
            to: freeze
                .last()
                .date()
                .tomorrow()
                .map_or(Timestamp::MAX, midnight),
            reason: freeze.reason.as_ref(),
        });
        // A day left out by the zone is empty.
        let frozen = frozen.filter(|frozen| frozen.from < frozen.to).collect();

        let mut windows: Vec<_> = schedule.windows.iter().collect();
        windows.sort_by_key(|window| window.from);
        let longest = windows.iter().map(|window| length(window)).max();
        let whole_days = longest.unwrap_or_default().as_secs() / DAY.as_secs();
        Self {
            start: schedule.start_at.unwrap_or_default(),
            windows,
            // A day for the current day, and another for a short day or a day left out by the zone.
            lookback: i64::try_from(whole_days).expect("at most MAX_WINDOW") + 2,
            frozen,
            zone,
        }
    }

    fn state_at(&self, now: Timestamp) -> ScheduleState {
        match self.closed(now) {
            Some(why) => ScheduleState::Closed {
                until: self.next_opening(now),
                why,
            },
            None => ScheduleState::Open {
                until: self.next_closing(now),
            },
        }
    }

    fn closed(&self, now: Timestamp) -> Option<Closed> {
        if now < self.start {
            Some(Closed::NotStarted)
        } else if let Some(frozen) = self.frozen_at(now) {
            Some(Closed::Frozen {
                reason: frozen.reason.cloned(),
            })
        } else if !self.in_window(now) {
            Some(Closed::OutsideWindow)
        } else {
            None
        }
    }

    /// Returns the next opening after a time at which the schedule is closed. Steps over freezes
    /// and gaps between windows.
    fn next_opening(&self, now: Timestamp) -> Option<Timestamp> {
        let mut time = now.max(self.start);
        let horizon = time.plus(HORIZON);
        loop {
            if time > horizon {
                return None;
            } else if let Some(frozen) = self.frozen_at(time) {
                time = frozen.to;
            } else if self.in_window(time) {
                return Some(time);
            } else {
                time = self.next_window(time)?;
            }
        }
    }

    /// Returns the next closing after a time at which the schedule is open.
    fn next_closing(&self, now: Timestamp) -> Option<Timestamp> {
        let starts = self.frozen.iter().map(|frozen| frozen.from);
        let freeze = starts.filter(|from| *from > now).min();
        if self.windows.is_empty() {
            return freeze;
        }
        let horizon = now.plus(HORIZON);
        let limit = freeze.map_or(horizon, |freeze| freeze.min(horizon));
        let end = self.covered_until(now, limit);
        if end < limit {
            Some(end)
        } else {
            freeze.filter(|freeze| *freeze == limit)
        }
    }

    fn frozen_at(&self, time: Timestamp) -> Option<&Frozen<'a>> {
        let mut frozen = self.frozen.iter();
        frozen.find(|frozen| frozen.from <= time && time < frozen.to)
    }

    fn in_window(&self, time: Timestamp) -> bool {
        let next = time.plus(Duration::from_millis(1));
        self.windows.is_empty() || self.covered_until(time, next) > time
    }

    /// Returns the end of the unbroken sequence of windows around `time`; `time` itself outside of
    /// all windows. Once the result is `limit` or later, the result may be short of the real end.
    fn covered_until(&self, time: Timestamp, limit: Timestamp) -> Timestamp {
        let mut end = time;
        loop {
            let before = end;
            end = self.extend_by_windows(before, limit);
            // A pass with windows out of order may leave some windows for the next pass.
            if end == before || end >= limit {
                return end;
            }
        }
    }

    /// Returns `end`, extended by every touching window.
    fn extend_by_windows(&self, mut end: Timestamp, limit: Timestamp) -> Timestamp {
        let first = days_before(self.date(end), self.lookback);
        for day in days_from(first) {
            // A day more, because dates may step back where clocks do.
            if end >= limit || days_before(day, 1) > self.date(end) {
                break;
            }
            for window in &self.windows {
                if let Some(start) = self.start_on(day, window)
                    && start <= end
                {
                    end = end.max(start.plus(length(window)));
                }
            }
        }
        end
    }

    /// Returns the first start of a window after `time`. The starts of each single window are in
    /// order.
    fn next_window(&self, time: Timestamp) -> Option<Timestamp> {
        // A clock change may have moved yesterday's start into today.
        let first = days_before(self.date(time), 1);
        let next_of = |window| {
            days_from(first)
                .filter_map(|day| self.start_on(day, window))
                .find(|start| *start > time)
        };
        self.windows
            .iter()
            .filter_map(|window| next_of(window))
            .min()
    }

    fn start_on(&self, day: Date, window: &Window) -> Option<Timestamp> {
        window
            .starts_on(day)
            .then(|| instant(&self.zone, window.from.on(day)))
    }

    fn date(&self, time: Timestamp) -> Date {
        i64::try_from(time.0.min(Timestamp::MAX.0))
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            .map(|time| self.zone.to_datetime(time).date())
            .expect("times up to MAX are of the calendar")
    }
}

/// Returns the time when the zone's clocks show `at`, by the rule of [`Window::from`]. Times before
/// 1970 become 1970. Times too late for a timestamp become [`Timestamp::MAX`].
fn instant(zone: &TimeZone, at: DateTime) -> Timestamp {
    match zone.to_ambiguous_timestamp(at).compatible() {
        Ok(time) => {
            let ms = u64::try_from(time.as_millisecond()).unwrap_or(0);
            Timestamp(ms).min(Timestamp::MAX)
        }
        Err(_) if at.year() < 1970 => Timestamp(0),
        Err(_) => Timestamp::MAX,
    }
}

/// Returns the length of a window, bounded even if the schedule was never checked.
fn length(window: &Window) -> Duration {
    window.length.0.min(MAX_WINDOW)
}

fn days_from(first: Date) -> impl Iterator<Item = Date> {
    std::iter::successors(Some(first), |day| day.tomorrow().ok())
}

fn days_before(day: Date, days: i64) -> Date {
    day.saturating_sub(jiff::Span::new().days(days))
}
