//! Devices and their outcomes: a page, all devices as a stream, or one device in full.

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
use twincast_core::error::describe;
use twincast_core::ids::{BatchId, DeviceId};
use utoipa::{IntoParams, ToSchema};

use super::admitted::Admitted;
use super::auth::Read;
use super::parameters::Parameters;
use super::problem::{ListErrors, Problem, ReadErrors, RolloutErrors};
use super::rollouts::limit;
use super::shared::Context;
use super::streams::until;
use crate::view;
use crate::view::devices::{DeviceFilter, DeviceRow, Format, has_any, rows, written};
use crate::view::explain::{self, Explanation};

/// The most batches read for one page of devices.
const MAX_BATCHES_READ: usize = 2_000;
/// The number of batches read per store call.
const PAGE: usize = 64;

/// A page of devices.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DevicePage {
    /// The devices, in the order of batches.
    devices: Vec<DeviceRow>,
    /// The value of `after` for the next page, if there may be more devices. A page with `next` may
    /// be short, or empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The selection of devices.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceListParams {
    /// Only devices with one of these outcomes, separated by commas. Default: all.
    outcome: Option<String>,
    /// Only devices in one of these classes, separated by commas; not together with `outcome`.
    class: Option<String>,
    /// The `next` of the previous page.
    after: Option<String>,
    /// The most devices on the page, 1 to 200. Default: 100.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
}

/// The selection of devices, and the format.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExportParams {
    /// Only devices with one of these outcomes, separated by commas. Default: all.
    outcome: Option<String>,
    /// Only devices in one of these classes, separated by commas; not together with `outcome`.
    class: Option<String>,
    /// `jsonl` (default), `csv`, or `spreadsheet`: CSV without formulas.
    format: Option<String>,
}

/// A page of devices with their outcomes.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/devices", tag = "devices", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), DeviceListParams),
    responses(
        (status = 200, description = "A page of devices", body = DevicePage),
        ReadErrors,
        ListErrors,
        RolloutErrors,
    )
)]
pub(crate) async fn page(
    State(shared): Context,
    _by: Admitted<Read>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Parameters<DeviceListParams>, Problem>,
) -> Result<Json<DevicePage>, Problem> {
    let Path(name) = name?;
    let Parameters(query) = query?;
    let limit = limit(query.limit)?;
    let filter = device_filter(query.outcome.as_deref(), query.class.as_deref())?;
    let mut position = query.after.as_deref().map(parse_position).transpose()?;
    let rollout = shared.rollout(&name).await?;
    let outcomes = filter.outcomes(&rollout);
    let name = &rollout.spec.name;
    let store = &*shared.api.store;
    let mut devices = Vec::new();
    let mut batches_read = 0;
    loop {
        // The batch of the position is read again: the previous page ended within this batch.
        let before = position.map(|(batch, _)| batch.checked_sub(1));
        let after = before.flatten().map(BatchId);
        let batches = view::batches(store, &rollout, after, PAGE).await?;
        let is_last = batches.len() < PAGE;
        for status in batches {
            batches_read += 1;
            let id = status.header.id;
            let from = position
                .filter(|(batch, _)| *batch == id.0)
                .map_or(0, |(_, next)| next);
            if has_any(&status.counts, &outcomes) {
                let work = store.load(name, id).await?;
                for row in rows(&rollout, &work, &outcomes).filter(|row| row.index >= from) {
                    if devices.len() == limit {
                        let next = Some(format!("{}.{}", id.0, row.index));
                        return Ok(Json(DevicePage { devices, next }));
                    }
                    devices.push(row);
                }
            }
            position = id.0.checked_add(1).map(|next| (next, 0));
        }
        if is_last || position.is_none() {
            return Ok(Json(DevicePage {
                devices,
                next: None,
            }));
        }
        if batches_read >= MAX_BATCHES_READ {
            let next = position.map(|(batch, index)| format!("{batch}.{index}"));
            return Ok(Json(DevicePage { devices, next }));
        }
    }
}

