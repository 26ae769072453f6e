//! `twincast hubs`: the hubs, with their quotas and what their limiters give now.

use twincast_orchestrator::view::hubs::{FeedbackView, HubView, LinksView};

use crate::client::Client;
use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, table, thousands};

pub(crate) async fn hubs(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    let client = Client::to_look(settings).await?;
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
            "a minute",
            "a day",
            "now",
            "wanted by",
            "waiting",
            "workers",
            "sending",
            "feedback",
        ];
        table(&headings, &rows)
    };
    output.result(&list, &text);
    Ok(ExitCode::Success)
}

/// Until when a hub was heard, and why no longer.
fn heard(feedback: &FeedbackView) -> String {
    let heard = feedback
        .heard_until
        .map(|until| format!("heard until {until}"));
    let parts: Vec<_> = heard
        .into_iter()
        .chain(feedback.in_the_way.clone())
        .collect();
    parts.join("; ")
}

/// Whether workers can send through a hub, and why not.
fn sending(links: &LinksView) -> String {
    let trouble = links.trouble.as_ref().zip(links.since);
    let trouble = trouble.map(|(trouble, since)| match links.open {
        0 => format!("nothing since {since}: it {trouble}"),
        _ => format!("{} cannot since {since}: it {trouble}", links.hindered),
    });
    let open = (links.open > 0).then(|| format!("by {}", thousands(links.open)));
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
    let now = match permits.shut_until {
        Some(until) => format!("nothing until {until}"),
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
        heard(&hub.feedback),
    ]
}
