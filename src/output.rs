//! The program's output: results to standard output, everything else to standard error.
//!
//! With `--json`, standard output carries exactly one JSON object.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde_json::json;
pub(crate) use twincast_core::outcome::thousands;
use twincast_orchestrator::view::plan::MessageView;

use crate::failure::{ExitCode, Failure};

/// Returns true if standard error takes colours: on a terminal, and without `NO_COLOR`.
pub(crate) fn colours_enabled_on_stderr() -> bool {
    io::stderr().is_terminal() && colours_allowed()
}

fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The style of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Warn,
}

/// The destination and format of output.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// The error of the first result that could not be written.
    write_error: Arc<OnceLock<io::Error>>,
    /// Notes and errors go to the log.
    notes_are_logged: Arc<AtomicBool>,
    json: bool,
    colours_out: bool,
    colours_err: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            write_error: Arc::default(),
            notes_are_logged: Arc::default(),
            json,
            colours_out: io::stdout().is_terminal() && colours_allowed(),
            colours_err: colours_enabled_on_stderr(),
        }
    }

    /// From now on, notes and errors become log lines: a collector of JSON logs cannot read other
    /// lines.
    pub(crate) fn log_notes(&self) {
        self.notes_are_logged.store(true, Ordering::Relaxed);
    }

    fn is_logged(&self) -> bool {
        self.notes_are_logged.load(Ordering::Relaxed)
    }

    /// Returns true if results are printed as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns `text` in a style, if standard output takes colours.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        paint(self.colours_out, style, text)
    }

    /// Returns `text` in a style, if standard error takes colours.
    pub(crate) fn paint_note(&self, style: Style, text: &str) -> String {
        paint(self.colours_err, style, text)
    }

    /// Prints a result: `text` for people, or `value` as JSON.
    pub(crate) fn result(&self, value: &impl Serialize, text: &str) {
        if self.json {
            let value = serde_json::to_string(value).expect("results are plain data");
            self.out(&value);
        } else {
            self.out(&escape_text(text.trim_end_matches('\n')));
        }
    }

    /// Prints a line to standard output. [`write_failure`](Self::write_failure) reports a failed
    /// write at the end.
    pub(crate) fn out(&self, line: &str) {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            // Only the first error matters.
            _ = self.write_error.set(error);
        }
    }

    /// Returns a failure if a result could not be written. A closed pipe is no failure.
    pub(crate) fn write_failure(&self) -> Option<Failure> {
        let error = self.write_error.get()?;
        let found = anyhow::anyhow!("{error}");
        let error = found.context("cannot write the result to standard output");
        Some(Failure::new(ExitCode::Unexpected, error))
    }

    /// Prints a note for people, to standard error.
    pub(crate) fn note(&self, line: &str) {
        if self.is_logged() {
            tracing::info!(target: "twincast", "{line}");
            return;
        }
        let _ = writeln!(io::stderr().lock(), "{}", escape_text(line));
    }

    /// Prints a failure with causes and hint.
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
        self.print_failure(failure);
    }

    /// Prints a failure for people.
    pub(crate) fn print_failure(&self, failure: &Failure) {
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

    /// Prints the configuration in force.
    pub(crate) fn print_config(&self, settings: &impl Serialize) {
        let text = serde_json::to_string_pretty(settings).expect("settings are plain data");
        self.out(&crate::failure::scrub(&text));
    }
}

impl Style {
    const ALL: [Self; 5] = [Self::Bold, Self::Dim, Self::Good, Self::Bad, Self::Warn];

    /// Returns the escape sequence to switch the style on in a terminal.
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

/// The escape sequence to switch any style off.
const ENDS: &str = "\u{1b}[0m";

/// Returns a text as a single line with a style: the text may contain foreign input.
fn paint(colours: bool, style: Style, text: &str) -> String {
    let text = escape_line(text);
    match colours {
        true => format!("{}{text}{ENDS}", style.begins()),
        false => text,
    }
}

/// Returns true for characters with an effect on a terminal: control characters, and characters
/// with an effect on the direction of neighbouring text.
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

/// Returns foreign text as a single line without an effect on a terminal. Line breaks are escaped,
/// so foreign text cannot imitate a line of this program.
pub(crate) fn escape_line(words: &str) -> String {
    escaped(words, |_| false)
}

/// Describes the message to the devices in a single line: the size, and the first thousand
/// characters.
pub(crate) fn message(message: &MessageView) -> String {
    const MAX_CHARS: usize = 1_000;
    let size = with_noun(message.body_bytes, "byte", "bytes");
    let of_type = match &message.content_type {
        Some(content_type) => format!("{size} of {}", escape_line(content_type)),
        None => size,
    };
    let Some(body) = &message.body else {
        return format!("{of_type}, not text");
    };
    let shown: String = body.chars().take(MAX_CHARS).collect();
    match body.len() - shown.len() {
        0 => format!("{of_type}: {}", escape_line(&shown)),
        rest => format!("{of_type}: {} and {rest} bytes more", escape_line(&shown)),
    }
}

/// Escapes a foreign text of several lines, such as the body of a message, and indents each line.
pub(crate) fn indent_and_escape(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| format!("  {}", escaped(line, |c| c == '\t')));
    lines.collect::<Vec<_>>().join("\n")
}

/// Escapes the program's own text with foreign parts for a terminal: keeps lines, tabs and the
/// program's styles, escapes all other control characters.
fn escape_text(text: &str) -> String {
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

/// Formats a number with the noun in singular or plural.
pub(crate) fn with_noun(number: u64, one: &str, many: &str) -> String {
    let word = if number == 1 { one } else { many };
    format!("{} {word}", thousands(number))
}

/// Returns the predicate of a sentence about a rollout in a phase.
pub(crate) fn phase_predicate(phase: &str) -> String {
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

/// The longest cell of a table, in characters. `--json` prints the full text.
const MAX_CELL_CHARS: usize = 100;

/// Formats a cell of a table: a single line of limited length.
fn cell(text: &str) -> String {
    let text = escape_line(text);
    match text.char_indices().nth(MAX_CELL_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Formats a table: columns padded to the widest cell, numbers to the right.
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
    fn foreign_text_has_no_effect_on_a_terminal() {
        let table = [
            ("fine: Åse, 雪, ok\\n", "fine: Åse, 雪, ok\\n"),
            ("a\nb succeeded", "a\\nb succeeded"),
            ("\r\u{1b}[2Jx\u{7}", "\\r\\u{1b}[2Jx\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}b\u{2028}c", "a\\u{202e}b\\u{2028}c"),
        ];
        for (words, line) in table {
            assert_eq!(escape_line(words), line);
        }
        assert_eq!(
            indent_and_escape("a\n\u{1b}[1mb\tc"),
            "  a\n  \\u{1b}[1mb\tc"
        );
    }

    #[test]
    fn own_styles_are_kept_and_foreign_styles_are_escaped() {
        let ours = format!("{}\n\u{1b}[0m", paint(true, Style::Bad, "x\u{1b}[1m\ny"));
        assert_eq!(ours, "\u{1b}[1;31mx\\u{1b}[1m\\ny\u{1b}[0m\n\u{1b}[0m");
        assert_eq!(escape_text(&ours), ours);
        assert_eq!(
            escape_text("a\u{1b}]0;title\u{7}\n"),
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
    fn nouns_are_singular_for_one() {
        assert_eq!(with_noun(1, "batch", "batches"), "1 batch");
        assert_eq!(with_noun(0, "batch", "batches"), "0 batches");
        assert_eq!(with_noun(1_200, "batch", "batches"), "1,200 batches");
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
