//! Devices' answers in their twins: counted by state, and listed.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use serde_json::value::RawValue;
use twincast_core::answer::{Answer, DeviceError, outcome_of};
use twincast_core::ports::{HubError, HubTrouble};
use twincast_core::query::PropertyName;

use crate::IotHub;
use crate::queries::{PAGE, hub_error, next_page, with_permit};

/// Most pages of states read: a page holds a hundred different states, and a fleet uses about ten.
const PAGES: usize = 10;
const COUNTING: &str = "count the answers of devices";
const LISTING: &str = "list the answers of devices";

pub(crate) async fn count_states(
    hub: &IotHub,
    condition: &str,
    property: &PropertyName,
) -> Result<Vec<(String, u64)>, HubError> {
    let state = property.field("state");
    let sql = format!(
        "SELECT {state} AS state, COUNT() AS n FROM devices WHERE {condition} GROUP BY {state}"
    );
    let error = |error| hub_error(&hub.client, COUNTING, error);
    let mut pages = hub.client.query(&sql, PAGE).map_err(error)?;
    let mut counts = BTreeMap::<&str, u64>::new();
    for _ in 0..PAGES {
        let page = with_permit(hub, pages.next_page_as::<Value>()).await;
        let Some(page) = page.map_err(error)? else {
            let counts = counts.into_iter();
            return Ok(counts.map(|(state, n)| (state.to_owned(), n)).collect());
        };
        for row in &page.items {
            // An answer without a state, or with a non-text state, does not count.
            let (Some(state), Some(devices)) = (row["state"].as_str(), row["n"].as_u64()) else {
                continue;
            };
            // Devices may report any intermediate states.
            *counts.entry(outcome_of(state).as_str()).or_default() += devices;
        }
    }
    Err(HubError {
        doing: format!("{COUNTING} of hub {}", hub.client.host_name()),
        trouble: HubTrouble::Other,
        source: "its devices report more than 1,000 different states; about ten are expected"
            .into(),
    })
}

pub(crate) fn answers<'a>(
    hub: &'a IotHub,
    condition: &str,
    property: &PropertyName,
) -> BoxStream<'a, Result<Vec<Answer>, HubError>> {
    let [id, state, error] = ["id", "state", "error"].map(|field| property.field(field));
    let sql = format!(
        "SELECT deviceId AS device, {id} AS id, {state} AS state, {error} AS error FROM devices WHERE {condition}"
    );
    let pages = match hub.client.query(&sql, PAGE) {
        Ok(pages) => pages,
        Err(error) => {
            let error = hub_error(&hub.client, LISTING, error);
            return stream::once(futures::future::ready(Err(error))).boxed();
        }
    };
    stream::unfold(Some((pages, false)), move |state| async move {
        let (mut pages, started) = state?;
        match next_page(hub, &mut pages, (LISTING, started)).await {
            Ok(Some(items)) => {
                let page = items.iter().filter_map(|item| answer(item)).collect();
                Some((Ok(page), Some((pages, true))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// Parses an answer from its row. A malformed value costs only its own field; a missing id costs
/// the row.
pub(crate) fn answer(row: &RawValue) -> Option<Answer> {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(row.get()).ok()?;
    let value = |field: &str| -> Value {
        let value = fields.get(field);
        value
            .and_then(|value| serde_json::from_str(value.get()).ok())
            .unwrap_or_default()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let error = value("error");
    Some(Answer {
        message_id: value("id").as_str()?.to_owned(),
        device: text(&value("device")),
        state: text(&value("state")),
        error: DeviceError::new(&text(&error["code"]), &text(&error["text"])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_field_leaves_other_fields_readable() {
        for (row, state, error) in [
            (
                r#"{"id":"r.1","state":"failed","error":{"code":"c","text":"t"}}"#,
                "failed",
                "c: t",
            ),
            (
                r#"{"id":"r.1","state":"failed","error":"t"}"#,
                "failed",
                "the device gives no reason",
            ),
            (
                r#"{"id":"r.1","state":7,"error":{"code":[1],"text":"t"}}"#,
                "",
                "t",
            ),
            (
                r#"{"id":"r.1","state":"\ud800","error":{"text":"\ud800"},"more":1e999}"#,
                "",
                "the device gives no reason",
            ),
        ] {
            let raw: Box<RawValue> = serde_json::from_str(row).unwrap();
            let answer = answer(&raw).unwrap();
            assert_eq!(answer.message_id, "r.1", "{row}");
            assert_eq!(answer.state, state, "{row}");
            assert_eq!(answer.error.to_string(), error, "{row}");
        }
        for row in ["[]", "7", "{}", r#"{"id":null}"#, r#"{"id":7}"#] {
            let raw: Box<RawValue> = serde_json::from_str(row).unwrap();
            assert_eq!(answer(&raw), None, "{row}");
        }
    }
}
