//! What the program prints: results to standard output, the rest to standard error.
//!
//! With `--json`, standard output carries exactly one JSON object.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde_json::json;
pub(crate) use twincast_core::outcome::thousands;
use twincast_orchestrator::view::plan::MessageView;

use crate::exit::{ExitCode, Failure};

/// Colours on standard error: only on a terminal, and not when `NO_COLOR` is set.
pub(crate) fn colours_wanted_on_stderr() -> bool {
    io::stderr().is_terminal() && colours_allowed()
}

fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// How text is set off.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Warn,
}

/// Where output goes, and how.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// Why a result could not be written, if one could not.
    lost: Arc<OnceLock<io::Error>>,
    /// What is said to people stands in the log, as lines of it.
    logged: Arc<AtomicBool>,
    json: bool,
    colours_out: bool,
    colours_err: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            lost: Arc::default(),
            logged: Arc::default(),
            json,
            colours_out: io::stdout().is_terminal() && colours_allowed(),
            colours_err: colours_wanted_on_stderr(),
        }
    }

    /// From now on, what is said to people becomes lines of the log: whoever collects it as JSON can read no others.
    pub(crate) fn say_in_log(&self) {
        self.logged.store(true, Ordering::Relaxed);
    }

    fn is_logged(&self) -> bool {
        self.logged.load(Ordering::Relaxed)
    }

    /// Results are wanted as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// `text` in a style, where standard output takes colours.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        paint(self.colours_out, style, text)
    }

    /// `text` in a style, where standard error takes colours.
    pub(crate) fn paint_note(&self, style: Style, text: &str) -> String {
        paint(self.colours_err, style, text)
    }

    /// A result: the text for people, or the value for machines.
    pub(crate) fn result(&self, value: &impl Serialize, text: &str) {
        if self.json {
            let value = serde_json::to_string(value).expect("results are plain data");
            self.out(&value);
        } else {
            self.out(&printable(text.trim_end_matches('\n')));
        }
    }

    /// A line to standard output. That it could not be written is [told at the end](Self::lost).
    pub(crate) fn out(&self, line: &str) {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            // The first is the one that matters.
            _ = self.lost.set(error);
        }
    }

    /// A failure, if a result could not be written. A reader that went away is none.
    pub(crate) fn lost(&self) -> Option<Failure> {
        let error = self.lost.get()?;
        let found = anyhow::anyhow!("{error}");
        let error = found.context("cannot write the result to standard output");
        Some(Failure::new(ExitCode::Unexpected, error))
    }

    /// A remark for people, to standard error.
    pub(crate) fn note(&self, line: &str) {
        if self.is_logged() {
            tracing::info!(target: "twincast", "{line}");
            return;
        }
        let _ = writeln!(io::stderr().lock(), "{}", printable(line));
    }

    /// A failure, with its causes and what to do.
    pub(crate) fn failure(&self, failure: &Failure) {
        let lines = failure.lines();
        if self.json {
            let value = json!({
                "error": {
                    "message": lines.join(": "),
                    "causes": lines.get(1..).unwrap_or_default(),
                    "hint": failure.hint,
                    "exit_code": failure.code as u8,
                }
            });
            self.out(&value.to_string());
        }
        self.complain(failure);
    }

    /// A failure, for people.
    pub(crate) fn complain(&self, failure: &Failure) {
        let lines = failure.lines();
        if self.is_logged() {
            let (error, hint) = (lines.join(": "), failure.hint.as_deref());
            tracing::error!(target: "twincast", error, hint, exit_code = failure.code as u8, "the process ends with an error");
            return;
        }
        let mut text = paint(self.colours_err, Style::Bad, "error: ");
        text.push_str(&lines.join("\n  because: "));
        if let Some(hint) = &failure.hint {
            text.push_str(&format!(
                "\n{} {hint}",
                paint(self.colours_err, Style::Bold, "What to do:")
            ));
        }
        self.note(&text);
    }

    /// The configuration in force.
    pub(crate) fn print_config(&self, settings: &impl Serialize) {
        let text = serde_json::to_string_pretty(settings).expect("settings are plain data");
        self.out(&crate::exit::scrub(&text));
    }
}

impl Style {
    const ALL: [Self; 5] = [Self::Bold, Self::Dim, Self::Good, Self::Bad, Self::Warn];

    /// What switches it on in a terminal.
    fn begins(self) -> &'static str {
        match self {
            Self::Bold => "\u{1b}[1m",
            Self::Dim => "\u{1b}[2m",
            Self::Good => "\u{1b}[32m",
            Self::Bad => "\u{1b}[1;31m",
            Self::Warn => "\u{1b}[33m",
        }
    }
}

/// What switches any style off.
const ENDS: &str = "\u{1b}[0m";

/// What is painted is somebody's words, or may have some in it: it is one line.
fn paint(colours: bool, style: Style, text: &str) -> String {
    let text = one_line(text);
    match colours {
        true => format!("{}{text}{ENDS}", style.begins()),
        false => text,
    }
}

/// Whether a terminal would do something else with it than show it: control characters, and those that change the
/// direction of what is around them.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) && !is_kept(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Somebody's words as one line that a terminal shows and does not obey. Their line breaks are shown: they cannot begin
/// a line that looks like one of ours.
pub(crate) fn one_line(words: &str) -> String {
    escaped(words, |_| false)
}

