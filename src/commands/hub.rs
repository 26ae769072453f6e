//! `twincast hub`: the IoT Hub emulator.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use twincast_emulator::{
    Directory, Enrollments, Faults, Fleet, HubConfig, RunningHub, StartError, Tier,
};

use crate::args::{HubArgs, HubTier};
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, Style, with_noun};
use crate::signal::stop_signal;
use crate::textfile;

/// Returns a fleet file: refrigerators in four regions, some offline, a few with faults.
pub(crate) fn refrigerators(devices: u64, seed: u64) -> String {
    format!(
        "\
seed: {seed}
groups:
  - name: fridges
    count: {devices}
    id: \"fridge-{{index:06}}\"
    tags:
      type: fridge
      region: {{ $weighted: {{ eu-north: 40, eu-south: 25, us-east: 20, us-west: 15 }} }}
      ring: {{ $weighted: {{ canary: 2, early: 18, main: 80 }} }}
      site: {{ $text: \"site-{{index/100:04}}\" }}
    reported:
      firmware: {{ $choice: [\"1.3.0\", \"1.4.1\"] }}
    reported_after_delivery:
      firmware: \"1.4.2\"
    behaviour:
      offline: 5%
      online_after: {{ share: 10%, after: 10s..2m }}
      rejects: 1%
      disabled: 0.5%
      latency: 50ms..400ms
      answers: {{ after: 1s..10s, fails: 1%, error: \"disk_full: 3 MB are missing\" }}
"
    )
}

pub(crate) async fn hub(args: &HubArgs, output: &Output) -> Result<ExitCode, Failure> {
    let refused = |error: anyhow::Error| Failure::new(ExitCode::Refused, error);
    let (origin, text) = match &args.fleet {
        Some(path) => {
            let text = textfile::read("the fleet file", path);
            (path.display().to_string(), text.map_err(refused)?)
        }
        None => (
            "built-in fleet".to_owned(),
            refrigerators(args.devices.unwrap_or(1_000), args.seed),
        ),
    };
    let fleet = Fleet::from_yaml(&text)
        .with_context(|| format!("{origin} is invalid"))
        .map_err(refused)?;
    let (tier, _) = tiers(args.tier);
    let faults = match &args.faults {
        Some(json) => serde_json::from_str(json)
            .context("--faults is invalid")
            .map_err(refused)?,
        None => Faults::default(),
    };
    let enrollments = args
        .dps_file
        .as_deref()
        .map(|path| read_enrollments(path, args.seed))
        .transpose()
        .map_err(refused)?;
    let directory = directory(args).map_err(refused)?;
    let authorities = args.device_ca.iter();
    let authorities = authorities.map(|path| textfile::read("the certificates", path));
    let device_ca_pem = authorities.collect::<anyhow::Result<Vec<String>>>();
    let config = HubConfig {
        device_ca_pem: device_ca_pem.map_err(refused)?,
        host_name: args.host_name.clone(),
        bind: args.bind,
        amqp_port: args.amqp_port,
        https_port: args.https_port,
        mqtt_port: args.mqtt_port,
        control_port: Some(args.control_port),
        tier,
        units: args.units,
        unlimited: args.unlimited,
        seed: args.seed,
        fleet,
        added_devices_online: args.added_devices_online,
        faults,
        enrollments,
        directory,
        local_auth: !args.no_local_auth,
        default_ttl: args.default_ttl.0,
        feedback_interval: args.feedback_batching.0,
        feedback_lock: args.feedback_lock.0,
        feedback_batch: args.feedback_records,
        query_lag: args.query_lag.0,
        clock_ahead: args.clock_ahead.0,
        clock_behind: args.clock_behind.0,
        ..HubConfig::default()
    };
    let devices = config.fleet.len();
    let hub = twincast_emulator::start(config).await.map_err(|error| {
        let is_port = matches!(error, StartError::Bind { .. });
        let failure = Failure::new(ExitCode::Refused, error);
        if is_port {
            failure.hint(
                "choose other ports with --amqp-port, --https-port and --mqtt-port; 0 chooses a \
                 free port",
            )
        } else {
            failure
        }
    })?;
    let files = Files::write(&args.out, args, &hub)?;
    announce(&hub, u64::from(devices), &files, output);
    stop_signal().await;
    hub.shutdown().await;
    Ok(ExitCode::Success)
}

fn read_enrollments(path: &Path, seed: u64) -> anyhow::Result<Enrollments> {
    let text = textfile::read("the enrollments file", path)?;
    Enrollments::read(&text, seed).with_context(|| format!("{} is invalid", path.display()))
}

/// Returns the principals of Microsoft Entra ID, if the emulator accepts such tokens.
fn directory(args: &HubArgs) -> anyhow::Result<Option<Directory>> {
    let Some(path) = &args.entra_file else {
        return Ok(args.entra.then(|| Directory::of_one(args.seed)));
    };
    let text = textfile::read("the principals file", path)?;
    let directory = Directory::read(&text, args.seed);
    let directory = directory.with_context(|| format!("{} is invalid", path.display()))?;
    Ok(Some(directory))
}

/// Converts a tier into the emulator's type and the engine's type.
fn tiers(tier: HubTier) -> (Tier, twincast_core::hub::Tier) {
    use twincast_core::hub::Tier as Ours;
    match tier {
        HubTier::F1 => (Tier::Free, Ours::F1),
        HubTier::S1 => (Tier::S1, Ours::S1),
        HubTier::S2 => (Tier::S2, Ours::S2),
        HubTier::S3 => (Tier::S3, Ours::S3),
    }
}

/// The files written for clients of the hub.
struct Files {
    ca: String,
    connection_string: String,
    config: String,
}

impl Files {
    fn write(out: &Path, args: &HubArgs, hub: &RunningHub) -> Result<Self, Failure> {
        let path = |name: &str| out.join(name);
        let write = |name: &str, text: &str| {
            std::fs::write(path(name), text)
                .with_context(|| format!("cannot write {}", path(name).display()))
        };
        let config = client_config(hub, args);
        let written = std::fs::create_dir_all(out)
            .with_context(|| format!("cannot create the folder {}", out.display()))
            .and_then(|()| write("ca.pem", hub.ca_pem()))
            .and_then(|()| write("connection-string", &hub.connection_string()))
            .and_then(|()| write("twincast.toml", &config));
        written.map_err(|error| Failure::new(ExitCode::Refused, error))?;
        let shown = |name: &str| path(name).display().to_string();
        Ok(Self {
            ca: shown("ca.pem"),
            connection_string: shown("connection-string"),
            config: shown("twincast.toml"),
        })
    }
}

/// Returns a configuration file for this program, to be placed beside the certificate.
fn client_config(hub: &RunningHub, args: &HubArgs) -> String {
    let limits = if args.unlimited {
        "unlimited = true\n".to_owned()
    } else {
        format!(
            "tier = \"{}\"\nunits = {}\n",
            tiers(args.tier).1,
            args.units
        )
    };
    let shown = match hub.directory().filter(|_| args.no_local_auth) {
        None => "connection_string_file = \"connection-string\"\n".to_owned(),
        Some(directory) => {
            let (client, secret) = directory.clients().next().unwrap_or_default();
            format!(
                "host = \"{}\"\nauth = {{ method = \"client_secret\", authority_host = \"{}\", tenant_id = \"{}\", \
                 client_id = \"{client}\", client_secret = \"{}\" }}\n",
                args.host_name,
                authority_host(hub),
                directory.tenant_id(),
                secret.unwrap_or_default(),
            )
        }
    };
    format!(
        "# Written by `twincast hub` for its clients.\n[hubs.emulator]\n{shown}\
         ca_file = \"ca.pem\"\namqp_port = {}\nhttps_port = {}\naddress = \"{}\"\n{limits}feedback_batching = \"{}\"\nfeedback_lock = \"{}\"\nquery_lag = \"{}\"\n",
        hub.amqp_addr().port(),
        hub.https_addr().port(),
        hub.amqp_addr().ip(),
        args.feedback_batching,
        args.feedback_lock,
        args.query_lag,
    )
}

/// Returns the URL of the token service.
fn authority_host(hub: &RunningHub) -> String {
    format!("https://localhost:{}", hub.https_addr().port())
}

fn announce(hub: &RunningHub, devices: u64, files: &Files, output: &Output) {
    let control = hub
        .control_addr()
        .map(|address| format!("http://{address}"));
    let value = json!({
        "connection_string": hub.connection_string(),
        "ca_file": files.ca,
        "connection_string_file": files.connection_string,
        "config_file": files.config,
        "amqp": hub.amqp_addr(),
        "https": hub.https_addr(),
        "mqtt": hub.mqtt_addr(),
        "dps": {
            "id_scope": hub.enrollments().id_scope(),
            "group_keys": hub.enrollments().group_keys().collect::<BTreeMap<_, _>>(),
        },
        "entra": hub.directory().map(|directory| json!({
            "authority_host": authority_host(hub),
            "tenant_id": directory.tenant_id(),
            "clients": directory.clients().collect::<BTreeMap<_, _>>(),
        })),
        "control": control,
        "devices": devices,
    });
    let enrollments = hub.enrollments();
    let group = enrollments.group_keys().next();
    let group = group.map_or_else(String::new, |(name, key)| {
        format!(", group {name}, key {key}")
    });
    let entra = hub.directory().map_or_else(String::new, |directory| {
        let (client, secret) = directory.clients().next().unwrap_or_default();
        let (host, tenant) = (authority_host(hub), directory.tenant_id());
        let secret = secret.map_or_else(String::new, |secret| format!(", secret {secret}"));
        format!("\n  Entra ID           {host}, tenant {tenant}\n                     client {client}{secret}")
    });
    let text = format!(
        "{} with {} is running. Press Ctrl-C to stop it.\n\n  connection string  {}\n  certificate        {}\n  AMQP, HTTPS        {}, {}\n  MQTT               {}\n  registrations      id scope {}{group}{entra}\n  inspect            curl {}/summary\n  act as a device    curl {}/devices/ID/connection-string\n\n  Start a rollout:   twincast --config {} run rollout.yaml",
        output.paint(Style::Bold, "IoT Hub emulator"),
        with_noun(devices, "device", "devices"),
        hub.connection_string(),
        files.ca,
        hub.amqp_addr(),
        hub.https_addr(),
        hub.mqtt_addr(),
        enrollments.id_scope(),
        control.as_deref().unwrap_or("(no control endpoint)"),
        control.as_deref().unwrap_or("(no control endpoint)"),
        files.config,
    );
    output.result(&value, &text);
}
