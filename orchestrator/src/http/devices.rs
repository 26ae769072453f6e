//! Devices and their outcomes: a page, or all of them as a stream.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use twincast_core::ids::{BatchId, RolloutName};
use twincast_core::outcome::{Counts, Outcome, UnknownOutcome};
use twincast_core::ports::{BatchWork, Store, StoreError};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Right};
use super::problem::{Looking, OfAPart, OfARollout, Problem};
use super::rollouts::limit;
use super::{Context, too_many_streams};

/// Batches that are looked at for one page of devices, at the most.
const LOOKED_THROUGH: usize = 2_000;
/// Batches that are read at a time.
const PAGE: usize = 64;

/// What is known of one device.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct DeviceRow {
    device: String,
    hub: String,
    /// The tags that its batch shares, in words.
    group: String,
    /// The stage, from 0.
    stage: u16,
    batch: u32,
    /// Its position in the batch.
    index: u32,
    outcome: String,
    /// The hub's code for `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
}

/// A page of devices.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DevicePage {
    /// In the order of batches.
    devices: Vec<DeviceRow>,
    /// Ask for what comes `after` this, if there may be more; a page may be short, or empty, and have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Which devices.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// Only devices with one of these outcomes, with commas between them. Default: all.
    outcome: Option<String>,
    /// What comes after this: `next` of the page before.
    after: Option<String>,
    /// So many at the most, 1 to 200. Default: 100.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
}

/// Which devices, and how they are written.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Export {
    /// Only devices with one of these outcomes, with commas between them. Default: all.
    outcome: Option<String>,
    /// `jsonl` (default) or `csv`.
    format: Option<String>,
}

