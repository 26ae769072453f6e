//! `twincast check`: whether everything that is configured can be reached and used, and what to do where it cannot.

use futures::future::join_all;
use serde::Serialize;
use twincast_core::error::in_words;
use twincast_core::ids::HubName;
use twincast_hub_adapter::{trouble_of_link, trouble_of_request};
use twincast_iothub::{
    C2dSender, Client, ClockOffset, ConnectionFailure, FeedbackReceiver, Transport,
};

use crate::config::{HubSettings, Settings};
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, counted, thousands};
use crate::{engine, prometheus, services, stores};

/// A query that each Prometheus server can answer.
const ANY_QUERY: &str = "vector(1)";

/// All that was found out.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Check {
    /// What it was tried at: `hub eu`, `RabbitMQ`.
    of: String,
    /// What was tried.
    check: &'static str,
    result: Outcome,
    /// What was found.
    found: String,
    /// What to do, if something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_do: Option<String>,
    #[serde(skip)]
    code: ExitCode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

impl Check {
    fn ok(of: &str, check: &'static str, found: impl Into<String>) -> Self {
        Self {
            of: of.to_owned(),
            check,
            result: Outcome::Ok,
            found: found.into(),
            to_do: None,
            code: ExitCode::Success,
        }
    }

    fn warning(of: &str, check: &'static str, found: impl Into<String>, to_do: &str) -> Self {
        Self {
            result: Outcome::Warning,
            to_do: Some(to_do.to_owned()),
            ..Self::ok(of, check, found)
        }
    }

    fn failed(of: &str, check: &'static str, failure: &Failure) -> Self {
        Self {
            result: Outcome::Failed,
            to_do: failure.hint.clone(),
            code: failure.code,
            ..Self::ok(of, check, in_words(&*failure.error))
        }
    }
}

pub(crate) async fn check(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    // Files and values that are wrong are told at once, as by all commands.
    let hubs = settings.hubs.iter().map(|(name, hub)| {
        let (address, credentials, options) = engine::reach(name, hub, settings)?;
        let client = Client::with_credentials(&address, credentials, options);
        let client = client.map_err(|error| Failure::new(ExitCode::Refused, error))?;
        Ok((name, hub, client))
    });
    let hubs = hubs.collect::<Result<Vec<_>, Failure>>()?;
    let of_hubs = join_all(
        hubs.iter()
            .map(|(name, hub, client)| of_hub(name, hub, client)),
    );
    let (of_hubs, broker, store, metrics) = tokio::join!(
        of_hubs,
        of_broker(settings),
        of_store(settings),
        of_metrics(settings)
    );
    let mut checks: Vec<Check> = of_hubs.into_iter().flatten().collect();
    checks.extend(broker);
    checks.extend(store);
    checks.extend(metrics);
    if checks.is_empty() {
        return Err(Failure::message(
            ExitCode::Refused,
            "nothing is configured that could be tried",
        )
        .hint("give the configuration file with --config"));
    }
    let failed = checks
        .iter()
        .find(|check| check.result == Outcome::Failed)
        .map(|check| check.code);
    let text = text(&checks, output);
    let ok = failed.is_none();
    output.result(&Report { ok, checks }, &text);
    Ok(failed.unwrap_or(ExitCode::Success))
}

fn text(checks: &[Check], output: &Output) -> String {
    let mut text = String::new();
    let mut last = "";
    for check in checks {
        if check.of != last {
            let gap = if last.is_empty() { "" } else { "\n" };
            text += &format!("{gap}{}\n", output.paint(Style::Bold, &check.of));
            last = &check.of;
        }
        let (style, mark) = match check.result {
            Outcome::Ok => (Style::Good, "ok"),
            Outcome::Warning => (Style::Warn, "warning"),
            Outcome::Failed => (Style::Bad, "failed"),
        };
        let mark = output.paint(style, &format!("{mark:<7}"));
        text += &format!("  {mark}  {:<9}  {}\n", check.check, check.found);
        if let Some(to_do) = &check.to_do {
            text += &format!("           What to do: {to_do}\n");
        }
    }
    let count = |result| checks.iter().filter(|check| check.result == result).count() as u64;
    let (failed, warnings) = (count(Outcome::Failed), count(Outcome::Warning));
    text += &match (failed, warnings) {
        (0, 0) => "\nEverything that is configured can be used.".to_owned(),
        (0, _) => format!(
            "\nUsable, with {}.",
            counted(warnings, "warning", "warnings")
        ),
        _ => format!("\n{} failed.", counted(failed, "check", "checks")),
    };
    text
}

