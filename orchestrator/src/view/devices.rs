//! All devices of a rollout with their outcomes, in a stream.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use twincast_core::ids::{Attempt, RolloutName};
use twincast_core::message::MessageId;
use twincast_core::outcome::{Counts, Outcome, OutcomeClass};
use twincast_core::ports::{BatchWork, Store, StoreError};
use twincast_core::rollout::Rollout;
use utoipa::ToSchema;

use super::outcomes::ErrorView;

/// The number of batches read per page.
const PAGE: usize = 64;

/// The known state of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceRow {
    /// The device's id.
    pub device: String,
    /// The device's hub.
    pub hub: String,
    /// The device's tag group, as text.
    pub group: String,
    /// The name of the device's stage.
    pub stage: String,
    /// The number of the batch.
    pub batch: u32,
    /// The device's position in the batch, from 0.
    pub index: u32,
    /// The outcome.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// The outcome's class: `applied`, `taken`, `sent`, `silent`, `pending`, `not_applied`,
    /// `not_taken`, `not_sent` or `skipped`.
    #[schema(value_type = String)]
    pub class: OutcomeClass,
    /// The hub's code for `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// The device's error for `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
    /// The id of the batch's newest message. Attempts are numbered per batch: a device left out of
    /// a retry was sent an earlier message.
    pub message_id: String,
}

/// A selection of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceFilter {
    /// Devices with one of these outcomes.
    Outcomes(Vec<Outcome>),
    /// Devices in one of these classes.
    Classes(Vec<OutcomeClass>),
}

impl DeviceFilter {
    /// Selects all devices.
    #[must_use]
    pub fn all() -> Self {
        Self::Outcomes(Outcome::ALL.to_vec())
    }

    /// Returns the outcomes of the selected devices in a rollout.
    #[must_use]
    pub fn outcomes(&self, rollout: &Rollout) -> Vec<Outcome> {
        let answers = rollout.spec.message.wants_feedback();
        match self {
            Self::Outcomes(outcomes) => outcomes.clone(),
            Self::Classes(classes) => {
                let classes = classes.iter();
                classes.flat_map(|class| class.outcomes(answers)).collect()
            }
        }
    }
}

/// The format of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    JsonLines,
    /// Comma-separated values with a header.
    Csv,
    /// Comma-separated values for spreadsheets: no text is a formula.
    Spreadsheet,
}

const COLUMNS: &str = "device,hub,group,stage,batch,index,outcome,class,code,error,message_id\n";

impl Format {
    /// Returns the format as written in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JsonLines => "jsonl",
            Self::Csv => "csv",
            Self::Spreadsheet => "spreadsheet",
        }
    }

    fn head(self) -> &'static str {
        match self {
            Self::JsonLines => "",
            Self::Csv | Self::Spreadsheet => COLUMNS,
        }
    }

    fn write(self, rows: impl Iterator<Item = DeviceRow>) -> Bytes {
        let mut text = Vec::new();
        match self {
            Self::JsonLines => {
                for row in rows {
                    serde_json::to_writer(&mut text, &row).expect("a row is plain data");
                    text.push(b'\n');
                }
            }
            Self::Csv | Self::Spreadsheet => {
                let text_of: fn(&str) -> Cow<'_, str> = match self {
                    Self::Spreadsheet => no_formula,
                    _ => |text| Cow::Borrowed(text),
                };
                let mut writer = csv::WriterBuilder::new()
                    .has_headers(false)
                    .from_writer(&mut text);
                for row in rows {
                    writer
                        .serialize((
                            text_of(&row.device),
                            text_of(&row.hub),
                            text_of(&row.group),
                            text_of(&row.stage),
                            row.batch,
                            row.index,
                            row.outcome,
                            row.class,
                            row.code,
                            row.error
                                .as_ref()
                                .map(|error| text_of(&error.to_string()).into_owned()),
                            text_of(&row.message_id),
                        ))
                        .expect("memory takes everything");
                }
                drop(writer);
            }
        }
        text.into()
    }
}

/// Returns a cell that no spreadsheet takes for a formula: a formula-like beginning gets an
/// apostrophe in front.
fn no_formula(cell: &str) -> Cow<'_, str> {
    let begins = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];
    if cell.starts_with(begins) {
        Cow::Owned(format!("'{cell}"))
    } else {
        Cow::Borrowed(cell)
    }
}

/// Streams the selected devices as text, one piece per batch, in order. The stream ends with the
/// first error.
pub fn written(
    store: Arc<dyn Store>,
    rollout: Rollout,
    filter: &DeviceFilter,
    format: Format,
) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + use<> {
    let outcomes = filter.outcomes(&rollout);
    let head = stream::iter([Ok(Bytes::from_static(format.head().as_bytes()))]);
    let from = Some((None, Vec::new().into_iter()));
    let rollout = Arc::new(rollout);
    let batches = stream::try_unfold(from, move |state| {
        let (store, rollout, outcomes) =
            (Arc::clone(&store), Arc::clone(&rollout), outcomes.clone());
        async move {
            let Some((mut after, mut page)) = state else {
                return Ok(None);
            };
            loop {
                let Some(status) = page.next() else {
                    let next = super::batches(&*store, &rollout, after, PAGE).await?;
                    let Some(last) = next.last() else {
                        return Ok(None);
                    };
                    after = Some(last.header.id);
                    page = next.into_iter();
                    continue;
                };
                if has_any(&status.counts, &outcomes) {
                    let work = store.load(&rollout.spec.name, status.header.id).await?;
                    let text = format.write(rows(&rollout, &work, &outcomes));
                    return Ok(Some((text, Some((after, page)))));
                }
            }
        }
    });
    head.chain(batches)
}

/// Returns whether some of the counted devices have one of these outcomes.
pub(crate) fn has_any(counts: &Counts, outcomes: &[Outcome]) -> bool {
    outcomes.iter().any(|outcome| counts.get(*outcome) > 0)
}

/// Returns the devices of a batch with one of these outcomes.
pub(crate) fn rows<'a>(
    rollout: &'a Rollout,
    work: &'a BatchWork,
    outcomes: &'a [Outcome],
) -> impl Iterator<Item = DeviceRow> + 'a {
    let header = work.header();
    let stage = super::stage_name(rollout, header.stage);
    let answers = rollout.spec.message.wants_feedback();
    let chosen = work
        .devices()
        .filter(|device| outcomes.contains(&device.outcome));
    chosen.map(move |device| {
        let error = ErrorView::of(rollout, device.outcome, device.code);
        DeviceRow {
            device: device.id.to_owned(),
            hub: header.hub.to_string(),
            group: header.group_of(device.index).to_string(),
            stage: stage.clone(),
            batch: header.id.0,
            index: device.index,
            outcome: device.outcome,
            class: OutcomeClass::of(device.outcome, answers),
            code: device.code.filter(|_| error.is_none()),
            error,
            message_id: message_id(&rollout.spec.name, work, device.index, work.attempt),
        }
    })
}

/// Returns the id of the message to the device at `index` of a batch.
pub(super) fn message_id(
    name: &RolloutName,
    work: &BatchWork,
    index: u32,
    attempt: Attempt,
) -> String {
    let id = MessageId {
        rollout: name.clone(),
        id: work.rollout,
        stage: work.header().stage,
        batch: work.header().id,
        index,
        attempt,
    };
    id.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_of_a_spreadsheet_is_a_formula() {
        for formula in [
            "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1",
        ] {
            assert_eq!(no_formula(formula), format!("'{formula}"));
        }
        for text in ["", "fridge-1", "a=b", "1"] {
            assert_eq!(no_formula(text), text);
        }
    }
}