/// A page of devices with their outcomes.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/devices", tag = "devices", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), Which),
    responses(
        (status = 200, description = "A page of them", body = DevicePage),
        Looking,
        OfAPart,
        OfARollout,
    )
)]
pub(crate) async fn page(
    State(shared): Context,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<DevicePage>, Problem> {
    caller.may(Right::Look)?;
    let Path(name) = name?;
    let Query(which) = which?;
    let limit = limit(which.limit)?;
    let wanted = outcomes(which.outcome.as_deref())?;
    let mut place = which.after.as_deref().map(place).transpose()?;
    let name = shared.rollout(&name).await?.spec.name;
    let store = &*shared.api.store;
    let mut devices = Vec::new();
    let mut looked = 0;
    loop {
        // The batch of the place was begun, and is looked at again.
        let before = place.map(|(batch, _)| batch.checked_sub(1));
        let after = before.flatten().map(BatchId);
        let batches = store.batches(&name, after, PAGE).await?;
        let is_last = batches.len() < PAGE;
        for status in batches {
            looked += 1;
            let id = status.header.id;
            let from = place
                .filter(|(batch, _)| *batch == id.0)
                .map_or(0, |(_, next)| next);
            if has_any(&status.counts, &wanted) {
                let work = store.load(&name, id).await?;
                for row in rows(&work, &wanted).filter(|row| row.index >= from) {
                    if devices.len() == limit {
                        let next = Some(format!("{}.{}", id.0, row.index));
                        return Ok(Json(DevicePage { devices, next }));
                    }
                    devices.push(row);
                }
            }
            place = id.0.checked_add(1).map(|next| (next, 0));
        }
        if is_last || place.is_none() {
            return Ok(Json(DevicePage {
                devices,
                next: None,
            }));
        }
        if looked >= LOOKED_THROUGH {
            let next = place.map(|(batch, index)| format!("{batch}.{index}"));
            return Ok(Json(DevicePage { devices, next }));
        }
    }
}

/// All devices with their outcomes, as JSON Lines or CSV, in a stream. It is cut off when the store stops answering.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/export", tag = "devices", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), Export),
    responses(
        (status = 200, description = "The devices, one a line", content((String = "application/x-ndjson"), (String = "text/csv"))),
        Looking,
        OfAPart,
        OfARollout,
    )
)]
pub(crate) async fn export(
    State(shared): Context,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
    how: Result<Query<Export>, QueryRejection>,
) -> Result<Response, Problem> {
    caller.may(Right::Look)?;
    let Path(name) = name?;
    let Query(how) = how?;
    let wanted = outcomes(how.outcome.as_deref())?;
    let format = match how.format.as_deref() {
        None | Some("jsonl") => Format::JsonLines,
        Some("csv") => Format::Csv,
        Some(other) => {
            let detail = format!("format must be jsonl or csv, and is {other:?}");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
    };
    let place = Arc::clone(&shared.streams)
        .try_acquire_owned()
        .map_err(|_| too_many_streams())?;
    let name = shared.rollout(&name).await?.spec.name;
    let store = Arc::clone(&shared.api.store);
    let lines = lines(store, name, wanted, format).map(move |line| {
        // Held until the stream is over, or nobody reads it any more.
        let _ = &place;
        line
    });
    let mut response = Body::from_stream(lines).into_response();
    let content_type = HeaderValue::from_static(format.content_type());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

#[derive(Debug, Clone, Copy)]
enum Format {
    JsonLines,
    Csv,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::JsonLines => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    fn head(self) -> &'static str {
        match self {
            Self::JsonLines => "",
            Self::Csv => "device,hub,group,stage,batch,index,outcome,code\n",
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
            Self::Csv => {
                let mut writer = csv::WriterBuilder::new()
                    .has_headers(false)
                    .from_writer(&mut text);
                for row in rows {
                    writer
                        .serialize((
                            &row.device,
                            &row.hub,
                            &row.group,
                            row.stage,
                            row.batch,
                            row.index,
                            &row.outcome,
                            row.code,
                        ))
                        .expect("memory takes everything");
                }
                drop(writer);
            }
        }
        text.into()
    }
}

/// A piece of text for each batch, in order.
fn lines(
    store: Arc<dyn Store>,
    name: RolloutName,
    wanted: Vec<Outcome>,
    format: Format,
) -> impl Stream<Item = Result<Bytes, StoreError>> {
    let head = stream::iter([Ok(Bytes::from_static(format.head().as_bytes()))]);
    let from = Some((None, Vec::new().into_iter()));
    let batches = stream::try_unfold(from, move |state| {
        let (store, name, wanted) = (Arc::clone(&store), name.clone(), wanted.clone());
        async move {
            let Some((mut after, mut page)) = state else {
                return Ok(None);
            };
            loop {
                let Some(status) = page.next() else {
                    let next = store.batches(&name, after, PAGE).await?;
                    let Some(last) = next.last() else {
                        return Ok(None);
                    };
                    after = Some(last.header.id);
                    page = next.into_iter();
                    continue;
                };
                if has_any(&status.counts, &wanted) {
                    let work = store.load(&name, status.header.id).await?;
                    let text = format.write(rows(&work, &wanted));
                    return Ok(Some((text, Some((after, page)))));
                }
            }
        }
    });
    head.chain(batches)
}

fn has_any(counts: &Counts, wanted: &[Outcome]) -> bool {
    wanted.iter().any(|outcome| counts.get(*outcome) > 0)
}

/// The devices of a batch that have one of these outcomes.
fn rows<'a>(work: &'a BatchWork, wanted: &'a [Outcome]) -> impl Iterator<Item = DeviceRow> + 'a {
    let header = work.header();
    let group = header.group.to_string();
    let chosen = work
        .devices()
        .filter(|device| wanted.contains(&device.outcome));
    chosen.map(move |device| DeviceRow {
        device: device.id.to_owned(),
        hub: header.hub.to_string(),
        group: group.clone(),
        stage: header.stage.0,
        batch: header.id.0,
        index: device.index,
        outcome: device.outcome.as_str().to_owned(),
        code: device.code,
    })
}

fn outcomes(names: Option<&str>) -> Result<Vec<Outcome>, Problem> {
    let Some(names) = names else {
        return Ok(Outcome::ALL.to_vec());
    };
    let read = names.split(',').map(|name| name.trim().parse());
    read.collect::<Result<_, UnknownOutcome>>()
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
}

/// `BATCH.INDEX`, as a page gives it.
fn place(text: &str) -> Result<(u32, u32), Problem> {
    let parts = text.split_once('.');
    let place = parts.and_then(|(batch, index)| Some((batch.parse().ok()?, index.parse().ok()?)));
    place.ok_or_else(|| {
        let detail = format!("after must be what a page gave as next, and is {text:?}");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}
