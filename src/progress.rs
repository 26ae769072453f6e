//! Progress on standard error: a bar on a terminal, otherwise an occasional line.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;
use twincast_core::outcome::ClassCounts;
use twincast_core::time::friendly;

use crate::output::{Output, thousands};

/// The interval of printed lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// The period of the measured rate.
const RATE_PERIOD: Duration = Duration::from_secs(10);

/// The state of a rollout at a point in time.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) by_class: ClassCounts,
    /// The rate of all hubs together, per minute.
    pub(crate) pace: Option<f64>,
    /// The current obstacle, if any.
    pub(crate) obstacle: Option<String>,
    /// The devices' answers so far, as text.
    pub(crate) answers: Option<String>,
}

/// The bar on the terminal. A terminal has room for a single bar.
static VISIBLE_BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn visible_bar() -> MutexGuard<'static, Option<ProgressBar>> {
    VISIBLE_BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to standard error, above a visible bar.
pub(crate) struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let bar = visible_bar().clone();
        let write = || io::stderr().write_all(text).map(|()| text.len());
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows progress.
pub(crate) struct Progress {
    output: Output,
    bar: Option<ProgressBar>,
    line_at: Instant,
    /// Recent counts of finished devices, for the rate.
    samples: VecDeque<(Instant, u64)>,
    last_obstacle: ObstacleLine,
}

/// The last obstacle printed on a separate line.
#[derive(Default)]
struct ObstacleLine {
    obstacle: Option<String>,
    at: Option<Instant>,
}

impl ObstacleLine {
    /// Returns true if an obstacle is worth a line now: a new obstacle, and some time after the
    /// last line, because the wording of an obstacle may change with each try.
    fn is_new(&mut self, obstacle: Option<&str>) -> bool {
        if without_digits(obstacle) == without_digits(self.obstacle.as_deref()) {
            return false;
        }
        if obstacle.is_some() {
            if self.at.is_some_and(|at| at.elapsed() < LINE_INTERVAL) {
                return false;
            }
            self.at = Some(Instant::now());
        }
        self.obstacle = obstacle.map(str::to_owned);
        obstacle.is_some()
    }
}

/// Returns a note without the digits: a new number alone is not worth a new line.
fn without_digits(obstacle: Option<&str>) -> Option<String> {
    let plain = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect();
    obstacle.map(plain)
}

/// Returns a progress line with the current obstacle: the separate line about the obstacle may be
/// many lines above.
fn with_obstacle(text: String, obstacle: Option<&str>) -> String {
    match obstacle {
        Some(obstacle) => format!("{text}  waiting: {obstacle}"),
        None => text,
    }
}

impl Progress {
    pub(crate) fn new(output: Output) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg}").expect("a valid template"),
            );
            bar
        });
        if let Some(bar) = &bar {
            *visible_bar() = Some(bar.clone());
        }
        Self {
            output,
            bar,
            line_at: Instant::now() + LINE_INTERVAL,
            samples: VecDeque::new(),
            last_obstacle: ObstacleLine::default(),
        }
    }

    /// Shows the search for devices. `devices` is the number found so far, 0 if unknown; `obstacle`
    /// is the current obstacle.
    pub(crate) fn planning(&mut self, devices: u64, obstacle: Option<&str>) {
        let text = match devices {
            0 => "finding devices".to_owned(),
            found => format!("finding devices: {}", thousands(found)),
        };
        self.print_obstacle(obstacle);
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None => self.line(&with_obstacle(text, obstacle)),
        }
    }

    /// Prints an obstacle once.
    fn print_obstacle(&mut self, obstacle: Option<&str>) {
        if self.last_obstacle.is_new(obstacle) {
            self.print(&format!("waiting: {}", obstacle.unwrap_or_default()));
        }
    }

    /// Shows the progress of sending.
    pub(crate) fn sending(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        let done = snapshot.by_class.done();
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && self.samples[1].0 + RATE_PERIOD < now {
            self.samples.pop_front();
        }
        let text = self.describe(snapshot);
        self.print_obstacle(snapshot.obstacle.as_deref());
        match &self.bar {
            Some(bar) => {
                let devices = snapshot.by_class.total();
                if bar.length() != Some(devices) {
                    bar.set_length(devices);
                    let style = ProgressStyle::with_template("{bar:28} {percent:>3}%  {msg}")
                        .expect("a valid template");
                    bar.set_style(style.progress_chars("━╸─"));
                }
                bar.set_position(done);
                bar.set_message(text);
            }
            None => self.line(&with_obstacle(text, snapshot.obstacle.as_deref())),
        }
    }

    fn describe(&self, snapshot: &Snapshot) -> String {
        let (done, classes) = snapshot.by_class.progress_texts();
        let mut parts = vec![done];
        if let Some(per_minute) = self.per_minute() {
            let quota = snapshot
                .pace
                .map(|pace| format!(" (pace {})", thousands(pace.round() as u64)))
                .unwrap_or_default();
            parts.push(format!(
                "{}/min{quota}",
                thousands(per_minute.round() as u64)
            ));
            let left = snapshot.by_class.pending as f64;
            if per_minute > 0.0 && left > 0.0 && snapshot.obstacle.is_none() {
                parts.push(format!(
                    "{} left",
                    friendly(Duration::from_secs_f64(left / per_minute * 60.0))
                ));
            }
        }
        parts.extend(classes);
        parts.extend(
            snapshot
                .answers
                .as_ref()
                .map(|words| format!("answers: {words}")),
        );
        parts.join("  ")
    }

    fn per_minute(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = to.duration_since(*from).as_secs_f64();
        (seconds > 0.5).then(|| (last.saturating_sub(*first)) as f64 / seconds * 60.0)
    }

    /// Prints a lasting note, above the bar.
    pub(crate) fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    fn line(&mut self, text: &str) {
        if Instant::now() >= self.line_at {
            self.line_at = Instant::now() + LINE_INTERVAL;
            self.output.note(text);
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            *visible_bar() = None;
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changing_obstacle_is_printed_at_intervals() {
        let mut line = ObstacleLine::default();
        assert!(line.is_new(Some("no route, try 1")));
        assert!(!line.is_new(Some("no route, try 2")));
        assert!(!line.is_new(Some("no route")));
        tokio::time::advance(LINE_INTERVAL).await;
        assert!(line.is_new(Some("no route")));
        tokio::time::advance(LINE_INTERVAL).await;
        assert!(!line.is_new(Some("no route")));
        assert!(!line.is_new(None));
        assert!(line.is_new(Some("no route")));
    }
}
