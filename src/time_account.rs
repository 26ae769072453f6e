//! A rollout's time account as text.

use twincast_core::account::{Activity, TimeSpent};

use crate::output::table;

/// Formats the time account as a table without zero entries; empty below a second.
pub(crate) fn as_table(spent: &TimeSpent) -> String {
    let total = spent.total().as_secs();
    if total == 0 {
        return String::new();
    }
    let parts = spent.seconds().into_iter();
    let parts = parts.filter(|(_, seconds)| *seconds > 0);
    let mut rows: Vec<_> = parts
        .map(|(activity, seconds)| row(Activity::describe(activity), seconds, total))
        .collect();
    if rows.len() > 1 {
        rows.push(row("total", total, total));
    }
    table(&["time", "", "share"], &rows)
}

fn row(what: &str, seconds: u64, total: u64) -> Vec<String> {
    let share = seconds as f64 / total as f64 * 100.0;
    vec![what.to_owned(), exact(seconds), format!("{share:.1}%")]
}

/// Formats a time to the second, so the sum of the entries is visibly right: `1d 02h 03m 04s`.
fn exact(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds % 86_400 / 3_600);
    let (minutes, rest) = (seconds % 3_600 / 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest:02}s"),
        (0, _, _) => format!("{hours}h {minutes:02}m {rest:02}s"),
        _ => format!("{days}d {hours:02}h {minutes:02}m {rest:02}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact() {
        for (seconds, text) in [
            (0, "0s"),
            (61, "1m 01s"),
            (3_600, "1h 00m 00s"),
            (93_784, "1d 02h 03m 04s"),
        ] {
            assert_eq!(exact(seconds), text);
        }
    }
}
