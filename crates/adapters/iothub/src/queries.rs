//! Twin queries: converts conditions to SQL, and rows to devices.
//!
//! Each row of a page and each field of a row is parsed separately, so a malformed value costs only
//! its own device.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde_json::Value;
use serde_json::value::RawValue;
use twincast_core::error::describe;
use twincast_core::ids::DeviceId;
use twincast_core::ports::{
    DevicePage, DeviceQuery, DeviceRow, Disposition, HubError, HubTrouble, MalformedRow,
};
use twincast_core::query::TagPath;
use twincast_iothub::{Client, QueryPages, RestError};
use twincast_retry::Policy;

use crate::IotHub;
use crate::classify::{classify_connect_error, classify_credentials_error};

/// The largest page of a hub (`iot-hub-devguide-query-language`).
pub(crate) const PAGE: u32 = 100;
/// How long the request of a page is retried. Listing a large fleet takes hours on a small hub.
const PAGE_RETRY_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Number of requests for a page with a refused continuation.
const CONTINUATION_TRIES: u32 = 4;

/// Keeps queries within the hub's quota of pages.
pub(crate) struct Throttle(DefaultDirectRateLimiter);

impl Throttle {
    pub(crate) fn new(per_minute: f64) -> Self {
        // The burst lists a small fleet at once; the rate leaves room for the burst.
        let period = Duration::from_secs_f64(60.0 / (per_minute * 0.9).max(1e-3));
        let burst = NonZeroU32::new((per_minute / 10.0) as u32).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)
            .expect("a period above zero")
            .allow_burst(burst);
        Self(RateLimiter::direct(quota))
    }

    async fn permit(&self) {
        while let Err(not_until) = self.0.check() {
            let now = governor::clock::Clock::now(self.0.clock());
            tokio::time::sleep(not_until.wait_time_from(now)).await;
        }
    }
}

/// Awaits `request` once the hub's quota allows another query, and records success or failure.
pub(crate) async fn with_permit<T>(
    hub: &IotHub,
    request: impl Future<Output = Result<T, RestError>>,
) -> Result<T, RestError> {
    if let Some(throttle) = &hub.throttle {
        throttle.permit().await;
    }
    let pending = hub.query_health.begin();
    let answer = request.await;
    pending.ended(&answer);
    answer
}

pub(crate) async fn count(hub: &IotHub, condition: &str) -> Result<u64, HubError> {
    let condition = Some(condition).filter(|condition| !condition.is_empty());
    let counted = with_permit(hub, hub.client.count(condition)).await;
    counted.map_err(|error| hub_error(&hub.client, "count the devices", error))
}

