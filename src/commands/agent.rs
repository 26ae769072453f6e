//! `twincast agent`: the device agent, also available as the program `twincast-agent`.

use twincast_agent::config::{Config, ConfigError};
use twincast_agent::{Agent, AgentError};

use crate::args::Args;
use crate::config::{LogFormat, LogSettings};
use crate::failure::{ExitCode, Failure};
use crate::output::Output;
use crate::signal::stop_signal;

pub(crate) fn agent(args: &Args, output: &Output) -> Result<ExitCode, Failure> {
    let Some(path) = &args.config else {
        return Err(
            Failure::message(ExitCode::Usage, "the agent has no configuration")
                .hint("run twincast agent --config agent.toml; docs/reference/device-agent.md lists the keys"),
        );
    };
    let mut config = Config::load(path).map_err(refused)?;
    if let Some(state) = &args.state {
        config.state.clone_from(state);
    }
    if args.print_config {
        output.print_config(&config);
        return Ok(ExitCode::Success);
    }
    let log = LogSettings {
        format: LogFormat::Json,
        filter: Some(config.log.clone()),
    };
    crate::logging::start(&log, args.log.as_deref(), true);
    let agent = Agent::new(config).map_err(|error| {
        let code = match &error {
            AgentError::Store { .. } => ExitCode::State,
            _ => ExitCode::Refused,
        };
        Failure::new(code, error)
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(agent.run(async {
        stop_signal().await;
    }));
    Ok(ExitCode::Success)
}

fn refused(error: ConfigError) -> Failure {
    Failure::new(ExitCode::Refused, error)
}
