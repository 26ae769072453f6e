//! `POST /devices/query`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::error::{ApiError, json_response};
use super::serve::{Answer, Call, run_blocking};
use crate::query::{Page, Position, Projection, Query, Scan};

const CONTINUATION: &str = "x-ms-continuation";
const MAX_ITEM_COUNT: &str = "x-ms-max-item-count";
const ITEM_TYPE: &str = "x-ms-item-type";

#[derive(Deserialize)]
struct Body {
    query: String,
}

/// Answers one page of a query.
pub(crate) async fn run(call: &Call) -> Answer {
    let body: Body = serde_json::from_slice(&call.body).map_err(|error| {
        ApiError::bad_request(format!("the body is not {{\"query\": …}}: {error}"))
    })?;
    let query = Query::parse(&body.query).map_err(|error| {
        if error.not_emulated {
            return ApiError::new(
                StatusCode::NOT_IMPLEMENTED,
                "NotImplemented",
                error.to_string(),
            );
        }
        ApiError::bad_request(format!("the query cannot be read: {error}"))
    })?;
    let limit = page_limit(&call.headers, call.hub.config.query_page_max)?;
    let digest = xxhash_rust::xxh3::xxh3_64(body.query.as_bytes());
    let position = match call
        .headers
        .get(CONTINUATION)
        .filter(|value| !value.is_empty())
    {
        Some(token) => read_token(token, digest)?,
        None => Position { device: 0, rows: 0 },
    };
    call.hub.counters.query_pages.one();
    let item_type = if query.projection == Projection::All {
        "Twin"
    } else {
        "Raw"
    };
    let page = if call.hub.faults.on_query_page() {
        Page {
            rows: Vec::new(),
            next: Some(position),
        }
    } else {
        let hub = Arc::clone(&call.hub);
        run_blocking(move || Scan::new(&hub, &query).page(position, limit))
            .await?
            .map_err(|error| ApiError::bad_request(error.to_string()))?
    };
    let mut response = json_response(StatusCode::OK, &Value::Array(page.rows));
    let headers = response.headers_mut();
    headers.insert(ITEM_TYPE, HeaderValue::from_static(item_type));
    if let Some(next) = page.next {
        let token = HeaderValue::try_from(write_token(next, digest))
            .map_err(|_| ApiError::bad_request("the continuation cannot be written"))?;
        headers.insert(CONTINUATION, token);
    }
    Ok(response)
}

fn page_limit(headers: &HeaderMap, page_max: usize) -> Result<usize, ApiError> {
    let Some(requested) = headers.get(MAX_ITEM_COUNT) else {
        return Ok(page_max);
    };
    let requested = requested
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<i64>().ok());
    match requested {
        // SDKs send -1 for "no limit".
        Some(-1) => Ok(page_max),
        Some(count) if count > 0 => Ok(usize::try_from(count).unwrap_or(page_max).min(page_max)),
        _ => Err(ApiError::bad_request(format!(
            "{MAX_ITEM_COUNT} is not a positive number"
        ))),
    }
}

fn write_token(position: Position, digest: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!(
        "1.{digest:016x}.{}.{}",
        position.device, position.rows
    ))
}

fn read_token(token: &HeaderValue, digest: u64) -> Result<Position, ApiError> {
    let wrong = || ApiError::bad_request(format!("{CONTINUATION} is not a token of this query"));
    let text = URL_SAFE_NO_PAD
        .decode(token.as_bytes())
        .map_err(|_| wrong())?;
    let text = String::from_utf8(text).map_err(|_| wrong())?;
    let parts: Vec<&str> = text.split('.').collect();
    match parts[..] {
        ["1", of, device, rows] if of == format!("{digest:016x}") => Ok(Position {
            device: device.parse().map_err(|_| wrong())?,
            rows: rows.parse().map_err(|_| wrong())?,
        }),
        _ => Err(wrong()),
    }
}
