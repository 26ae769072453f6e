//! Answers of simulated devices in twins, and the time until queries show them.

use std::time::Duration;

use serde_json::{Value, json};
use twincast_emulator::RunningHub;

use crate::client::{Client, hub_with, message};
use crate::http::Rest;

const FLEET: &str = "
groups:
  - count: 10
    id: 'd-{index}'
    reported: { firmware: '1.0' }
    reported_after_delivery: { firmware: '2.0' }
    behaviour:
      latency: 1ms
      answers: { after: 1ms..20ms, fails: 20%, error: 'health_check: the door does not answer' }
";

async fn send_to_all(hub: &RunningHub, id: &str) {
    let mut client = Client::authorised(hub).await.unwrap();
    let mut sender = client.commands().await.unwrap();
    for n in 0..10 {
        let to = format!("d-{n}");
        let message = message(&to, &format!("{id}.{n}"), "none");
        sender.send(message).await.unwrap();
    }
}

/// Returns a query for the number of answers by state, to messages with this id prefix.
fn by_state(prefix: &str) -> String {
    format!(
        "SELECT properties.reported.update.state AS s, COUNT() AS n FROM devices WHERE \
         STARTSWITH(properties.reported.update.id, '{prefix}.') GROUP BY properties.reported.update.state"
    )
}

async fn count(rest: &Rest<'_>, prefix: &str, state: &str) -> u64 {
    let rows = rest.rows(&by_state(prefix), None).await.0;
    let row = rows.iter().find(|row| row["s"] == state);
    row.and_then(|row| row["n"].as_u64()).unwrap_or(0)
}

#[tokio::test]
async fn each_answer_carries_the_message_id() {
    let hub = hub_with(FLEET, |_| {}).await;
    let rest = Rest::new(&hub);
    for id in ["r.1.0", "r.1.1"] {
        send_to_all(&hub, id).await;
        while count(&rest, id, "applied").await < 8 || count(&rest, id, "failed").await < 2 {
            tokio::task::yield_now().await;
        }
    }
    let failed = "SELECT deviceId, properties.reported.update AS u, properties.reported.firmware AS f FROM devices \
                  WHERE properties.reported.update.state = 'failed'";
    while rest.rows(failed, None).await.0.len() < 2 {
        tokio::task::yield_now().await;
    }
    for row in rest.rows(failed, None).await.0 {
        let twin = rest
            .get(&format!("/twins/{}", row["deviceId"].as_str().unwrap()))
            .await;
        let answer: &Value = &twin["properties"]["reported"]["update"];
        assert_eq!(answer, &row["u"]);
        let error = json!({ "code": "health_check", "text": "the door does not answer" });
        assert_eq!(answer["error"], error);
        assert!(
            answer["id"].as_str().unwrap().starts_with("r.1.1."),
            "{answer}"
        );
        assert_eq!(row["f"], "1.0", "the firmware version is unchanged");
    }
    hub.shutdown().await;
}

#[tokio::test]
async fn queries_lag_and_twins_do_not() {
    let fleet = FLEET.replace("20%", "0%");
    let hub = hub_with(&fleet, |config| {
        config.query_lag = Duration::from_secs(3600);
    })
    .await;
    let rest = Rest::new(&hub);
    send_to_all(&hub, "r.1.0").await;
    let reported = async || rest.get("/twins/d-0").await["properties"]["reported"].clone();
    while reported().await["update"]["state"] != "applied" {
        tokio::task::yield_now().await;
    }
    assert_eq!(reported().await["firmware"], "2.0");
    assert!(rest.rows(&by_state("r.1"), None).await.0.is_empty());
    let changed = "SELECT deviceId FROM devices WHERE properties.reported.firmware = '2.0'";
    assert!(rest.rows(changed, None).await.0.is_empty());
    hub.shutdown().await;
}