/// What each device is sent, in one line with its size; the first thousand characters of it.
pub(crate) fn message(message: &MessageView) -> String {
    const SHOWN: usize = 1_000;
    let size = counted(message.body_bytes, "byte", "bytes");
    let of_type = match &message.content_type {
        Some(content_type) => format!("{size} of {}", one_line(content_type)),
        None => size,
    };
    let Some(body) = &message.body else {
        return format!("{of_type}, which are no text");
    };
    let shown: String = body.chars().take(SHOWN).collect();
    match body.len() - shown.len() {
        0 => format!("{of_type}: {}", one_line(&shown)),
        rest => format!("{of_type}: {} and {rest} bytes more", one_line(&shown)),
    }
}

/// The same of somebody's text that has lines, such as the body of a message: each is set in from the margin.
pub(crate) fn set_in(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| format!("  {}", escaped(line, |c| c == '\t')));
    lines.collect::<Vec<_>>().join("\n")
}

/// Text of ours with whatever is in it, as a terminal may have it: lines and our styles stay, all other controls are
/// shown.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        let (before, here) = rest.split_at(at);
        out.push_str(&escaped(before, |c| matches!(c, '\n' | '\t')));
        let mut ours = Style::ALL.into_iter().map(Style::begins).chain([ENDS]);
        let taken = match ours.find(|sequence| here.starts_with(sequence)) {
            Some(sequence) => {
                out.push_str(sequence);
                sequence.len()
            }
            None => {
                out.push_str("\\u{1b}");
                1
            }
        };
        rest = &here[taken..];
    }
    out + &escaped(rest, |c| matches!(c, '\n' | '\t'))
}

/// So many of something.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    let word = if number == 1 { one } else { many };
    format!("{} {word}", thousands(number))
}

/// What a rollout does in a phase, as the end of a sentence that begins with its name.
pub(crate) fn does(phase: &str) -> String {
    match phase {
        "planning" => "is being planned".to_owned(),
        "succeeded" => "has succeeded".to_owned(),
        "finished_with_failures" => "has finished with failures".to_owned(),
        "failed" => "has failed".to_owned(),
        "aborting" => "is being aborted".to_owned(),
        "aborted" => "was aborted".to_owned(),
        phase => format!("is {}", phase.replace('_', " ")),
    }
}

/// The longest cell of a table, in characters. `--json` has all of it.
const CELL: usize = 100;

/// A table's cell: one line, and not too long.
fn cell(text: &str) -> String {
    let text = one_line(text);
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A table for people: columns padded to their widest cell, numbers to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let columns = headings.len();
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|row| row.iter().map(|text| cell(text)).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([headings[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let numeric = |column: usize| {
        rows.iter().all(|row| {
            row[column].is_empty()
                || row[column].starts_with(|c: char| c.is_ascii_digit() || c == '-')
        })
    };
    let right: Vec<_> = (0..columns)
        .map(|column| column > 0 && numeric(column))
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let fill = " ".repeat(widths[column] - cell.chars().count());
            if right[column] {
                format!("{fill}{cell}")
            } else {
                format!("{cell}{fill}")
            }
        });
        format!("  {}", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let headings: Vec<String> = headings
        .iter()
        .map(|heading| (*heading).to_owned())
        .collect();
    let mut lines = vec![line(&headings)];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebodys_words_are_shown_and_not_obeyed() {
        let table = [
            ("fine: Åse, 雪, ok\\n", "fine: Åse, 雪, ok\\n"),
            ("a\nb succeeded", "a\\nb succeeded"),
            ("\r\u{1b}[2Jx\u{7}", "\\r\\u{1b}[2Jx\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}b\u{2028}c", "a\\u{202e}b\\u{2028}c"),
        ];
        for (words, line) in table {
            assert_eq!(one_line(words), line);
        }
        assert_eq!(set_in("a\n\u{1b}[1mb\tc"), "  a\n  \\u{1b}[1mb\tc");
    }

    #[test]
    fn our_styles_stay_and_others_are_shown() {
        let ours = format!("{}\n\u{1b}[0m", paint(true, Style::Bad, "x\u{1b}[1m\ny"));
        assert_eq!(ours, "\u{1b}[1;31mx\\u{1b}[1m\\ny\u{1b}[0m\n\u{1b}[0m");
        assert_eq!(printable(&ours), ours);
        assert_eq!(
            printable("a\u{1b}]0;title\u{7}\n"),
            "a\\u{1b}]0;title\\u{7}\n"
        );
    }

    #[test]
    fn cells_are_short_lines() {
        let rows = vec![vec!["a\nb".into(), "x".repeat(300)]];
        let shown = table(&["name", "why"], &rows);
        assert_eq!(shown.lines().count(), 2);
        assert!(shown.lines().all(|line| line.len() < 120), "{shown}");
    }

    #[test]
    fn one_is_one() {
        assert_eq!(counted(1, "batch", "batches"), "1 batch");
        assert_eq!(counted(0, "batch", "batches"), "0 batches");
        assert_eq!(counted(1_200, "batch", "batches"), "1,200 batches");
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![
            vec!["eu".into(), "1,000".into()],
            vec!["north".into(), "7".into()],
        ];
        assert_eq!(
            table(&["region", "devices"], &rows),
            "  region  devices\n  eu        1,000\n  north         7"
        );
    }
}
