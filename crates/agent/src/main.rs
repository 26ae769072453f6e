//! `twincast-agent --config agent.toml`: the agent as a separate program, small enough for a
//! device.

use std::path::Path;
use std::process::ExitCode;

use twincast_agent::Agent;
use twincast_agent::config::Config;

const USAGE: &str = "usage: twincast-agent --config FILE [--print-config]

Receives signed updates from Azure IoT Hub, installs them, and reports the results.

  --config FILE    read the configuration (TOML)
  --print-config   print the effective configuration, without secrets, and exit
  --version        print the version and exit

Exit codes: 0 stopped on request, 1 unexpected error, 2 invalid command line, 3 configuration or identity not usable";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (mut config, mut print) = (None, false);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") => config = arguments.next(),
            Some("--print-config") => print = true,
            Some("--version") => return say(concat!("twincast-agent ", env!("CARGO_PKG_VERSION"))),
            Some("--help" | "-h") => return say(USAGE),
            _ => return usage(&format!("unknown argument {}", argument.display())),
        }
    }
    match config {
        Some(config) => start(Path::new(&config), print),
        None => usage("--config is missing"),
    }
}

fn start(path: &Path, print: bool) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if print {
        let text = serde_json::to_string_pretty(&config).unwrap_or_default();
        return say(&text);
    }
    let level = config.log.parse().unwrap_or(tracing::Level::INFO);
    tracing_subscriber::fmt()
        .json()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .init();
    let agent = match Agent::new(config) {
        Ok(agent) => agent,
        Err(error) => return refuse(&error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(agent.run(signal())),
        Err(error) => return complain(1, &error.to_string()),
    }
    ExitCode::SUCCESS
}

/// Waits for SIGTERM or SIGINT.
async fn signal() {
    let terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminated {
        Ok(mut terminated) => tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    complain(3, &twincast_agent::error_chain(error))
}

fn usage(what: &str) -> ExitCode {
    complain(2, &format!("{what}\n{USAGE}"))
}

#[expect(
    clippy::print_stderr,
    reason = "an error at the start can only go to standard error"
)]
fn complain(code: u8, what: &str) -> ExitCode {
    eprintln!("error: {what}");
    ExitCode::from(code)
}

#[expect(clippy::print_stdout, reason = "the output was requested")]
fn say(what: &str) -> ExitCode {
    println!("{what}");
    ExitCode::SUCCESS
}
