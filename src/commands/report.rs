//! `twincast report`: what became of each device.

use std::io::{self, Write};

use serde::Serialize;
use twincast_core::ids::{Attempt, RolloutName};
use twincast_core::message::MessageId;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{Store, StoreError};

use crate::args::{ReportArgs, ReportFormat};
use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
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
    let name =
        RolloutName::new(&args.name).map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let wanted = wanted(args)?;
    if !settings.state.exists() {
        let message = format!("there is no state folder {}", settings.state.display());
        return Err(Failure::message(ExitCode::State, message)
            .hint("run this where `twincast run` was run, or give its --state"));
    }
    let store = engine::open_store(&settings.state)?;
    let state = |error: StoreError| Failure::new(ExitCode::State, error);
    let Some(rollout) = store.rollout(&name).await.map_err(state)? else {
        let names: Vec<_> = store
            .rollouts()
            .await
            .map_err(state)?
            .iter()
            .map(ToString::to_string)
            .collect();
        let names = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        let message = format!(
            "there is no rollout {name} in {}; there are: {names}",
            settings.state.display()
        );
        return Err(Failure::message(ExitCode::Refused, message));
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = if output.is_json() {
        let summary = summary::read(&store, &rollout).await.map_err(state)?;
        let head = serde_json::to_string(&summary).map_err(anyhow::Error::new)?;
        // One object, streamed: the summary with a list of devices at its end.
        write!(
            out,
            "{},\"devices_list\":[",
            head.strip_suffix('}').unwrap_or(&head)
        )?;
        let written = write_rows(
            &store,
            &name,
            &wanted,
            &mut JsonArray {
                out: &mut out,
                first: true,
            },
        )
        .await;
        writeln!(out, "]}}")?;
        written
    } else {
        match args.format {
            ReportFormat::Table => {
                write_rows(
                    &store,
                    &name,
                    &wanted,
                    &mut Table {
                        out: &mut out,
                        headed: false,
                    },
                )
                .await
            }
            ReportFormat::Csv => {
                write_rows(
                    &store,
                    &name,
                    &wanted,
                    &mut Csv(csv::Writer::from_writer(&mut out)),
                )
                .await
            }
            ReportFormat::Jsonl => {
                write_rows(&store, &name, &wanted, &mut JsonLines(&mut out)).await
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
        Err(ReportError::Store(error)) => Err(state(error)),
    }
}

fn wanted(args: &ReportArgs) -> Result<Vec<Outcome>, Failure> {
    if args.failed {
        return Ok(Outcome::ALL
            .into_iter()
            .filter(|outcome| outcome.is_failure())
            .collect());
    }
    if args.outcome.is_empty() {
        return Ok(Outcome::ALL.to_vec());
    }
    let find = |text: &String| {
        Outcome::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
            .ok_or_else(|| {
                let all: Vec<_> = Outcome::ALL
                    .iter()
                    .map(|outcome| outcome.as_str())
                    .collect();
                Failure::message(
                    ExitCode::Usage,
                    format!(
                        "{text:?} is no outcome; the outcomes are {}",
                        all.join(", ")
                    ),
                )
            })
    };
    args.outcome.iter().map(find).collect()
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
    let mut after = None;
    loop {
        let page = store.batches(name, after, 64, false).await?;
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
            let mut codes = work.codes.iter().peekable();
            for ((index, outcome), device) in (0u32..)
                .zip(work.outcomes.iter())
                .zip(work.batch.devices.iter())
            {
                let code = codes.next_if(|(at, _)| *at == index).map(|(_, code)| *code);
                if wanted.contains(&outcome) {
                    let id = MessageId {
                        rollout: name.clone(),
                        batch: status.header.id,
                        index,
                        attempt: Attempt(1),
                    };
                    let row = Row {
                        device,
                        hub: status.header.hub.as_str(),
                        group: &group,
                        outcome,
                        code,
                        message_id: id.to_string(),
                    };
                    sink.row(&row)?;
                }
            }
        }
    }
}

trait Sink {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()>;
}

struct Table<W> {
    out: W,
    headed: bool,
}

impl<W: Write> Sink for Table<W> {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        if !self.headed {
            self.headed = true;
            writeln!(
                self.out,
                "{:<32} {:<12} {:<14} {:<28} reason",
                "device", "hub", "outcome", "group"
            )?;
        }
        let reason = summary::reason(row.outcome, row.code.unwrap_or(0));
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

impl<W: Write> Sink for Csv<W> {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        #[derive(Serialize)]
        struct Flat<'a> {
            device: &'a str,
            hub: &'a str,
            group: &'a str,
            outcome: &'a str,
            code: Option<u32>,
            message_id: &'a str,
        }
        let flat = Flat {
            device: row.device,
            hub: row.hub,
            group: row.group,
            outcome: row.outcome.as_str(),
            code: row.code,
            message_id: &row.message_id,
        };
        self.0
            .serialize(flat)
            .map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(error) => error,
                other => io::Error::other(format!("{other:?}")),
            })
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
