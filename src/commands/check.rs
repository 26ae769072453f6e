//! `twincast check`: tests every configured connection, and advises on failures.

use futures::future::join_all;
use serde::Serialize;
use twincast_core::error::describe;
use twincast_core::ids::HubName;
use twincast_hub_adapter::{classify_link_failure, classify_request_error};
use twincast_iothub::{
    C2dSender, Client, ClockOffset, ConnectionFailure, FeedbackReceiver, Transport,
};

use crate::config::{HubSettings, Settings};
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, Style, thousands, with_noun};
use crate::{engine, prometheus, services, stores};

/// A query answered by every Prometheus server.
const ANY_QUERY: &str = "vector(1)";

/// The results of all checks.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

/// The result of a single check.
#[derive(Debug, Serialize)]
struct Check {
    /// The checked service: `hub eu`, `RabbitMQ`.
    service: String,
    /// The name of the check.
    check: &'static str,
    result: CheckResult,
    /// The finding.
    finding: String,
    /// The advised action, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    #[serde(skip)]
    code: ExitCode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckResult {
    Ok,
    Warning,
    Failed,
}

impl Check {
    fn ok(service: &str, check: &'static str, finding: impl Into<String>) -> Self {
        Self {
            service: service.to_owned(),
            check,
            result: CheckResult::Ok,
            finding: finding.into(),
            advice: None,
            code: ExitCode::Success,
        }
    }

    fn warning(
        service: &str,
        check: &'static str,
        finding: impl Into<String>,
        advice: &str,
    ) -> Self {
        Self {
            result: CheckResult::Warning,
            advice: Some(advice.to_owned()),
            ..Self::ok(service, check, finding)
        }
    }

    fn failed(service: &str, check: &'static str, failure: &Failure) -> Self {
        Self {
            result: CheckResult::Failed,
            advice: failure.hint.clone(),
            code: failure.code,
            ..Self::ok(service, check, describe(&*failure.error))
        }
    }
}

pub(crate) async fn check(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    // Wrong files and values are reported at once, as in all commands.
    let hubs = settings.hubs.iter().map(|(name, hub)| {
        let (address, credentials, options) = engine::connection_parameters(name, hub, settings)?;
        let client = Client::with_credentials(&address, credentials, options);
        let client = client.map_err(|error| Failure::new(ExitCode::Refused, error))?;
        Ok((name, hub, client))
    });
    let hubs = hubs.collect::<Result<Vec<_>, Failure>>()?;
    let hub_checks = join_all(
        hubs.iter()
            .map(|(name, hub, client)| check_hub(name, hub, client)),
    );
    let (hub_checks, broker, store, metrics) = tokio::join!(
        hub_checks,
        check_broker(settings),
        check_store(settings),
        check_metrics(settings)
    );
    let mut checks: Vec<Check> = hub_checks.into_iter().flatten().collect();
    checks.extend(broker);
    checks.extend(store);
    checks.extend(metrics);
    if checks.is_empty() {
        return Err(
            Failure::message(ExitCode::Refused, "no service is configured")
                .hint("pass the configuration file by --config"),
        );
    }
    let failed = checks
        .iter()
        .find(|check| check.result == CheckResult::Failed)
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
        if check.service != last {
            let gap = if last.is_empty() { "" } else { "\n" };
            text += &format!("{gap}{}\n", output.paint(Style::Bold, &check.service));
            last = &check.service;
        }
        let (style, mark) = match check.result {
            CheckResult::Ok => (Style::Good, "ok"),
            CheckResult::Warning => (Style::Warn, "warning"),
            CheckResult::Failed => (Style::Bad, "failed"),
        };
        let mark = output.paint(style, &format!("{mark:<7}"));
        text += &format!("  {mark}  {:<9}  {}\n", check.check, check.finding);
        if let Some(advice) = &check.advice {
            text += &format!("           What to do: {advice}\n");
        }
    }
    let count = |result| checks.iter().filter(|check| check.result == result).count() as u64;
    let (failed, warnings) = (count(CheckResult::Failed), count(CheckResult::Warning));
    text += &match (failed, warnings) {
        (0, 0) => "\nAll configured services can be used.".to_owned(),
        (0, _) => format!(
            "\nUsable, with {}.",
            with_noun(warnings, "warning", "warnings")
        ),
        _ => format!("\n{} failed.", with_noun(failed, "check", "checks")),
    };
    text
}

