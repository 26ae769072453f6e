//! `twincast demo`: everything at work on this machine, with nothing left behind.

use std::collections::BTreeMap;

use anyhow::Context as _;
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::spec::RolloutSpec;
use twincast_embedded::EmbeddedStore;
use twincast_emulator::{Fleet, HubConfig};
use twincast_iothub::{ClientOptions, ConnectionString, Roots};

use crate::args::DemoArgs;
use crate::commands::run::How;
use crate::commands::{hub, run};
use crate::config::{Overrides, Settings};
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, thousands};
use crate::specfile::SpecFile;

const SPEC: &str = include_str!("../../examples/firmware.yaml");

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
    let connection: ConnectionString = hub
        .connection_string()
        .parse()
        .context("the emulator's connection string is refused")?;
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.amqp.port = Some(hub.amqp_addr().port());
    options.https.port = Some(hub.https_addr().port());
    let handle = engine::handle(
        &connection,
        options,
        HubLimits::of(tier, units, 1.0),
        &settings.worker,
    )?;
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
        store,
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
    if code.is_ok() && !output.is_json() {
        let seen = hub.hub().summary();
        output.note(&format!(
            "\n{}: {} messages accepted, to {} devices, {} repeated; at most {} in any minute (quota {})",
            output.paint_note(Style::Bold, "The hub's own account"),
            thousands(seen.accepted),
            thousands(seen.distinct_devices),
            thousands(seen.repeats_by_device),
            thousands(seen.accepted_in_any_minute_max),
            thousands((tier.sends_per_minute() * f64::from(units)) as u64),
        ));
        output.note(
            "\nTry next:\n  twincast hub                                       an emulator that stays up\n  \
             twincast --config twincast-hub/twincast.toml plan examples/firmware.yaml\n  \
             twincast --config twincast-hub/twincast.toml run examples/firmware.yaml\n  \
             twincast report firmware-1.4.2 --failed            who was not sent it, and why",
        );
    }
    hub.shutdown().await;
    // Some of the demo's devices are disabled on purpose: that is what is to be seen.
    match code? {
        ExitCode::FinishedWithFailures => Ok(ExitCode::Success),
        code => Ok(code),
    }
}
