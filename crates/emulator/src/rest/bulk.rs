//! `POST /devices`: many identities at once.

use std::collections::HashSet;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::devices::registry_full;
use super::error::{ApiError, json_response};
use super::identity::Identity;
use super::serve::{Answer, Call, admit};
use super::twins::{TwinPatch, UpdateMode, is_current};
use crate::fleet::{Registry, Status, check_id};
use crate::hub::{EndReason, Operation};

/// The largest number of devices in one request.
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
    #[serde(flatten)]
    identity: Identity,
    #[serde(default)]
    tags: Option<Map<String, Value>>,
    #[serde(default)]
    properties: Option<Value>,
}

/// The failure of one item: code, name and text.
type Failure = (u32, &'static str, String);

/// Processes the request's items in order.
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
    let mut names = HashSet::new();
    let mut registry = call.hub.registry_mut();
    for item in items {
        let id = item.id.clone();
        let done = if names.insert(id.clone()) {
            carry_out(call, &mut registry, item)
        } else {
            let text = format!("Device {id} stands in the request twice");
            Err((400_011, "DeviceDefinedMultipleTimes", text))
        };
        if let Err((code, name, text)) = done {
            errors.push(json!({ "deviceId": id, "errorCode": code, "errorName": name, "errorStatus": text }));
        }
    }
    let body = json!({ "isSuccessful": errors.is_empty(), "errors": errors, "warnings": [] });
    // A partly failed request is answered by 400 with the same body.
    let status = if errors.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    };
    Ok(json_response(status, &body))
}

fn carry_out(call: &Call, registry: &mut Registry, item: Item) -> Result<(), Failure> {
    let now_ms = call.hub.now_ms();
    let mode = item.import_mode.as_deref().unwrap_or("createOrUpdate");
    let mode = mode.to_ascii_lowercase();
    let if_match = mode.ends_with("ifmatchetag");
    let found = registry.number(&item.id);
    let present = found.and_then(|number| registry.record(number));
    let missing = |item: &Item| {
        let text = format!("Device {} not registered", item.id);
        (404_001, "DeviceNotFound", text)
    };
    let mut record = match mode.as_str() {
        "create" if present.is_some() => {
            return Err((
                409_001,
                "DeviceAlreadyExists",
                format!("A device with ID '{}' is already registered", item.id),
            ));
        }
        "create" | "createorupdate" | "createorupdateifmatchetag" => match present {
            Some(record) => record,
            None => {
                check_id(&item.id).map_err(invalid)?;
                registry.new_record(&item.id, now_ms)
            }
        },
        "update"
        | "updateifmatchetag"
        | "delete"
        | "deleteifmatchetag"
        | "updatetwin"
        | "updatetwinifmatchetag" => present.ok_or_else(|| missing(&item))?,
        _ => return Err(invalid(format!("unknown import mode '{mode}'"))),
    };
    let twin_only = mode.starts_with("updatetwin");
    if if_match && found.is_some() {
        let (etag, version) = if twin_only {
            (&item.twin_e_tag, record.version)
        } else {
            (&item.e_tag, record.device_version)
        };
        check_etag(etag.as_deref(), version)?;
    }
    if let (Some(number), true) = (found, mode.starts_with("delete")) {
        registry.delete(number);
        call.hub.forget_device(number);
        return Ok(());
    }
    if !twin_only {
        item.identity.apply(&mut record, now_ms).map_err(invalid)?;
    }
    let mut changed = None;
    if twin_only || item.tags.is_some() || item.properties.is_some() {
        let properties = item.properties.unwrap_or_else(|| json!({}));
        let patch = json!({ "tags": item.tags, "properties": properties });
        let patch: TwinPatch =
            serde_json::from_value(patch).map_err(|error| invalid(error.to_string()))?;
        changed = patch
            .apply(&mut record, UpdateMode::Merge, now_ms)
            .map_err(|error| invalid(error.to_string()))?;
    }
    let (is_disabled, version) = (record.status == Status::Disabled, record.desired_version);
    let number = registry.put(record).ok_or_else(full)?;
    if is_disabled {
        call.hub.disconnect(number, EndReason::Disabled);
    } else if let Some(changed) = changed {
        call.hub.push_desired(number, &changed, version);
    }
    Ok(())
}

fn invalid(text: String) -> Failure {
    (400_004, "ArgumentInvalid", text)
}

fn full() -> Failure {
    (403_000, "TooManyDevices", registry_full().to_string())
}

fn check_etag(etag: Option<&str>, version: u64) -> Result<(), Failure> {
    if etag.is_some_and(|etag| is_current(etag, version)) {
        Ok(())
    } else {
        let text = "the ETag is not the current one".to_owned();
        Err((412_001, "PreconditionFailed", text))
    }
}
