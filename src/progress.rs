//! Progress on standard error: a bar on a terminal, now and then a line elsewhere.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;
use twincast_core::outcome::Ends;
use twincast_core::time::friendly;

use crate::output::{Output, thousands};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The span over which the shown rate is measured.
const RATE_OVER: Duration = Duration::from_secs(10);

/// What is known at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) ends: Ends,
    /// The hubs' pace together, a minute.
    pub(crate) pace: Option<f64>,
    /// What stands in the way, if something does.
    pub(crate) trouble: Option<String>,
    /// What devices have answered so far, in words.
    pub(crate) answers: Option<String>,
}

/// The bar that is on the terminal, which has one place for one.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to standard error above the bar, if there is one.
pub(crate) struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let bar = shown().clone();
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
    /// Devices that are done, over the last while, for the rate.
    samples: VecDeque<(Instant, u64)>,
    told: Told,
}

/// The trouble that was told last, in a line of its own.
#[derive(Default)]
struct Told {
    trouble: Option<String>,
    at: Option<Instant>,
}

impl Told {
    /// Whether trouble is worth a line now: other than the last, and not right after it, since the words of one trouble
    /// may change with each try.
    fn is_news(&mut self, trouble: Option<&str>) -> bool {
        if shape(trouble) == shape(self.trouble.as_deref()) {
            return false;
        }
        if trouble.is_some() {
            if self.at.is_some_and(|at| at.elapsed() < LINE_EVERY) {
                return false;
            }
            self.at = Some(Instant::now());
        }
        self.trouble = trouble.map(str::to_owned);
        trouble.is_some()
    }
}

/// A remark without its numbers: a new number alone is not worth a line of its own.
fn shape(trouble: Option<&str>) -> Option<String> {
    let plain = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect();
    trouble.map(plain)
}

/// A line with what stands in the way: among many lines, the one that told of it is far away.
fn with(text: String, trouble: Option<&str>) -> String {
    match trouble {
        Some(trouble) => format!("{text}  waiting: {trouble}"),
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
            *shown() = Some(bar.clone());
        }
        Self {
            output,
            bar,
            line_at: Instant::now() + LINE_EVERY,
            samples: VecDeque::new(),
            told: Told::default(),
        }
    }

    /// Devices are being found: so many by now, if that is known. `trouble` stands in the way.
    pub(crate) fn planning(&mut self, devices: u64, trouble: Option<&str>) {
        let text = match devices {
            0 => "finding devices".to_owned(),
            found => format!("finding devices: {}", thousands(found)),
        };
        self.tell(trouble);
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None => self.line(&with(text, trouble)),
        }
    }

    /// Says once what stands in the way.
    fn tell(&mut self, trouble: Option<&str>) {
        if self.told.is_news(trouble) {
            self.print(&format!("waiting: {}", trouble.unwrap_or_default()));
        }
    }

    /// Devices are being sent to.
    pub(crate) fn sending(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        let done = snapshot.ends.done();
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && self.samples[1].0 + RATE_OVER < now {
            self.samples.pop_front();
        }
        let text = self.describe(snapshot);
        self.tell(snapshot.trouble.as_deref());
        match &self.bar {
            Some(bar) => {
                let devices = snapshot.ends.total();
                if bar.length() != Some(devices) {
                    bar.set_length(devices);
                    let style = ProgressStyle::with_template("{bar:28} {percent:>3}%  {msg}")
                        .expect("a valid template");
                    bar.set_style(style.progress_chars("━╸─"));
                }
                bar.set_position(done);
                bar.set_message(text);
            }
            None => self.line(&with(text, snapshot.trouble.as_deref())),
        }
    }

    fn describe(&self, snapshot: &Snapshot) -> String {
        let (done, classes) = snapshot.ends.so_far();
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
            let left = snapshot.ends.pending as f64;
            if per_minute > 0.0 && left > 0.0 && snapshot.trouble.is_none() {
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

    /// A remark that stays, above the bar.
    pub(crate) fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    fn line(&mut self, text: &str) {
        if Instant::now() >= self.line_at {
            self.line_at = Instant::now() + LINE_EVERY;
            self.output.note(text);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            *shown() = None;
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trouble_whose_words_change_with_each_try_is_told_now_and_then() {
        let mut told = Told::default();
        assert!(told.is_news(Some("no route, try 1")));
        assert!(!told.is_news(Some("no route, try 2")));
        assert!(!told.is_news(Some("no route")));
        tokio::time::advance(LINE_EVERY).await;
        assert!(told.is_news(Some("no route")));
        tokio::time::advance(LINE_EVERY).await;
        assert!(!told.is_news(Some("no route")));
        assert!(!told.is_news(None));
        assert!(told.is_news(Some("no route")));
    }
}
