//! Twin queries: conditions to SQL, rows to devices.

use std::num::NonZeroU32;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde_json::{Map, Value};
use twincast_core::ids::DeviceId;
use twincast_core::ports::{DeviceQuery, DeviceRow, HubError, HubTrouble};
use twincast_iothub::{Client, QueryPages, RestError};
use twincast_retry::Policy;

use crate::trouble;

/// The largest page that hubs give (`iot-hub-devguide-query-language`).
const PAGE: u32 = 100;
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

async fn permit(throttle: Option<&Throttle>) {
    if let Some(throttle) = throttle {
        throttle.permit().await;
    }
}

pub(crate) async fn count(
    client: &Client,
    throttle: Option<&Throttle>,
    condition: &str,
) -> Result<u64, HubError> {
    permit(throttle).await;
    let condition = Some(condition).filter(|condition| !condition.is_empty());
    client
        .count(condition)
        .await
        .map_err(|error| hub_error(client, "count the devices", error))
}

pub(crate) fn devices<'a>(
    client: &'a Client,
    throttle: Option<&'a Throttle>,
    query: &DeviceQuery,
) -> BoxStream<'a, Result<Vec<DeviceRow>, HubError>> {
    let sql = sql(query);
    let tags = query.tags.len();
    let pages = match client.query(&sql, PAGE) {
        Ok(pages) => pages,
        Err(error) => {
            let error = hub_error(client, "list the devices", error);
            return stream::once(futures::future::ready(Err(error))).boxed();
        }
    };
    // After an error the stream is over.
    stream::unfold(Some((pages, 0u32)), move |state| async move {
        let (mut pages, number) = state?;
        match next_page(client, throttle, &mut pages, number > 0).await {
            Ok(Some(items)) => {
                let rows: Result<Vec<_>, _> = items
                    .into_iter()
                    .map(|item| row(client, item, tags))
                    .collect();
                let rest = rows.is_ok().then_some((pages, number.saturating_add(1)));
                Some((rows, rest))
            }
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// The next page. Under way (`started`), a hub that is away for a while does not cost the pages
/// so far: the same page is asked for again, for about [`PATIENCE`].
async fn next_page(
    client: &Client,
    throttle: Option<&Throttle>,
    pages: &mut QueryPages,
    started: bool,
) -> Result<Option<Vec<Value>>, HubError> {
    let mut delays = Policy::reconnect()
        .with_max_elapsed(PATIENCE)
        .expect("longer than nothing")
        .delays();
    let mut refused = 0;
    loop {
        permit(throttle).await;
        let error = match pages.next_page().await {
            Ok(page) => return Ok(page.map(|page| page.items)),
            Err(error) => error,
        };
        // A continuation that is over stays so; the hub may have erred, too.
        refused += u32::from(matches!(error, RestError::Continuation(_)));
        let error = hub_error(client, "list the devices", error);
        let passing = refused < CONTINUATION_TRIES
            && !matches!(
                error.trouble,
                HubTrouble::BadQuery
                    | HubTrouble::Unauthorized
                    | HubTrouble::Shut
                    | HubTrouble::Other
            );
        match delays.next_delay() {
            Some(delay) if started && passing => {
                tracing::warn!(
                    hub = client.host_name(),
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
        sql.push_str(&format!(", tags.{tag} AS t{index}"));
    }
    sql.push_str(" FROM devices");
    if !query.condition.is_empty() {
        sql.push_str(" WHERE ");
        sql.push_str(&query.condition);
    }
    sql
}

fn row(client: &Client, item: Value, tags: usize) -> Result<DeviceRow, HubError> {
    let unexpected = |found: &dyn std::fmt::Display| HubError {
        doing: format!("understand a device of hub {}", client.host_name()),
        trouble: HubTrouble::Other,
        source: format!("found {found}").into(),
    };
    let Value::Object(mut fields) = item else {
        return Err(unexpected(&item));
    };
    let Some(Value::String(id)) = fields.remove("id") else {
        return Err(unexpected(&Value::Object(fields)));
    };
    let device = DeviceId::new(&id).map_err(|error| unexpected(&error))?;
    let tags = (0..tags).map(|index| tag(&mut fields, index)).collect();
    Ok(DeviceRow { device, tags })
}

fn tag(fields: &mut Map<String, Value>, index: usize) -> Option<Value> {
    let value = fields.remove(&format!("t{index}"))?;
    (!value.is_null()).then_some(value)
}

fn hub_error(client: &Client, doing: &str, error: RestError) -> HubError {
    let trouble = match &error {
        RestError::Connect(connect) => trouble::of_connect(connect),
        // The query itself was taken: listing the devices anew can help.
        RestError::Transit(_) | RestError::Continuation(_) => HubTrouble::Unreachable,
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
    };
    HubError {
        doing: format!("{doing} of hub {}", client.host_name()),
        trouble,
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use twincast_core::query::TagPath;

    use super::*;

    #[test]
    fn only_what_is_needed_is_asked_for() {
        let query = |condition: &str, tags: &[&str]| {
            let tags = tags.iter().map(|tag| TagPath::new(*tag).unwrap()).collect();
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
