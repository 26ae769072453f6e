//! `POST /devices`: many identities at once.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::devices::{Identity, registry_full};
use super::error::{ApiError, json_response};
use super::serve::{Answer, Call, admit};
use super::twins::{Manner, TwinPatch};
use crate::fleet::{Registry, check_id, etag_of};
use crate::hub::{MessageState, Operation};

/// How many devices one request may name.
const ITEMS_MAX: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: String,
    #[serde(default)]
    import_mode: Option<String>,
    #[serde(default, alias = "etag", alias = "eTag")]
    e_tag: Option<String>,
    #[serde(default, alias = "twinETag", alias = "twinEtag")]
    twin_e_tag: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    status_reason: Option<String>,
    #[serde(default)]
    authentication: Option<Value>,
    #[serde(default)]
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    properties: Option<Value>,
}

/// One item's failure: code, name and text.
type Failure = (u32, &'static str, String);

/// Carries the request's items out one by one.
pub(crate) async fn run(call: &Call) -> Answer {
    let items: Vec<Item> = serde_json::from_slice(&call.body).map_err(|error| {
        ApiError::bad_request(format!("the body is not a list of devices: {error}"))
    })?;
    if items.len() > ITEMS_MAX {
        let text = format!(
            "the request names {} devices; at most {ITEMS_MAX} are allowed",
            items.len()
        );
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "TooManyDevices",
            text,
        ));
    }
    admit(&call.hub, Operation::Registry, items.len().max(1) as u64).await?;
    let mut errors = Vec::new();
    let mut registry = call.hub.registry_mut();
    for item in items {
        let id = item.id.clone();
        if let Err((code, name, text)) = carry_out(call, &mut registry, item) {
            errors.push(json!({ "deviceId": id, "errorCode": code, "errorName": name, "errorStatus": text }));
        }
    }
    let body = json!({ "isSuccessful": errors.is_empty(), "errors": errors, "warnings": [] });
    // A request of which a part failed is answered 400 with the same body.
    let status = if errors.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    };
    Ok(json_response(status, &body))
}

fn carry_out(call: &Call, registry: &mut Registry, item: Item) -> Result<(), Failure> {
    let mode = item
        .import_mode
        .clone()
        .unwrap_or_else(|| "createOrUpdate".to_owned())
        .to_ascii_lowercase();
    let id = item.id.clone();
    let found = registry.number(&id);
    let missing = || {
        (
            404_001,
            "DeviceNotFound",
            format!("Device {id} not registered"),
        )
    };
    match mode.as_str() {
        "create" if found.is_some() => Err((
            409_001,
            "DeviceAlreadyExists",
            format!("A device with ID '{id}' is already registered"),
        )),
        "create" | "createorupdate" | "createorupdateifmatchetag" => {
            let number = match found {
                Some(number) => {
                    if mode.ends_with("etag") {
                        check_etag(registry, number, item.e_tag.as_deref())?;
                    }
                    number
                }
                None => {
                    check_id(&id).map_err(|text| (400_004, "ArgumentInvalid", text))?;
                    registry.add(&id).ok_or_else(full)?
                }
            };
            update(registry, number, item)
        }
        "update" | "updateifmatchetag" => {
            let number = found.ok_or_else(missing)?;
            if mode.ends_with("etag") {
                check_etag(registry, number, item.e_tag.as_deref())?;
            }
            update(registry, number, item)
        }
        "delete" | "deleteifmatchetag" => {
            let number = found.ok_or_else(missing)?;
            if mode.ends_with("etag") {
                check_etag(registry, number, item.e_tag.as_deref())?;
            }
            registry.delete(number);
            call.hub.empty_queue(number, MessageState::Lost);
            Ok(())
        }
        "updatetwin" | "updatetwinifmatchetag" => {
            let number = found.ok_or_else(missing)?;
            if mode.ends_with("etag") {
                let version = registry.record(number).map_or(0, |record| record.version);
                matches_version(item.twin_e_tag.as_deref(), version)?;
            }
            update_twin(
                registry,
                number,
                item.tags.as_ref(),
                item.properties.as_ref(),
            )
        }
        _ => Err((
            400_004,
            "ArgumentInvalid",
            format!("the import mode '{mode}' is not known"),
        )),
    }
}

fn full() -> Failure {
    (403_000, "TooManyDevices", registry_full().to_string())
}

fn check_etag(registry: &Registry, number: u32, wanted: Option<&str>) -> Result<(), Failure> {
    matches_version(
        wanted,
        registry
            .record(number)
            .map_or(0, |record| record.device_version),
    )
}

fn matches_version(wanted: Option<&str>, version: u64) -> Result<(), Failure> {
    match wanted.map(|text| text.trim_matches('"')) {
        Some(text) if text == "*" || text == etag_of(version) => Ok(()),
        _ => Err((
            412_001,
            "PreconditionFailed",
            "the ETag is not the current one".to_owned(),
        )),
    }
}

fn update(registry: &mut Registry, number: u32, item: Item) -> Result<(), Failure> {
    let identity = Identity {
        device_id: None,
        status: item.status,
        status_reason: item.status_reason,
        authentication: item.authentication,
    };
    let changed = registry.change(number, |record| identity.apply(record));
    if let Some(Err(error)) = changed {
        return Err((400_004, "ArgumentInvalid", error.to_string()));
    }
    if item.tags.is_some() || item.properties.is_some() {
        return update_twin(
            registry,
            number,
            item.tags.as_ref(),
            item.properties.as_ref(),
        );
    }
    Ok(())
}

fn update_twin(
    registry: &mut Registry,
    number: u32,
    tags: Option<&Map<String, Value>>,
    properties: Option<&Value>,
) -> Result<(), Failure> {
    let wrong = |text: String| (400_004, "ArgumentInvalid", text);
    let body = json!({ "tags": tags, "properties": properties.unwrap_or(&json!({})) });
    let patch: TwinPatch =
        serde_json::from_value(body).map_err(|error| wrong(error.to_string()))?;
    match registry.change(number, |record| patch.apply(record, Manner::Merge)) {
        Some(Err(error)) => Err(wrong(error.to_string())),
        _ => Ok(()),
    }
}
