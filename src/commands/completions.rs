//! `twincast completions` and `twincast man`: made from the command line's grammar.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;

/// Writes the completions of a shell to standard output.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "twincast", &mut text);
    match std::io::stdout().write_all(&text) {
        // `completions bash | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::Success),
    }
}

/// Writes a page for the program and one for each command into a folder.
pub(crate) fn man(folder: &Path, output: &Output) -> Result<ExitCode, Failure> {
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
        .with_context(|| format!("cannot write man pages into {}", folder.display()));
    written.map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let text = format!("man -l {}", folder.join("twincast.1").display());
    output.result(&serde_json::json!({ "folder": folder }), &text);
    Ok(ExitCode::Success)
}
