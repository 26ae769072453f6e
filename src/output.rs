//! What the program prints: results to standard output, the rest to standard error.
//!
//! With `--json`, standard output carries exactly one JSON object.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use serde_json::json;
pub(crate) use twincast_core::outcome::thousands;

use crate::config::Settings;
use crate::exit::Failure;

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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    colours_out: bool,
    colours_err: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            colours_out: io::stdout().is_terminal() && colours_allowed(),
            colours_err: colours_wanted_on_stderr(),
        }
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
            self.out(text.trim_end_matches('\n'));
        }
    }

    /// A line to standard output. A reader that went away is no error.
    pub(crate) fn out(&self, line: &str) {
        let _ = writeln!(io::stdout().lock(), "{line}");
    }

    /// A remark for people, to standard error.
    pub(crate) fn note(&self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// A failure, with its causes and what to do.
    pub(crate) fn failure(&self, failure: &Failure) {
        let lines = failure.lines();
        if self.json {
            let value = json!({
                "error": { "message": lines.join(": "), "hint": failure.hint, "exit_code": failure.code as u8 }
            });
            self.out(&value.to_string());
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
    pub(crate) fn print_config(&self, settings: &Settings) {
        let text = serde_json::to_string_pretty(settings).expect("settings are plain data");
        self.out(&crate::exit::scrub(&text));
    }
}

fn paint(colours: bool, style: Style, text: &str) -> String {
    if !colours {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Good => "32",
        Style::Bad => "1;31",
        Style::Warn => "33",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// A table for people: columns padded to their widest cell, numbers to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let columns = headings.len();
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