/// All devices with their outcomes, as a stream of JSON Lines or CSV. The stream breaks off when
/// the store stops answering or the token is no longer valid.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/export", tag = "devices", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ExportParams),
    responses(
        (status = 200, description = "The devices, one per line", content((String = "application/x-ndjson"), (String = "text/csv"))),
        ReadErrors,
        ListErrors,
        RolloutErrors,
    )
)]
pub(crate) async fn export(
    State(shared): Context,
    by: Admitted<Read>,
    name: Result<Path<String>, PathRejection>,
    how: Result<Parameters<ExportParams>, Problem>,
) -> Result<Response, Problem> {
    let Path(name) = name?;
    let Parameters(how) = how?;
    let filter = device_filter(how.outcome.as_deref(), how.class.as_deref())?;
    let (format, content_type) = match how.format.as_deref() {
        None | Some("jsonl") => (Format::JsonLines, "application/x-ndjson"),
        Some("csv") => (Format::Csv, "text/csv; charset=utf-8"),
        Some("spreadsheet") => (Format::Spreadsheet, "text/csv; charset=utf-8"),
        Some(other) => {
            let detail = format!("format must be jsonl, csv or spreadsheet; found {other:?}");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
    };
    let slot = shared.exports.take(by.caller.name())?;
    let rollout = shared.rollout(&name).await?;
    let store = Arc::clone(&shared.api.store);
    let lines = written(store, rollout, &filter, format).map_err(Into::into);
    let lines = until(by.token_expired(&shared), lines).map(move |line| {
        // Held until the stream ends or is dropped.
        let _ = &slot;
        line
    });
    let mut response = Body::from_stream(lines).into_response();
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// The state of a device in a rollout, with the reasons and the current wait. Searches all batches
/// for the device.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{name}/devices/{device}", tag = "devices", security(("token" = [])),
    params(("name" = String, Path, description = "The rollout's name"), ("device" = String, Path, description = "The device's id")),
    responses(
        (status = 200, description = "The explanation", body = Explanation),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "The rollout does not exist, or its plan does not contain the device"),
        ReadErrors,
    )
)]
pub(crate) async fn explain(
    State(shared): Context,
    by: Admitted<Read>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Explanation>, Problem> {
    let Path((name, device)) = path?;
    let device = DeviceId::new(device)
        .map_err(|error| Problem::new(StatusCode::NOT_FOUND, describe(&error)))?;
    let rollout = shared.rollout(&name).await?;
    let _slot = shared.batch_searches.take(by.caller.name())?;
    let now = shared.api.executor.clock.now();
    let explained = explain::read(&*shared.api.store, &rollout, &device, now).await;
    Ok(Json(explained?))
}

fn device_filter(outcomes: Option<&str>, classes: Option<&str>) -> Result<DeviceFilter, Problem> {
    match (outcomes, classes) {
        (None, None) => Ok(DeviceFilter::all()),
        (Some(names), None) => named(names).map(DeviceFilter::Outcomes),
        (None, Some(names)) => named(names).map(DeviceFilter::Classes),
        (Some(_), Some(_)) => {
            let detail = "outcome and class cannot be combined";
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
    }
}

fn named<T: FromStr<Err: Display>>(names: &str) -> Result<Vec<T>, Problem> {
    let read = names.split(',').map(|name| name.trim().parse());
    read.collect::<Result<_, _>>()
        .map_err(|error: T::Err| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Parses `BATCH.INDEX`, the `next` of a page.
fn parse_position(text: &str) -> Result<(u32, u32), Problem> {
    let parts = text.split_once('.');
    let position =
        parts.and_then(|(batch, index)| Some((batch.parse().ok()?, index.parse().ok()?)));
    position.ok_or_else(|| {
        let detail = format!("after must be the `next` of the previous page; found {text:?}");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}
