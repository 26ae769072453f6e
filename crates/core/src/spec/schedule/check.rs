//! Checks of a schedule beyond its types.

use std::collections::HashSet;

use super::{MAX_FREEZES, MAX_WINDOW, MAX_WINDOWS, MIN_WINDOW, STARTS, Schedule, UnknownZone};

impl Schedule {
    /// Returns all problems of the schedule: the field, relative to `schedule`, and a description
    /// of the found and the allowed value.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut problem = |field: String, message| problems.push((field, message));
        if let Some(start) = self.start_at
            && !STARTS.contains(&start)
        {
            problem(
                "start_at".to_owned(),
                format!("is {start}; from 2020 to 2099 is allowed"),
            );
        }
        for (field, found, allowed) in [
            ("windows", self.windows.len(), MAX_WINDOWS),
            ("freeze", self.freeze.len(), MAX_FREEZES),
        ] {
            if found > allowed {
                problem(
                    field.to_owned(),
                    format!("{found} are too many; at most {allowed}"),
                );
            }
        }
        for (index, window) in self.windows.iter().enumerate() {
            let mut seen = HashSet::new();
            for (place, day) in window.days.iter().enumerate() {
                if !seen.insert(day) {
                    problem(
                        format!("windows[{index}].days[{place}]"),
                        format!("{day} is named twice"),
                    );
                }
            }
            if !(MIN_WINDOW..=MAX_WINDOW).contains(&window.length.0) {
                problem(
                    format!("windows[{index}].for"),
                    format!("{} is out of bounds; 1m to 7d is allowed", window.length),
                );
            }
        }
        for (index, freeze) in self.freeze.iter().enumerate() {
            if freeze.last() < freeze.from {
                problem(
                    format!("freeze[{index}].to"),
                    format!("{} is before `from`, {}", freeze.last(), freeze.from),
                );
            }
        }
        if self.unknown_zone != UnknownZone::Default && self.zone_tag.is_none() {
            let what = "is allowed only with `zone_tag`".to_owned();
            problems.push(("unknown_zone".to_owned(), what));
        }
        if problems.is_empty()
            && let Some(start_at) = self.start_at
            && let Some(why) = self.never_opens(start_at)
        {
            problems.push(("freeze".to_owned(), why));
        }
        problems
    }
}
