//! Twin queries: conditions to SQL, rows to devices.
//!
//! Each row of a page is read on its own, and each field of a row, so what is odd costs its own device only.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde_json::Value;
use serde_json::value::RawValue;
use twincast_core::ids::DeviceId;
use twincast_core::ports::{
    DevicePage, DeviceQuery, DeviceRow, Disposition, HubError, HubTrouble, OddRow,
};
use twincast_core::query::TagPath;
use twincast_iothub::{Client, QueryPages, RestError};
use twincast_retry::Policy;

use crate::{IotHub, trouble};

/// The largest page that hubs give (`iot-hub-devguide-query-language`).
pub(crate) const PAGE: u32 = 100;
/// How long a page is asked for again. Listing a large fleet takes hours on a small hub.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often a page is asked for whose continuation the hub refuses.
const CONTINUATION_TRIES: u32 = 4;

/// Keeps queries within the hub's quota of pages.
pub(crate) struct Throttle(DefaultDirectRateLimiter);

impl Throttle {
    pub(crate) fn new(per_minute: f64) -> Self {
        // A few at once, so that a small fleet is listed at once; the rate leaves room for them.
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

/// Makes a request when the hub's quota allows it, and notes how it went.
pub(crate) async fn with_permit<T>(
    hub: &IotHub,
    request: impl Future<Output = Result<T, RestError>>,
) -> Result<T, RestError> {
    if let Some(throttle) = &hub.throttle {
        throttle.permit().await;
    }
    let asked = hub.asking.begin();
    let answer = request.await;
    asked.ended(&answer);
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
    // After an error the stream is over.
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

/// The next page. Under way (`started`), a hub that is away for a while does not cost the pages
/// so far: the same page is asked for again, for about [`PATIENCE`].
pub(crate) async fn next_page(
    hub: &IotHub,
    pages: &mut QueryPages,
    (doing, started): (&str, bool),
) -> Result<Option<Vec<Box<RawValue>>>, HubError> {
    let mut delays = Policy::reconnect()
        .with_max_elapsed(PATIENCE)
        .expect("longer than nothing")
        .delays();
    let mut refused = 0;
    loop {
        let page = with_permit(hub, pages.next_page_as()).await;
        let error = match page {
            Ok(page) => return Ok(page.map(|page| page.items)),
            Err(error) => error,
        };
        // A continuation that is over stays so; the hub may have erred, too.
        refused += u32::from(matches!(error, RestError::Continuation(_)));
        let error = hub_error(&hub.client, doing, error);
        let passing = refused < CONTINUATION_TRIES && error.disposition() == Disposition::Retry;
        match delays.next_delay() {
            Some(delay) if started && passing => {
                tracing::warn!(
                    hub = hub.client.host_name(),
                    ?error,
                    "page of devices is asked for again"
                );
                tokio::time::sleep(delay).await;
            }
            _ => return Err(error),
        }
    }
}

/// Only what is needed is asked for: the answer's size counts against the daily quota.
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
            Err(odd) => page.odd.push(odd),
        }
    }
    page
}

fn row(item: &RawValue, tags: &[TagPath]) -> Result<DeviceRow, OddRow> {
    let odd = |reason: String| OddRow::new(item.get(), reason);
    if !item.get().starts_with('{') {
        return Err(odd("it is not an object".into()));
    }
    let fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(item.get()).map_err(|error| odd(unreadable(&error)))?;
    let id = match fields.get("id").map(|id| read(id)) {
        None | Some(Ok(Value::Null)) => return Err(odd("it has no id".into())),
        Some(Ok(Value::String(id))) => id,
        Some(Ok(_)) => return Err(odd("its id is not a text".into())),
        Some(Err(error)) => return Err(odd(format!("its id: {}", unreadable(&error)))),
    };
    let device = DeviceId::new(&id)
        .map_err(|error| OddRow::new(&id, format!("its id is not {}", error.allowed)))?;
    let mut values = Vec::with_capacity(tags.len());
    for (index, tag) in tags.iter().enumerate() {
        let value = fields.get(&format!("t{index}")).map(|value| read(value));
        match value.transpose() {
            Ok(value) => values.push(value.filter(|value| !value.is_null())),
            Err(error) => {
                let reason = format!("tags.{tag}: {}", unreadable(&error));
                return Err(OddRow::of(device, reason));
            }
        }
    }
    let tags = values;
    Ok(DeviceRow { device, tags })
}

fn read(value: &RawValue) -> Result<Value, serde_json::Error> {
    serde_json::from_str(value.get())
}

/// The library's words for a fault of the syntax, without the place: a row is one line.
fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("it cannot be read ({what})")
}

/// What an error of the client means.
#[must_use]
pub fn trouble_of(error: &RestError) -> HubTrouble {
    match error {
        RestError::Connect(connect) => trouble::of_connect(connect),
        // The query itself was taken: listing the devices anew can help.
        RestError::Transit(_) | RestError::Continuation(_) => HubTrouble::Unreachable,
        RestError::NoToken(error) => trouble::of_credentials(error),
        RestError::QueryTooLong { .. } => HubTrouble::BadQuery,
        RestError::Api(api) if api.is_throttled() => HubTrouble::Throttled,
        RestError::Api(api) => match api.status {
            400 => HubTrouble::BadQuery,
            401 => HubTrouble::Unauthorized,
            403 => HubTrouble::Shut,
            500.. => HubTrouble::Unreachable,
            _ => HubTrouble::Other,
        },
        _ => HubTrouble::Other,
    }
}

pub(crate) fn hub_error(client: &Client, doing: &str, error: RestError) -> HubError {
    HubError {
        doing: format!("{doing} of hub {}", client.host_name()),
        trouble: trouble_of(&error),
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

    /// A page as it comes from the hub.
    fn page_of(text: &str) -> DevicePage {
        let items: Vec<Box<RawValue>> = serde_json::from_str(text).unwrap();
        page(&items, &[tag("region"), tag("site")])
    }

    #[test]
    fn an_odd_row_costs_its_own_device() {
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
            let [odd] = &page.odd[..] else {
                panic!("{row}: {:?}", page.odd);
            };
            assert!(odd.reason.starts_with(reason), "{row}: {odd:?}");
            assert!(odd.found.chars().count() <= 141, "{odd:?}");
            assert_eq!(odd.device.is_some(), reason.starts_with("tags"), "{odd:?}");
            assert!(!odd.reason.contains("column"), "{odd:?}");
        }
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let page = page_of(r#"[{"id":"a","t0":null,"t1":"x","more":[1e999]}]"#);
        assert_eq!(page.rows[0].tags, [None, Some(json!("x"))]);
        assert!(page.odd.is_empty());
    }

    #[test]
    fn only_what_is_needed_is_asked_for() {
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
