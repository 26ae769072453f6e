//! `twincast hubs`: the hubs, with quotas and the current state of the limiters.

use twincast_orchestrator::view::hubs::{FeedbackView, HubView, LinksView};

use crate::client::Client;
use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, table, thousands};

pub(crate) async fn hubs(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    let client = Client::for_reading(settings).await?;
    let found = client.hubs().await;
    client.close().await;
    let list = found?;
    let stopped = list.stopped.iter();
    let mut text: String = stopped.map(|it| format!("{it}\n\n")).collect();
    text += &if list.hubs.is_empty() {
        "No hub is configured.".to_owned()
    } else {
        let rows: Vec<_> = list.hubs.iter().map(row).collect();
        let headings = [
            "hub",
            "per minute",
            "per day",
            "rate now",
            "rollouts",
            "waiting",
            "workers",
            "links",
            "feedback",
        ];
        table(&headings, &rows)
    };
    output.result(&list, &text);
    Ok(ExitCode::Success)
}

/// Describes the time until which feedback of a hub was received, and the current obstacle.
fn receiving(feedback: &FeedbackView) -> String {
    let received = feedback
        .heard_until
        .map(|until| format!("received until {until}"));
    let parts: Vec<_> = received
        .into_iter()
        .chain(feedback.obstacle.clone())
        .collect();
    parts.join("; ")
}

/// Describes whether workers can send through a hub, and the obstacle if not.
fn sending(links: &LinksView) -> String {
    let trouble = links.trouble.as_ref().zip(links.since);
    let trouble = trouble.map(|(trouble, since)| match links.open {
        0 => format!("none open since {since}: the hub {trouble}"),
        _ => format!(
            "{} blocked since {since}: the hub {trouble}",
            links.hindered
        ),
    });
    let open = (links.open > 0).then(|| format!("{} open", thousands(links.open)));
    let parts: Vec<_> = open.into_iter().chain(trouble).collect();
    if parts.is_empty() {
        return "-".to_owned();
    }
    parts.join("; ")
}

fn row(hub: &HubView) -> Vec<String> {
    let permits = &hub.permits;
    let count = |number: Option<u64>| number.map_or("-".to_owned(), thousands);
    let rate = |rate: Option<f64>| rate.map_or("no limit".to_owned(), |it| thousands(it as u64));
    let now = match permits.paused_until {
        Some(until) => format!("paused until {until}"),
        None => rate(permits.per_minute),
    };
    vec![
        hub.name.clone(),
        rate(hub.messages_per_minute),
        hub.messages_per_day
            .map_or("no limit".to_owned(), thousands),
        now,
        permits.rollouts.join(", "),
        count(hub.dispatches_waiting),
        count(hub.workers),
        sending(&hub.links),
        receiving(&hub.feedback),
    ]
}
