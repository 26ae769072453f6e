//! `twincast report`: what became of each device.

use std::io::{self, Write};

use serde::Serialize;
use twincast_core::ids::RolloutName;
use twincast_core::message::MessageId;
use twincast_core::outcome::{Outcome, UnknownOutcome};
use twincast_core::ports::{Store, StoreError};
use twincast_core::rollout::{Phase, Rollout};

use crate::args::{ReportArgs, ReportFormat};
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
use crate::stores;
use crate::summary;

#[derive(Debug, Serialize)]
struct Row<'a> {
    device: &'a str,
    hub: &'a str,
    group: &'a str,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
    message_id: String,
}

pub(crate) async fn report(
    args: &ReportArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let wanted = wanted(args)?;
    let store = stores::open(settings).await?;
    let rollout = stores::rollout(&store, &args.name).await?;
    let name = rollout.spec.name.clone();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = if output.is_json() {
        write_object(&*store, &rollout, &wanted, &mut out).await
    } else {
        match args.format {
            ReportFormat::Table => {
                let mut table = Table::new(&mut out, &rollout.phase);
                write_rows(&*store, &name, &wanted, &mut table).await
            }
            ReportFormat::Csv => write_rows(&*store, &name, &wanted, &mut Csv::new(&mut out)).await,
            ReportFormat::Jsonl => {
                write_rows(&*store, &name, &wanted, &mut JsonLines(&mut out)).await
            }
        }
    };
    let flushed = written.and_then(|()| out.flush().map_err(Into::into));
    store.close().await;
    match flushed {
        Ok(()) => Ok(ExitCode::Success),
        // `report | head` is no failure.
        Err(ReportError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::Success)
        }
        Err(ReportError::Write(error)) => Err(Failure::new(ExitCode::Unexpected, error)),
        Err(ReportError::Store(error)) => Err(engine::store_failure(error)),
    }
}

/// One object, streamed: the summary with the list of devices at its end.
async fn write_object(
    store: &dyn Store,
    rollout: &Rollout,
    wanted: &[Outcome],
    mut out: impl Write,
) -> Result<(), ReportError> {
    let summary = summary::read(store, rollout).await?;
    let head = serde_json::to_string(&summary).map_err(io::Error::from)?;
    let head = head.strip_suffix('}').expect("a summary is an object");
    write!(out, "{head},\"devices_list\":[")?;
    let mut rows = JsonArray {
        out: &mut out,
        first: true,
    };
    write_rows(store, &rollout.spec.name, wanted, &mut rows).await?;
    writeln!(out, "]}}")?;
    Ok(())
}

fn wanted(args: &ReportArgs) -> Result<Vec<Outcome>, Failure> {
    if args.failed {
        return Ok(Outcome::ALL
            .into_iter()
            .filter(|outcome| !outcome.was_enqueued() || outcome.is_failure())
            .collect());
    }
    if args.outcome.is_empty() {
        return Ok(Outcome::ALL.to_vec());
    }
    outcomes(&args.outcome)
}

/// Outcomes by their names.
pub(crate) fn outcomes(names: &[String]) -> Result<Vec<Outcome>, Failure> {
    let read = names.iter().map(|name| name.parse());
    read.collect::<Result<_, UnknownOutcome>>()
        .map_err(|error| Failure::new(ExitCode::Usage, error))
}

#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("cannot read the rollout")]
    Store(#[from] StoreError),
    #[error("cannot write the report")]
    Write(#[from] io::Error),
}

async fn write_rows(
    store: &dyn Store,
    name: &RolloutName,
    wanted: &[Outcome],
    sink: &mut dyn Sink,
) -> Result<(), ReportError> {
    sink.begin()?;
    let mut after = None;
    loop {
        let page = store.batches(name, after, 64).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.header.id);
        for status in &page {
            if wanted
                .iter()
                .all(|outcome| status.counts.get(*outcome) == 0)
            {
                continue;
            }
            let work = store.load(name, status.header.id).await?;
            let group = status.header.group.to_string();
            for device in work.devices() {
                if wanted.contains(&device.outcome) {
                    let id = MessageId {
                        rollout: name.clone(),
                        batch: status.header.id,
                        index: device.index,
                        // Attempts are told apart by batch. A device that was not among those
                        // retried was sent an earlier one.
                        attempt: work.attempt,
                    };
                    let row = Row {
                        device: device.id,
                        hub: status.header.hub.as_str(),
                        group: &group,
                        outcome: device.outcome,
                        code: device.code,
                        message_id: id.to_string(),
                    };
                    sink.row(&row)?;
                }
            }
        }
    }
}

trait Sink {
    /// What comes before the rows, be there any or not.
    fn begin(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn row(&mut self, row: &Row<'_>) -> io::Result<()>;
}

struct Table<'a, W> {
    out: W,
    phase: &'a Phase,
    headed: bool,
}

impl<'a, W: Write> Table<'a, W> {
    fn new(out: W, phase: &'a Phase) -> Self {
        Self {
            out,
            phase,
            headed: false,
        }
    }
}

impl<W: Write> Sink for Table<'_, W> {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        if !self.headed {
            self.headed = true;
            writeln!(
                self.out,
                "{:<32} {:<12} {:<14} {:<28} reason",
                "device", "hub", "outcome", "group"
            )?;
        }
        let reason = summary::reason_in(self.phase, row.outcome, row.code.unwrap_or(0));
        writeln!(
            self.out,
            "{:<32} {:<12} {:<14} {:<28} {reason}",
            row.device,
            row.hub,
            row.outcome.as_str(),
            row.group
        )
    }
}

struct Csv<W: Write>(csv::Writer<W>);

impl<W: Write> Csv<W> {
    fn new(out: W) -> Self {
        Self(
            csv::WriterBuilder::new()
                .has_headers(false)
                .from_writer(out),
        )
    }

    fn record(&mut self, fields: [&str; 6]) -> io::Result<()> {
        self.0
            .write_record(fields)
            .map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(error) => error,
                other => io::Error::other(format!("{other:?}")),
            })
    }
}

impl<W: Write> Sink for Csv<W> {
    fn begin(&mut self) -> io::Result<()> {
        self.record(["device", "hub", "group", "outcome", "code", "message_id"])
    }

    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        let code = row.code.map(|code| code.to_string()).unwrap_or_default();
        self.record([
            row.device,
            row.hub,
            row.group,
            row.outcome.as_str(),
            &code,
            &row.message_id,
        ])
    }
}

struct JsonLines<W>(W);

impl<W: Write> Sink for JsonLines<W> {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, row)?;
        writeln!(self.0)
    }
}

struct JsonArray<W> {
    out: W,
    first: bool,
}

impl<W: Write> Sink for JsonArray<W> {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            write!(self.out, ",")?;
        }
        serde_json::to_writer(&mut self.out, row)?;
        Ok(())
    }
}
