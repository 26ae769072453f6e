//! `twincast demo`: everything at work on this machine, with nothing left behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::spec::RolloutSpec;
use twincast_embedded::EmbeddedStore;
use twincast_emulator::{Fleet, HubConfig, RunningHub, Summary};
use twincast_iothub::{ClientOptions, ConnectionString, Roots};
use twincast_orchestrator::HubHandle;

use crate::args::DemoArgs;
use crate::commands::run::How;
use crate::commands::{hub, run};
use crate::config::{Overrides, Settings};
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, thousands};
use crate::specfile::SpecFile;

const SPEC: &str = include_str!("../../examples/firmware.yaml");

/// How this program is called from here: by its name where that leads to it, else by its path.
fn program() -> String {
    let name = "twincast";
    let Ok(this) = std::env::current_exe() else {
        return name.to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name));
    let first = found
        .filter_map(|program| program.canonicalize().ok())
        .next();
    if first.is_some() && first == this.canonicalize().ok() {
        return name.to_owned();
    }
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| Some(this.strip_prefix(here).ok()?.to_owned()));
    // A name alone would be looked for elsewhere.
    let below = below.map(|below| std::path::Path::new(".").join(below));
    below.unwrap_or(this).display().to_string()
}

/// What to do after the demo. The emulator is as fast as the demo's.
fn try_next(program: &str) -> String {
    format!(
        "\nTry next, with an emulator that stays up, and in another terminal the rollout to it:\n  \
         {program} hub --tier S3 --units 10 --devices 10000\n\n  \
         {program} --config twincast-hub/twincast.toml plan examples/firmware.yaml\n  \
         {program} --config twincast-hub/twincast.toml run --no-wait examples/firmware.yaml\n  \
         {program} report firmware-1.4.2 --failed"
    )
}

pub(crate) async fn demo(args: &DemoArgs, output: &Output) -> Result<ExitCode, Failure> {
    let fleet = Fleet::from_yaml(&hub::refrigerators(args.devices, 1))
        .context("the demo's fleet is refused")?;
    let (tier, units) = (Tier::S3, 10);
    let config = HubConfig {
        tier: twincast_emulator::Tier::S3,
        units,
        fleet,
        ..HubConfig::default()
    };
    let hub = twincast_emulator::start(config)
        .await
        .context("cannot start the emulator")?;
    output.note(&format!(
        "{}: an IoT Hub ({tier}, {units} units) with {} refrigerators in four regions, on {}",
        output.paint_note(Style::Bold, "Emulator"),
        thousands(args.devices),
        hub.amqp_addr()
    ));
    output.note(&format!(
        "{}: examples/firmware.yaml\n",
        output.paint_note(Style::Bold, "Rollout")
    ));

    let settings = Settings::load(None, Overrides::default())?;
    let handle = connect(&hub, HubLimits::of(tier, units, 1.0), &settings)?;
    let store =
        EmbeddedStore::open_in_memory(engine::clock()).context("cannot make a store in memory")?;
    let spec = RolloutSpec::read("examples/firmware.yaml", SPEC)
        .map_err(|error| Failure::new(ExitCode::Unexpected, error))?;
    let file = SpecFile {
        spec,
        files: BTreeMap::new(),
        base: ".".into(),
    };

    let code = run::roll_out(
        file,
        engine::single("demo", handle),
        Arc::new(store),
        &settings,
        &How {
            again: None,
            // Devices that are away take their messages hours later.
            waits: false,
            resumes: false,
        },
        output,
    )
    .await;
    let is_interrupted = matches!(code, Ok(ExitCode::Interrupted));
    if is_interrupted {
        output.note("Nothing of the demo is kept: run again, it begins anew.");
    }
    if code.is_ok() && !is_interrupted && !output.is_json() {
        let quota = tier.sends_per_minute() * f64::from(units);
        output.note(&what_the_hub_saw(
            &hub.hub().summary(),
            quota as u64,
            output,
        ));
        output.note(&try_next(&program()));
    }
    hub.shutdown().await;
    // Some of the demo's devices are disabled on purpose: that is what is to be seen.
    match code? {
        ExitCode::FinishedWithFailures => Ok(ExitCode::Success),
        code => Ok(code),
    }
}

fn what_the_hub_saw(seen: &Summary, quota: u64, output: &Output) -> String {
    format!(
        "\n{}: {} messages accepted, to {} devices, {} repeated; at most {} in any minute (quota {})",
        output.paint_note(Style::Bold, "The hub's own account"),
        thousands(seen.accepted),
        thousands(seen.distinct_devices),
        thousands(seen.repeats_by_device),
        thousands(seen.accepted_in_any_minute_max),
        thousands(quota),
    )
}

/// The emulator as a hub of the engine.
fn connect(hub: &RunningHub, limits: HubLimits, settings: &Settings) -> anyhow::Result<HubHandle> {
    let connection: ConnectionString = hub
        .connection_string()
        .parse()
        .context("the emulator's connection string is refused")?;
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.amqp.port = Some(hub.amqp_addr().port());
    options.https.port = Some(hub.https_addr().port());
    engine::handle(&connection, options, limits, &settings.worker)
}
