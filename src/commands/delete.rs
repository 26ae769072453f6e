//! `twincast delete`: removes a rollout that has ended.

use std::fs::{self, File};
use std::io::{BufWriter, IntoInnerError, Write as _};
use std::path::Path;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use twincast_core::outcome::Outcome;
use twincast_orchestrator::command::{Command, Kind};
use twincast_orchestrator::view::devices::{Format, Wanted};

use super::change::about;
use crate::args::DeleteArgs;
use crate::commander::Commander;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, one_line};
use crate::place::Place;

pub(crate) async fn delete(
    args: &DeleteArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let name = &args.change.name;
    let command = Command {
        reason: args.change.reason.clone(),
        ..about(Kind::Delete, name)?
    };
    if let Some(path) = &args.archive {
        let place = Place::open(settings).await?;
        let archived = archive(&place, name, path).await;
        place.close().await;
        archived?;
        output.note(&format!("Its record is in {}.", path.display()));
    }
    let commander = Commander::connect(settings, &args.change.who).await?;
    let answer = commander.ask(command).await;
    commander.close().await;
    let answer = answer?;
    let text = match &answer.note {
        Some(note) => format!("nothing to delete: {}", one_line(note)),
        None => format!("{name} is deleted"),
    };
    output.result(&answer, &text);
    Ok(ExitCode::Success)
}

/// Writes a rollout and its devices to a new file, and waits until they are on disk. A file that could not be written
/// whole is removed.
async fn archive(place: &Place, name: &str, path: &Path) -> Result<(), Failure> {
    let rollout = place.rollout(name).await?;
    let devices = Wanted::Outcomes(Outcome::ALL.to_vec());
    let devices = place.devices(name, &devices, Format::JsonLines).await?;
    let in_words = || format!("cannot write the archive {}", path.display());
    let failed = |error| Failure::new(ExitCode::Unexpected, error);
    let file = File::create_new(path)
        .with_context(in_words)
        .map_err(failed)?;
    let mut out = BufWriter::new(file);
    let written = async {
        let rollout = serde_json::to_string(&rollout).with_context(in_words);
        let rollout = rollout.map_err(failed)?;
        writeln!(out, "{{\"rollout\":{rollout}}}")
            .with_context(in_words)
            .map_err(failed)?;
        let mut devices = devices;
        while let Some(piece) = devices.try_next().await? {
            out.write_all(&piece)
                .with_context(in_words)
                .map_err(failed)?;
        }
        let file = out.into_inner().map_err(IntoInnerError::into_error);
        let kept = file.and_then(|file| file.sync_all());
        kept.with_context(in_words).map_err(failed)
    };
    let written = written.await;
    if written.is_err() {
        _ = fs::remove_file(path);
    }
    written
}