async fn of_hub(name: &HubName, hub: &HubSettings, client: &Client) -> Vec<Check> {
    let of = format!("hub {name}");
    let mut checks = vec![quota(&of, hub)];
    checks.push(match client.count(None).await {
        Ok(devices) => {
            let devices = counted(devices, "device", "devices");
            let found = format!(
                "{} answers; queries are allowed; {devices}",
                client.host_name()
            );
            Check::ok(&of, "https", found)
        }
        Err(error) => {
            let (code, hint) = engine::hub_trouble(trouble_of_request(&error));
            let failure = engine::with_hint(Failure::new(code, error), hint);
            Check::failed(&of, "https", &failure)
        }
    });
    checks.extend(client.clock_offset().map(|offset| {
        let to_do = "set this machine's clock; tokens and expiries go by the hub's meanwhile";
        clock(&of, offset, "the hub's", to_do)
    }));
    match C2dSender::connect(client).await {
        Ok(sender) => {
            sender.close().await;
            let transport = match client.transport() {
                Some(Transport::AmqpWs) => "a WebSocket on port 443",
                Some(_) => "port 5671",
                None => "the transport that is configured",
            };
            let found = format!("messages can be sent, over {transport}");
            checks.push(Check::ok(&of, "messages", found));
        }
        Err(failure) => checks.push(link_failed(&of, "messages", failure)),
    }
    // No message is taken: a link that asks for none gets none.
    match FeedbackReceiver::connect(client).await {
        Ok(feedback) => {
            feedback.close();
            checks.push(Check::ok(&of, "feedback", "feedback can be received"));
        }
        Err(failure) => checks.push(link_failed(&of, "feedback", failure)),
    }
    checks
}

fn link_failed(of: &str, check: &'static str, failure: ConnectionFailure) -> Check {
    let (code, hint) = engine::hub_trouble(trouble_of_link(&failure));
    let hint = match &failure {
        ConnectionFailure::Connect(error) => Some(error.hint()),
        _ => hint,
    };
    Check::failed(
        of,
        check,
        &engine::with_hint(Failure::new(code, failure), hint),
    )
}

fn quota(of: &str, hub: &HubSettings) -> Check {
    if let Some(guess) = hub.guess() {
        return Check::warning(
            of,
            "quota",
            guess,
            "set tier and units, as the portal shows them",
        );
    }
    let limits = hub.limits();
    let rate = limits.sends_per_minute.map_or_else(
        || "no limit".to_owned(),
        |rate| format!("{} messages a minute", thousands(rate as u64)),
    );
    Check::ok(of, "quota", rate)
}

/// Compares this machine's clock with another's, named `theirs`.
fn clock(of: &str, offset: ClockOffset, theirs: &str, to_do: &str) -> Check {
    if offset.is_disagreement() {
        let found = format!("this machine's clock is {offset} {theirs}");
        Check::warning(of, "clock", found, to_do)
    } else {
        let found = format!("this machine's clock agrees with {theirs}");
        Check::ok(of, "clock", found)
    }
}

async fn of_broker(settings: &Settings) -> Option<Check> {
    if !settings.amqp.is_configured() {
        return None;
    }
    Some(match services::broker(settings, "check").await {
        Ok(amqp) => {
            amqp.close().await;
            let found = "connected; queues and exchanges can be declared";
            Check::ok("RabbitMQ", "topology", found)
        }
        Err(failure) => Check::failed("RabbitMQ", "topology", &failure),
    })
}

async fn of_store(settings: &Settings) -> Vec<Check> {
    if !settings.redis.is_configured() {
        return Vec::new();
    }
    let store = match stores::redis(settings).await {
        Ok(store) => store,
        Err(failure) => return vec![Check::failed("Redis", "connection", &failure)],
    };
    let mut checks = vec![Check::ok(
        "Redis",
        "connection",
        "connected; scripts can be run",
    )];
    checks.push(match store.ping().await {
        Ok(()) => Check::ok("Redis", "writing", "keys can be written"),
        Err(error) => {
            let failure = Failure::new(ExitCode::Services, error)
                .hint("check the permissions of the user, and that the server has memory left");
            Check::failed("Redis", "writing", &failure)
        }
    });
    let offset = services::clock_offset(&store).await;
    checks.extend(
        offset.map(|offset| clock("Redis", offset, "that of Redis", "set this machine's clock")),
    );
    checks
}

async fn of_metrics(settings: &Settings) -> Option<Check> {
    let source = match prometheus::server(settings) {
        Ok(source) => source?,
        Err(failure) => return Some(Check::failed("Prometheus", "query", &failure)),
    };
    Some(match source.ask(ANY_QUERY).await {
        Ok(_) => Check::ok("Prometheus", "query", "queries are answered"),
        Err(error) => {
            let failure = Failure::message(ExitCode::Services, in_words(&error))
                .hint("check prometheus.url, and what the server asks for: token, user, headers");
            Check::failed("Prometheus", "query", &failure)
        }
    })
}
