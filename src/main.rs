//! `twincast`: rolls a cloud-to-device message out to a fleet of devices behind Azure IoT Hub.
//!
//! The command line is a thin layer: [`commands`] has a file per command, [`engine`] assembles the
//! local engine and [`process`] the distributed engine. All decisions are made in the libraries.

mod api;
mod args;
mod client;
mod command_sender;
mod commands;
mod config;
mod credentials;
mod engine;
mod failure;
mod health;
mod http;
mod http_client;
mod live_page;
mod logging;
mod oidc;
mod omissions;
mod otlp;
mod output;
mod overlapping_rollouts;
mod process;
mod progress;
mod prometheus;
mod services;
mod signal;
mod socket;
mod specfile;
mod stages;
mod stores;
mod summary;
mod textfile;
mod time_account;

use std::io::Write as _;

use clap::Parser as _;
use twincast_orchestrator::command::Kind;

use crate::args::{Args, Command};
use crate::config::{LogFormat, Overrides, Settings};
use crate::failure::{ExitCode, Failure};
use crate::output::Output;

fn main() -> std::process::ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let output = Output::new(args.json);
    let mut code = match start(args, &output) {
        Ok(code) => code,
        Err(failure) => {
            output.failure(&failure);
            failure.code
        }
    };
    if let Some(failure) = output.write_failure() {
        output.print_failure(&failure);
        if code == ExitCode::Success {
            code = failure.code;
        }
    }
    std::process::ExitCode::from(code as u8)
}

/// Prints help, version, or a mistake in the command line; a mistake also as JSON on request.
fn usage(error: &clap::Error) -> std::process::ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let message = error.render().to_string();
        let message = message.trim().trim_start_matches("error: ");
        Output::new(true).failure(&Failure::message(ExitCode::Usage, message));
        return std::process::ExitCode::from(ExitCode::Usage as u8);
    }
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    let code = match printed {
        _ if error.use_stderr() => ExitCode::Usage,
        // A reader closing the pipe is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::Unexpected,
        _ => ExitCode::Success,
    };
    std::process::ExitCode::from(code as u8)
}

fn start(args: Args, output: &Output) -> Result<ExitCode, Failure> {
    // The agent is a separate program with a separate configuration.
    if matches!(args.command, Some(Command::Agent)) {
        return commands::agent::agent(&args, output);
    }
    let overrides = Overrides {
        state: args.state,
        log: args.log.clone(),
        server: args.server.filter(|url| !url.is_empty()),
        token: std::env::var("TWINCAST_TOKEN")
            .ok()
            .filter(|token| !token.is_empty()),
    };
    let settings = Settings::load(args.config.as_deref(), overrides)?;
    let is_service = matches!(args.command, Some(Command::Orchestrator | Command::Worker));
    logging::start(&settings.log, args.log.as_deref(), is_service);
    if is_service && settings.log.format == LogFormat::Json {
        output.log_notes();
    }
    if args.print_config {
        output.print_config(&settings);
        return Ok(ExitCode::Success);
    }
    if let Some(name) = args.command.as_ref().and_then(Command::local_only_name)
        && settings.server.url.is_some()
    {
        let message = format!("{name} is not available over the HTTP API");
        return Err(Failure::message(ExitCode::Refused, message)
            .hint("unset --server, TWINCAST_SERVER and server.url; or use `twincast submit`"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(perform(args.command, &settings, output));
    // Blocking tasks without a waiting caller (reading a list) must not delay the exit.
    runtime.shutdown_background();
    result
}

async fn perform(
    command: Option<Command>,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    use commands::{change, completions};
    match command {
        Some(Command::Check) => commands::check::check(settings, output).await,
        Some(Command::Run(run)) => commands::run::run(&run, settings, output).await,
        Some(Command::Plan(plan)) => commands::plan::plan(&plan, settings, output).await,
        Some(Command::Validate(validate)) => {
            commands::validate::validate(&validate, settings, output)
        }
        Some(Command::Report(report)) => commands::report::report(&report, settings, output).await,
        Some(Command::Explain(explain)) => {
            commands::explain::explain(&explain, settings, output).await
        }
        Some(Command::Hubs) => commands::hubs::hubs(settings, output).await,
        Some(Command::Hub(hub)) => commands::hub::hub(&hub, output).await,
        Some(Command::Orchestrator) => commands::orchestrator::orchestrator(settings, output).await,
        Some(Command::Worker) => commands::worker::worker(settings, output).await,
        Some(Command::Submit(submit)) => commands::submit::submit(&submit, settings, output).await,
        Some(Command::Status(status)) => commands::status::status(&status, settings, output).await,
        Some(Command::Watch(watch)) => commands::watch::watch(&watch, settings, output).await,
        Some(Command::Pause(change)) => {
            change::change_rollout(Kind::Pause, &change, settings, output).await
        }
        Some(Command::Resume(change)) => {
            change::change_rollout(Kind::Resume, &change, settings, output).await
        }
        Some(Command::Abort(change)) => {
            change::change_rollout(Kind::Abort, &change, settings, output).await
        }
        Some(Command::Delete(delete)) => commands::delete::delete(&delete, settings, output).await,
        Some(Command::Approve(decision)) => {
            change::decide_gate(Kind::Approve, &decision, settings, output).await
        }
        Some(Command::Reject(decision)) => {
            change::decide_gate(Kind::Reject, &decision, settings, output).await
        }
        Some(Command::Retry(retry)) => change::retry(&retry, settings, output).await,
        Some(Command::Promote(promote)) => change::promote(&promote, settings, output).await,
        Some(Command::StopAll(all)) => {
            change::change_all(Kind::StopAll, &all, settings, output).await
        }
        Some(Command::ResumeAll(all)) => {
            change::change_all(Kind::ResumeAll, &all, settings, output).await
        }
        Some(Command::DeadLetters(dead_letters)) => {
            commands::dead_letters::dead_letters(&dead_letters, settings, output).await
        }
        Some(Command::Demo(demo)) => commands::demo::demo(&demo, output).await,
        Some(Command::Schema) => Ok(commands::validate::schema(output)),
        Some(Command::Token(token)) => commands::token::token(&token, output),
        Some(Command::Sign(sign)) => commands::sign::sign(&sign, output),
        Some(Command::Agent) => unreachable!("it is started before the configuration is read"),
        Some(Command::Completions { shell }) => completions::completions(shell),
        Some(Command::Man { folder }) => completions::man(&folder, output),
        None => Err(Failure::message(ExitCode::Usage, "no command given")
            .hint("twincast --help lists the commands")),
    }
}
