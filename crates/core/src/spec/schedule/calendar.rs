//! A schedule in one zone: half-open intervals of absolute time.
//!
//! Windows are made from the civil days around the time that is asked for, no more of them
//! than the answer needs. Nothing relies on their order in absolute time beyond speed: where
//! clocks change around midnight, a window of one day may begin after one of the next day.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

use super::civil::ZoneName;
use super::{Closed, HORIZON, MAX_WINDOW, Opening, Schedule, Window};
use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Schedule {
    /// Whether it is open at `now`, and until when that holds. `zone` is the value of the
    /// device's `zone_tag`, if it has one; what is no zone counts as none.
    #[must_use]
    pub fn at(&self, now: Timestamp, zone: Option<&str>) -> Opening {
        let zone = zone
            .and_then(ZoneName::find)
            .or_else(|| self.zone.as_ref().map(|name| name.zone().clone()))
            .unwrap_or(TimeZone::UTC);
        Calendar::new(self, zone).at(now)
    }

    /// Why the schedule is of no use from `now` on, in words: closed, and not open again within [`HORIZON`] of `now`, or of the
    /// start if that is later. Zones of devices aside.
    #[must_use]
    pub fn never_opens(&self, now: Timestamp) -> Option<String> {
        let now = now.max(self.start_at.unwrap_or_default());
        match self.at(now, None) {
            Opening::Closed { until: None, why } => Some(format!(
                "is {why} at {now}, and does not open within 400 days; shorten its freezes"
            )),
            _ => None,
        }
    }
}

struct Calendar<'a> {
    zone: TimeZone,
    start: Timestamp,
    /// By their time of day, so that one pass over them mostly suffices.
    windows: Vec<&'a Window>,
    /// So many days before today a window may have begun that is still open.
    lookback: i64,
    /// None is empty.
    frozen: Vec<Frozen<'a>>,
}

/// `[from, to)`.
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
        // A day that the zone leaves out is empty.
        let frozen = frozen.filter(|frozen| frozen.from < frozen.to).collect();

        let mut windows: Vec<_> = schedule.windows.iter().collect();
        windows.sort_by_key(|window| window.from);
        let longest = windows.iter().map(|window| length(window)).max();
        let whole_days = longest.unwrap_or_default().as_secs() / DAY.as_secs();
        Self {
            start: schedule.start_at.unwrap_or_default(),
            windows,
            // One more for the day that has begun, one for a day that is short or left out.
            lookback: i64::try_from(whole_days).expect("at most MAX_WINDOW") + 2,
            frozen,
            zone,
        }
    }

    fn at(&self, now: Timestamp) -> Opening {
        match self.closed(now) {
            Some(why) => Opening::Closed {
                until: self.opens(now),
                why,
            },
            None => Opening::Open {
                until: self.closes(now),
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

    /// When it next opens, from a time at which it is closed: steps over what is closed until
    /// nothing is.
    fn opens(&self, now: Timestamp) -> Option<Timestamp> {
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

    /// When it next closes, from a time at which it is open.
    fn closes(&self, now: Timestamp) -> Option<Timestamp> {
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

    /// The end of the windows without a gap that `time` is in; `time` itself when it is in
    /// none. The answer may be short of that end once it is `limit` or later.
    fn covered_until(&self, time: Timestamp, limit: Timestamp) -> Timestamp {
        let mut end = time;
        loop {
            let before = end;
            end = self.extend(before, limit);
            // A pass that meets windows out of their order may leave some for the next one.
            if end == before || end >= limit {
                return end;
            }
        }
    }

    /// `end`, carried on by every window that it touches.
    fn extend(&self, mut end: Timestamp, limit: Timestamp) -> Timestamp {
        let first = days_before(self.date(end), self.lookback);
        for day in days_from(first) {
            // One day more, as dates may step back where clocks do.
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

    /// The first start of a window after `time`. The starts of one window are in order.
    fn next_window(&self, time: Timestamp) -> Option<Timestamp> {
        // A gap may have moved yesterday's start into today.
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

/// When the zone's clocks show `at`, by the rule that [`Window::from`] states. What is before
/// 1970 is moved there, and what is too late to be written to [`Timestamp::MAX`].
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

/// A window's length, bounded also where nobody has asked for the problems.
fn length(window: &Window) -> Duration {
    window.length.0.min(MAX_WINDOW)
}

fn days_from(first: Date) -> impl Iterator<Item = Date> {
    std::iter::successors(Some(first), |day| day.tomorrow().ok())
}

fn days_before(day: Date, days: i64) -> Date {
    day.saturating_sub(jiff::Span::new().days(days))
}
