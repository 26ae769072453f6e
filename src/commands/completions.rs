//! `twincast completions` and `twincast man`: generated from the grammar of the command line.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::failure::{ExitCode, Failure};
use crate::output::Output;

/// Prints the completions of a shell to standard output.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "twincast", &mut text);
    match std::io::stdout().write_all(&text) {
        // `completions bash | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::Success),
    }
}

/// Writes the man pages of a command and of all subcommands.
fn page(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        page(below, folder)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    let name = name.to_owned();
    let man = clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .source(concat!("twincast ", env!("CARGO_PKG_VERSION")))
        .manual("Twincast");
    let mut text = Vec::new();
    man.render(&mut text)?;
    // The text after the help lists the exit codes.
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA\n", ".SH \"EXIT STATUS\"\n");
    std::fs::write(folder.join(format!("{name}.1")), text)
}

/// Writes man pages into a folder: a page for the program and a page per command.
pub(crate) fn man(folder: &Path, output: &Output) -> Result<ExitCode, Failure> {
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| {
            let mut program = Args::command().disable_help_subcommand(true);
            program.build();
            page(&program, folder)
        })
        .with_context(|| format!("cannot write man pages into {}", folder.display()));
    written.map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let text = format!("man -l {}", folder.join("twincast.1").display());
    output.result(&serde_json::json!({ "folder": folder }), &text);
    Ok(ExitCode::Success)
}