async fn check_hub(name: &HubName, hub: &HubSettings, client: &Client) -> Vec<Check> {
    let service = format!("hub {name}");
    let mut checks = vec![quota(&service, hub)];
    checks.push(match client.count(None).await {
        Ok(devices) => {
            let devices = with_noun(devices, "device", "devices");
            let finding = format!(
                "{} answers; queries are allowed; {devices}",
                client.host_name()
            );
            Check::ok(&service, "https", finding)
        }
        Err(error) => {
            let (code, hint) = engine::hub_trouble(classify_request_error(&error));
            let failure = engine::with_hint(Failure::new(code, error), hint);
            Check::failed(&service, "https", &failure)
        }
    });
    checks.extend(client.clock_offset().map(|offset| {
        let advice =
            "set this machine's clock; until then, tokens and expiry times follow the hub's clock";
        clock(&service, offset, "the hub's", advice)
    }));
    match C2dSender::connect(client).await {
        Ok(sender) => {
            sender.close().await;
            let transport = client.transport().unwrap_or(client.options().transport);
            let name = match transport {
                Transport::AmqpWs => "a WebSocket",
                Transport::Auto | Transport::Amqp => "AMQP",
            };
            let port = client.port(transport);
            let finding = format!("messages can be sent, over {name} on port {port}");
            checks.push(Check::ok(&service, "messages", finding));
        }
        Err(failure) => checks.push(link_failed(&service, "messages", failure)),
    }
    // No message is consumed: the hub sends no feedback to a link without credit.
    match FeedbackReceiver::connect(client).await {
        Ok(feedback) => {
            feedback.close();
            checks.push(Check::ok(&service, "feedback", "feedback can be received"));
        }
        Err(failure) => checks.push(link_failed(&service, "feedback", failure)),
    }
    checks
}

fn link_failed(service: &str, check: &'static str, failure: ConnectionFailure) -> Check {
    let (code, hint) = engine::hub_trouble(classify_link_failure(&failure));
    let hint = match &failure {
        ConnectionFailure::Connect(error) => Some(error.hint()),
        _ => hint,
    };
    Check::failed(
        service,
        check,
        &engine::with_hint(Failure::new(code, failure), hint),
    )
}

fn quota(service: &str, hub: &HubSettings) -> Check {
    if let Some(assumed) = hub.assumed_limits() {
        return Check::warning(
            service,
            "quota",
            assumed,
            "set tier and units as shown in the Azure portal",
        );
    }
    let limits = hub.limits();
    let rate = limits.sends_per_minute.map_or_else(
        || "no limit".to_owned(),
        |rate| format!("{} messages a minute", thousands(rate as u64)),
    );
    Check::ok(service, "quota", rate)
}

/// Compares this machine's clock with another clock, named `theirs`.
fn clock(service: &str, offset: ClockOffset, theirs: &str, advice: &str) -> Check {
    if offset.is_disagreement() {
        let finding = format!("this machine's clock is {offset} {theirs}");
        Check::warning(service, "clock", finding, advice)
    } else {
        let finding = format!("this machine's clock agrees with {theirs}");
        Check::ok(service, "clock", finding)
    }
}

async fn check_broker(settings: &Settings) -> Option<Check> {
    if !settings.amqp.is_configured() {
        return None;
    }
    Some(match services::broker(settings, "check").await {
        Ok(amqp) => {
            amqp.close().await;
            let finding = "connected; queues and exchanges can be declared";
            Check::ok("RabbitMQ", "topology", finding)
        }
        Err(failure) => Check::failed("RabbitMQ", "topology", &failure),
    })
}

async fn check_store(settings: &Settings) -> Vec<Check> {
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
                .hint("check the user's permissions and the server's free memory");
            Check::failed("Redis", "writing", &failure)
        }
    });
    let offset = services::clock_offset(&store).await;
    checks.extend(
        offset.map(|offset| clock("Redis", offset, "that of Redis", "set this machine's clock")),
    );
    checks
}

async fn check_metrics(settings: &Settings) -> Option<Check> {
    let source = match prometheus::server(settings) {
        Ok(source) => source?,
        Err(failure) => return Some(Check::failed("Prometheus", "query", &failure)),
    };
    Some(match source.ask(ANY_QUERY).await {
        Ok(_) => Check::ok("Prometheus", "query", "queries are answered"),
        Err(error) => {
            let failure = Failure::message(ExitCode::Services, describe(&error))
                .hint("check prometheus.url and the credentials: token, user, headers");
            Check::failed("Prometheus", "query", &failure)
        }
    })
}