pub(crate) fn devices<'a>(
    hub: &'a IotHub,
    query: &DeviceQuery,
) -> BoxStream<'a, Result<DevicePage, HubError>> {
    let sql = sql(query);
    let tags = query.tags.clone();
    let pages = match hub.client.query(&sql, PAGE) {
        Ok(pages) => pages,
        Err(error) => {
            let error = hub_error(&hub.client, "list the devices", error);
            return stream::once(futures::future::ready(Err(error))).boxed();
        }
    };
    // The stream ends after an error.
    stream::unfold(Some((pages, tags, false)), move |state| async move {
        let (mut pages, tags, started) = state?;
        match next_page(hub, &mut pages, ("list the devices", started)).await {
            Ok(Some(items)) => {
                let page = page(&items, &tags);
                Some((Ok(page), Some((pages, tags, true))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// Returns the next page. Once the listing is under way (`started`), a temporary outage of the hub
/// does not waste the earlier pages: the same page is requested again, for about
/// [`PAGE_RETRY_LIMIT`].
pub(crate) async fn next_page(
    hub: &IotHub,
    pages: &mut QueryPages,
    (doing, started): (&str, bool),
) -> Result<Option<Vec<Box<RawValue>>>, HubError> {
    let mut delays = Policy::reconnect()
        .with_max_elapsed(PAGE_RETRY_LIMIT)
        .expect("longer than nothing")
        .delays();
    let mut refused = 0;
    loop {
        let page = with_permit(hub, pages.next_page_as()).await;
        let error = match page {
            Ok(page) => return Ok(page.map(|page| page.items)),
            Err(error) => error,
        };
        // An expired continuation stays expired, but a refusal may also be the hub's mistake.
        refused += u32::from(matches!(error, RestError::Continuation(_)));
        let error = hub_error(&hub.client, doing, error);
        let is_transient =
            refused < CONTINUATION_TRIES && error.disposition() == Disposition::Retry;
        match delays.next_delay() {
            Some(delay) if started && is_transient => {
                tracing::warn!(
                    hub = hub.client.host_name(),
                    error = describe(&error),
                    "page of devices is requested again"
                );
                tokio::time::sleep(delay).await;
            }
            _ => return Err(error),
        }
    }
}

/// Selects only the needed fields: the response's size counts against the daily quota.
fn sql(query: &DeviceQuery) -> String {
    let mut sql = "SELECT deviceId AS id".to_owned();
    for (index, tag) in query.tags.iter().enumerate() {
        sql.push_str(&format!(", {} AS t{index}", tag.in_query()));
    }
    sql.push_str(" FROM devices");
    if !query.condition.is_empty() {
        sql.push_str(" WHERE ");
        sql.push_str(&query.condition);
    }
    sql
}

pub(crate) fn page(items: &[Box<RawValue>], tags: &[TagPath]) -> DevicePage {
    let mut page = DevicePage::default();
    for item in items {
        match row(item, tags) {
            Ok(row) => page.rows.push(row),
            Err(malformed) => page.malformed_rows.push(malformed),
        }
    }
    page
}

fn row(item: &RawValue, tags: &[TagPath]) -> Result<DeviceRow, MalformedRow> {
    let malformed = |reason: String| MalformedRow::new(item.get(), reason);
    if !item.get().starts_with('{') {
        return Err(malformed("it is not an object".into()));
    }
    let fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(item.get()).map_err(|error| malformed(unreadable(&error)))?;
    let id = match fields.get("id").map(|id| read(id)) {
        None | Some(Ok(Value::Null)) => return Err(malformed("it has no id".into())),
        Some(Ok(Value::String(id))) => id,
        Some(Ok(_)) => return Err(malformed("its id is not a text".into())),
        Some(Err(error)) => return Err(malformed(format!("its id: {}", unreadable(&error)))),
    };
    let device = DeviceId::new(&id)
        .map_err(|error| MalformedRow::new(&id, format!("its id is not {}", error.allowed)))?;
    let mut values = Vec::with_capacity(tags.len());
    for (index, tag) in tags.iter().enumerate() {
        let value = fields.get(&format!("t{index}")).map(|value| read(value));
        match value.transpose() {
            Ok(value) => values.push(value.filter(|value| !value.is_null())),
            Err(error) => {
                let reason = format!("tags.{tag}: {}", unreadable(&error));
                return Err(MalformedRow::of(device, reason));
            }
        }
    }
    let tags = values;
    Ok(DeviceRow { device, tags })
}

fn read(value: &RawValue) -> Result<Value, serde_json::Error> {
    serde_json::from_str(value.get())
}

/// The library's description of a syntax error, without the position: a row is one line.
fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("it cannot be read ({what})")
}

/// Classifies an error of the client.
#[must_use]
pub fn classify_request_error(error: &RestError) -> HubTrouble {
    match error {
        RestError::Connect(connect) => classify_connect_error(connect),
        // The query itself was accepted: a new listing may succeed.
        RestError::Transit(_) | RestError::Continuation(_) => HubTrouble::Unreachable,
        RestError::NoToken(error) => classify_credentials_error(error),
        RestError::QueryTooLong { .. } => HubTrouble::BadQuery,
        RestError::Api(api) if api.is_throttled() => HubTrouble::Throttled,
        RestError::Api(api) => match api.status {
            400 => HubTrouble::BadQuery,
            401 => HubTrouble::Unauthorized,
            403 => HubTrouble::Unavailable,
            500.. => HubTrouble::Unreachable,
            _ => HubTrouble::Other,
        },
        _ => HubTrouble::Other,
    }
}

pub(crate) fn hub_error(client: &Client, doing: &str, error: RestError) -> HubError {
    HubError {
        doing: format!("{doing} of hub {}", client.host_name()),
        trouble: classify_request_error(&error),
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tag(path: &str) -> TagPath {
        TagPath::new(path).unwrap()
    }

    /// Parses a page in the hub's form.
    fn page_of(text: &str) -> DevicePage {
        let items: Vec<Box<RawValue>> = serde_json::from_str(text).unwrap();
        page(&items, &[tag("region"), tag("site")])
    }

    #[test]
    fn malformed_row_does_not_hide_other_rows() {
        let long = "x".repeat(129);
        let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
        let rows = [
            (r#""text""#, "it is not an object"),
            ("[1]", "it is not an object"),
            ("null", "it is not an object"),
            ("{}", "it has no id"),
            (r#"{"id":null}"#, "it has no id"),
            (r#"{"deviceId":"a"}"#, "it has no id"),
            (r#"{"id":7}"#, "its id is not a text"),
            (r#"{"id":{"a":1}}"#, "its id is not a text"),
            (r#"{"id":""}"#, "its id is not 1 to 128 ASCII letters"),
            (r#"{"id":"a b"}"#, "its id is not 1 to 128 ASCII letters"),
            (
                r#"{"id":"a\u0000"}"#,
                "its id is not 1 to 128 ASCII letters",
            ),
            (
                &format!(r#"{{"id":"{long}"}}"#),
                "its id is not 1 to 128 ASCII letters",
            ),
            (r#"{"id":"\ud800"}"#, "its id: it cannot be read"),
            (r#"{"\ud800":1,"id":"a"}"#, "it cannot be read"),
            (
                r#"{"id":"a","t0":"\ud800"}"#,
                "tags.region: it cannot be read",
            ),
            (r#"{"id":"a","t1":1e999}"#, "tags.site: it cannot be read"),
            (
                &format!(r#"{{"id":"a","t1":{deep}}}"#),
                "tags.site: it cannot be read",
            ),
        ];
        for (row, reason) in rows {
            let page = page_of(&format!(
                r#"[{{"id":"first"}},{row},{{"id":"l;st","t1":{{"a":1}}}}]"#
            ));
            let devices: Vec<_> = page.rows.iter().map(|row| row.device.as_str()).collect();
            assert_eq!(devices, ["first", "l;st"], "{row}");
            assert_eq!(page.rows[1].tags, [None, Some(json!({"a": 1}))]);
            let [malformed] = &page.malformed_rows[..] else {
                panic!("{row}: {:?}", page.malformed_rows);
            };
            assert!(malformed.reason.starts_with(reason), "{row}: {malformed:?}");
            assert!(malformed.found.chars().count() <= 141, "{malformed:?}");
            assert_eq!(
                malformed.device.is_some(),
                reason.starts_with("tags"),
                "{malformed:?}"
            );
            assert!(!malformed.reason.contains("column"), "{malformed:?}");
        }
    }

    #[test]
    fn null_tags_count_as_absent() {
        let page = page_of(r#"[{"id":"a","t0":null,"t1":"x","more":[1e999]}]"#);
        assert_eq!(page.rows[0].tags, [None, Some(json!("x"))]);
        assert!(page.malformed_rows.is_empty());
    }

    #[test]
    fn query_selects_only_required_fields() {
        let query = |condition: &str, tags: &[&str]| {
            let tags = tags.iter().map(|path| tag(path)).collect();
            sql(&DeviceQuery {
                condition: condition.into(),
                tags,
            })
        };
        assert_eq!(query("", &[]), "SELECT deviceId AS id FROM devices");
        assert_eq!(
            query("tags.a = 1", &["region", "location.site"]),
            "SELECT deviceId AS id, tags.region AS t0, tags.location.site AS t1 FROM devices WHERE tags.a = 1"
        );
    }
}
