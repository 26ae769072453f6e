//! `twincast report`: the outcome of each device.

use std::error::Error;
use std::io::{self, Write};
use std::str::FromStr;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use twincast_core::outcome::OutcomeClass;
use twincast_orchestrator::view::devices::{DeviceFilter, DeviceRow, Format};
use twincast_orchestrator::view::outcomes::reason_in;

use crate::args::{ReportArgs, ReportFormat};
use crate::client::Client;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::omissions;
use crate::output::{Output, escape_line};
use crate::summary;

pub(crate) async fn report(
    args: &ReportArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let filter = device_filter(args)?;
    if output.is_json() && !matches!(args.format, ReportFormat::Table) {
        let message = "--json cannot be combined with this --format: --json writes one JSON object, this --format writes one line per device";
        return Err(Failure::message(ExitCode::Usage, message));
    }
    let client = Client::for_reading(settings).await?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = write(&client, args, &filter, output, &mut out).await;
    let flushed = written.and_then(|()| out.flush().map_err(ReportError::Write));
    // The object of `--json` contains the plan.
    let whole = match flushed {
        Ok(()) if !output.is_json() => note_omissions(&client, args, output).await,
        flushed => flushed,
    };
    client.close().await;
    match whole {
        Ok(()) => Ok(ExitCode::Success),
        // `report | head` is no failure.
        Err(ReportError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::Success)
        }
        Err(ReportError::Write(error)) => {
            let error = anyhow::Error::new(error).context("cannot write the report");
            Err(Failure::new(ExitCode::Unexpected, error))
        }
        Err(ReportError::Read(failure)) => Err(failure),
    }
}

/// Prints the rows left out of the plan, since the devices of unreadable rows appear in no list.
async fn note_omissions(
    client: &Client,
    args: &ReportArgs,
    output: &Output,
) -> Result<(), ReportError> {
    let rollout = client.rollout(&args.name).await?;
    let plan = summary::plan_of(&rollout);
    let lines = plan.as_ref().map(omissions::lines).unwrap_or_default();
    if !lines.is_empty() {
        output.note("Left out of the plan and of this report:");
        lines.iter().for_each(|line| output.note(line));
    }
    Ok(())
}

async fn write(
    client: &Client,
    args: &ReportArgs,
    filter: &DeviceFilter,
    output: &Output,
    out: &mut impl Write,
) -> Result<(), ReportError> {
    let format = match args.format {
        ReportFormat::Csv => Format::Csv,
        ReportFormat::Spreadsheet => Format::Spreadsheet,
        _ => Format::JsonLines,
    };
    let devices = client.devices(&args.name, filter, format).await?;
    if output.is_json() {
        return write_object(client, args, devices, out).await;
    }
    match args.format {
        ReportFormat::Table => write_table(client, args, devices, out).await,
        ReportFormat::Csv | ReportFormat::Spreadsheet | ReportFormat::Jsonl => {
            each(devices, |piece| out.write_all(&piece)).await
        }
    }
}

/// Streams a single object: the summary, with the list of devices at the end.
async fn write_object(
    client: &Client,
    args: &ReportArgs,
    devices: Pieces,
    out: &mut impl Write,
) -> Result<(), ReportError> {
    let summary = client.summary(&args.name).await?;
    let head = serde_json::to_string(&summary).map_err(io::Error::from)?;
    let head = head.strip_suffix('}').expect("a summary is an object");
    write!(out, "{head},\"devices_list\":[")?;
    let mut comma: &[u8] = b"";
    each_line(devices, |line| {
        out.write_all(comma)?;
        comma = b",";
        out.write_all(line)
    })
    .await?;
    writeln!(out, "]}}")?;
    Ok(())
}

async fn write_table(
    client: &Client,
    args: &ReportArgs,
    devices: Pieces,
    out: &mut impl Write,
) -> Result<(), ReportError> {
    let state = client.rollout(&args.name).await?.row.state;
    let aborted = state
        .reason
        .filter(|_| matches!(&*state.phase, "aborting" | "aborted"));
    let mut is_headed = false;
    each_line(devices, |line| {
        let row: DeviceRow = serde_json::from_slice(line)?;
        if !std::mem::replace(&mut is_headed, true) {
            writeln!(
                out,
                "{:<32} {:<12} {:<14} {:<10} {:<28} reason",
                "device", "hub", "outcome", "class", "group"
            )?;
        }
        let reason = match &row.error {
            Some(error) => error.to_string(),
            None => reason_in(aborted.as_deref(), row.outcome, row.code.unwrap_or(0)),
        };
        let (outcome, class) = (row.outcome.as_str(), row.class.as_str());
        writeln!(
            out,
            "{:<32} {:<12} {outcome:<14} {class:<10} {:<28} {}",
            escape_line(&row.device),
            escape_line(&row.hub),
            escape_line(&row.group),
            escape_line(&reason)
        )
    })
    .await
}

fn device_filter(args: &ReportArgs) -> Result<DeviceFilter, Failure> {
    if args.failed {
        let failures = OutcomeClass::ALL
            .into_iter()
            .filter(|class| class.is_failure());
        Ok(DeviceFilter::Classes(failures.collect()))
    } else if !args.class.is_empty() {
        named(&args.class).map(DeviceFilter::Classes)
    } else if !args.outcome.is_empty() {
        named(&args.outcome).map(DeviceFilter::Outcomes)
    } else {
        Ok(DeviceFilter::all())
    }
}

/// Parses outcomes or classes by name.
pub(crate) fn named<T>(names: &[String]) -> Result<Vec<T>, Failure>
where
    T: FromStr<Err: Error + Send + Sync + 'static>,
{
    let read = names.iter().map(|name| name.parse());
    read.collect::<Result<_, T::Err>>()
        .map_err(|error| Failure::new(ExitCode::Usage, error))
}

#[derive(Debug)]
pub(super) enum ReportError {
    Read(Failure),
    Write(io::Error),
}

impl From<Failure> for ReportError {
    fn from(failure: Failure) -> Self {
        Self::Read(failure)
    }
}

impl From<io::Error> for ReportError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// Text in pieces, cut at arbitrary positions.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, Failure>>;

pub(super) async fn each(
    mut pieces: Pieces,
    mut write: impl FnMut(Bytes) -> io::Result<()>,
) -> Result<(), ReportError> {
    while let Some(piece) = pieces.try_next().await? {
        write(piece)?;
    }
    Ok(())
}

/// Passes each line of a text to `write`, without the line end. Holds a single piece and a single
/// line in memory.
async fn each_line(
    pieces: Pieces,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), ReportError> {
    let mut partial = Vec::new();
    each(pieces, |piece| {
        let mut rest = &piece[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            partial.extend_from_slice(&rest[..end]);
            write(&partial)?;
            partial.clear();
            rest = &rest[end + 1..];
        }
        partial.extend_from_slice(rest);
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn lines_are_whole_at_any_chunk_size() {
        let text = b"one\ntwo\n\nfour\n";
        for size in 1..text.len() {
            let pieces = text
                .chunks(size)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)));
            let pieces: Vec<_> = pieces.collect();
            let mut lines = Vec::new();
            let take = |line: &[u8]| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            };
            each_line(stream::iter(pieces).boxed(), take).await.unwrap();
            assert_eq!(lines, ["one", "two", "", "four"], "{size}");
        }
    }
}
