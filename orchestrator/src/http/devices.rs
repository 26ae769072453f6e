//! Devices and their outcomes: a page, all of them as a stream, or one with all that is known of it.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use twincast_core::error::in_words;
use twincast_core::ids::{BatchId, DeviceId};
use utoipa::{IntoParams, ToSchema};

use super::admitted::Admitted;
use super::auth::Look;
use super::parameters::Parameters;
use super::problem::{Looking, OfAPart, OfARollout, Problem};
use super::rollouts::limit;
use super::shared::Context;
use super::streams::until;
use crate::view;
use crate::view::devices::{DeviceRow, Format, Wanted, has_any, rows, written};
use crate::view::explain::{self, Explanation};

/// Batches that are looked at for one page of devices, at the most.
const LOOKED_THROUGH: usize = 2_000;
/// Batches that are read at a time.
const PAGE: usize = 64;

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
    /// Only devices in one of these classes, with commas between them; not together with `outcome`.
    class: Option<String>,
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
    /// Only devices in one of these classes, with commas between them; not together with `outcome`.
    class: Option<String>,
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
    _by: Admitted<Look>,
    name: Result<Path<String>, PathRejection>,
    which: Result<Parameters<Which>, Problem>,
) -> Result<Json<DevicePage>, Problem> {
    let Path(name) = name?;
    let Parameters(which) = which?;
    let limit = limit(which.limit)?;
    let wanted = wanted(which.outcome.as_deref(), which.class.as_deref())?;
    let mut place = which.after.as_deref().map(place).transpose()?;
    let rollout = shared.rollout(&name).await?;
    let wanted = wanted.outcomes(&rollout);
    let name = &rollout.spec.name;
    let store = &*shared.api.store;
    let mut devices = Vec::new();
    let mut looked = 0;
    loop {
        // The batch of the place was begun, and is looked at again.
        let before = place.map(|(batch, _)| batch.checked_sub(1));
        let after = before.flatten().map(BatchId);
        let batches = view::batches(store, &rollout, after, PAGE).await?;
        let is_last = batches.len() < PAGE;
        for status in batches {
            looked += 1;
            let id = status.header.id;
            let from = place
                .filter(|(batch, _)| *batch == id.0)
                .map_or(0, |(_, next)| next);
            if has_any(&status.counts, &wanted) {
                let work = store.load(name, id).await?;
                for row in rows(&rollout, &work, &wanted).filter(|row| row.index >= from) {
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

/// All devices with their outcomes, as JSON Lines or CSV, in a stream. It is cut off when the store stops answering, or the token is good no longer.
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
    by: Admitted<Look>,
    name: Result<Path<String>, PathRejection>,
    how: Result<Parameters<Export>, Problem>,
) -> Result<Response, Problem> {
    let Path(name) = name?;
    let Parameters(how) = how?;
    let wanted = wanted(how.outcome.as_deref(), how.class.as_deref())?;
    let (format, content_type) = match how.format.as_deref() {
        None | Some("jsonl") => (Format::JsonLines, "application/x-ndjson"),
        Some("csv") => (Format::Csv, "text/csv; charset=utf-8"),
        Some("spreadsheet") => (Format::Spreadsheet, "text/csv; charset=utf-8"),
        Some(other) => {
            let detail = format!("format must be jsonl, csv or spreadsheet, and is {other:?}");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
    };
    let place = shared.exports.take(by.caller.name())?;
    let rollout = shared.rollout(&name).await?;
    let store = Arc::clone(&shared.api.store);
    let lines = written(store, rollout, &wanted, format).map_err(Into::into);
    let lines = until(by.is_over(&shared), lines).map(move |line| {
        // Held until the stream is over, or nobody reads it any more.
        let _ = &place;
        line
    });
    let mut response = Body::from_stream(lines).into_response();
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// Where a device is in a rollout, why, and what it waits for. It looks for it in all batches.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/devices/{device}", tag = "devices", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ("device" = String, Path, description = "The device's id")),
    responses(
        (status = 200, description = "That", body = Explanation),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such rollout, or its plan does not have the device"),
        Looking,
    )
)]
pub(crate) async fn explain(
    State(shared): Context,
    by: Admitted<Look>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Explanation>, Problem> {
    let Path((name, device)) = path?;
    let device = DeviceId::new(device)
        .map_err(|error| Problem::new(StatusCode::NOT_FOUND, in_words(&error)))?;
    let rollout = shared.rollout(&name).await?;
    let _place = shared.searches.take(by.caller.name())?;
    let now = shared.api.intake.clock.now();
    let explained = explain::read(&*shared.api.store, &rollout, &device, now).await;
    Ok(Json(explained?))
}

fn wanted(outcomes: Option<&str>, classes: Option<&str>) -> Result<Wanted, Problem> {
    match (outcomes, classes) {
        (None, None) => Ok(Wanted::all()),
        (Some(names), None) => named(names).map(Wanted::Outcomes),
        (None, Some(names)) => named(names).map(Wanted::Classes),
        (Some(_), Some(_)) => {
            let detail = "give either outcome or class";
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
    }
}

fn named<T: FromStr<Err: Display>>(names: &str) -> Result<Vec<T>, Problem> {
    let read = names.split(',').map(|name| name.trim().parse());
    read.collect::<Result<_, _>>()
        .map_err(|error: T::Err| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
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
