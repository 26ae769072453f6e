//! `twincast delete`: removes an ended rollout.

use std::fs::{self, File};
use std::io::{self, BufWriter, IntoInnerError, Write as _};
use std::path::Path;

use twincast_orchestrator::command::{Command, Kind};
use twincast_orchestrator::view::RolloutView;
use twincast_orchestrator::view::devices::{DeviceFilter, Format};

use super::change::command_about;
use super::report::{Pieces, ReportError, each};
use crate::args::DeleteArgs;
use crate::client::Client;
use crate::command_sender::CommandSender;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, escape_line};

pub(crate) async fn delete(
    args: &DeleteArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let name = &args.change.name;
    let command = Command {
        reason: args.change.reason.clone(),
        ..command_about(Kind::Delete, name)?
    };
    if let Some(path) = &args.archive {
        let client = Client::for_reading(settings).await?;
        let archived = archive(&client, name, path).await;
        client.close().await;
        archived?;
        output.note(&format!("Archive written: {}", path.display()));
    }
    let sender = CommandSender::connect(settings, &args.change.caller).await?;
    let answer = sender.ask(command).await;
    sender.close().await;
    let answer = answer?;
    let text = match &answer.note {
        Some(note) => format!("nothing to delete: {}", escape_line(note)),
        None => format!("{name} is deleted"),
    };
    output.result(&answer, &text);
    Ok(ExitCode::Success)
}

/// Writes a rollout and the devices to a new file, and syncs the file to disk. Removes an
/// incomplete file.
async fn archive(client: &Client, name: &str, path: &Path) -> Result<(), Failure> {
    let rollout = client.rollout(name).await?;
    let devices = client
        .devices(name, &DeviceFilter::all(), Format::JsonLines)
        .await?;
    let failed = |error| {
        let error = anyhow::Error::new(error);
        let error = error.context(format!("cannot write the archive {}", path.display()));
        Failure::new(ExitCode::Unexpected, error)
    };
    let file = File::create_new(path).map_err(failed)?;
    let written = write(file, &rollout, devices).await;
    if written.is_err() {
        _ = fs::remove_file(path);
    }
    written.map_err(|error| match error {
        ReportError::Read(failure) => failure,
        ReportError::Write(error) => failed(error),
    })
}

async fn write(file: File, rollout: &RolloutView, devices: Pieces) -> Result<(), ReportError> {
    let mut out = BufWriter::new(file);
    let rollout = serde_json::to_string(rollout).map_err(io::Error::from)?;
    writeln!(out, "{{\"rollout\":{rollout}}}")?;
    each(devices, |piece| out.write_all(&piece)).await?;
    let file = out.into_inner().map_err(IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}
