//! `twincast demo`: a full demonstration on this machine, with nothing left behind. A bad build
//! stops at the canaries; the fixed build reaches the fleet.

mod canaries;
mod files;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use twincast_agent::envelope::SecretKey;
use twincast_core::hub::{HubLimits, Tier};
use twincast_core::spec::RolloutSpec;
use twincast_core::trace::Tracer;
use twincast_embedded::EmbeddedStore;
use twincast_emulator::{Fleet, HubConfig, RunningHub};
use twincast_iothub::{Client, ClientOptions, ConnectionString, Credentials, Roots};
use twincast_orchestrator::Hubs;

use canaries::{CANARIES, Canaries, FIRST_VERSION};
use files::FileServer;

use crate::args::DemoArgs;
use crate::commands::run::{self, RunOptions, RunResult};
use crate::config::{Overrides, Settings};
use crate::engine::{self, Engine};
use crate::failure::{ExitCode, Failure};
use crate::live_page::LivePage;
use crate::output::{Output, Style, escape_line, table, thousands};
use crate::signal::stop_signal;

const TIER: Tier = Tier::S3;
const UNITS: u32 = 10;
/// The build that fails on real hardware.
const FAULTY_BUILD: &str = "1.4.0";
/// The fixed build.
const FIXED_BUILD: &str = "1.4.1";

/// Returns the fleet: simulated refrigerators with answers, and the canaries, which are not
/// simulated.
fn fleet(devices: u64) -> Result<Fleet, Failure> {
    let text = format!(
        "seed: 1\n\
         groups:\n\
         - {{ count: {CANARIES}, id: 'canary-{{index}}', tags: {{ type: fridge, ring: canary }} }}\n\
         - count: {devices}\n  id: 'fridge-{{index:06}}'\n\
         \x20 tags: {{ type: fridge, ring: main, region: {{ $weighted: {{ eu-north: 40, eu-south: 25, us-east: 20, us-west: 15 }} }} }}\n\
         \x20 reported: {{ firmware: '{FIRST_VERSION}' }}\n\
         \x20 reported_after_delivery: {{ firmware: '{FIXED_BUILD}' }}\n\
         \x20 behaviour:\n    latency: 50ms..400ms\n    answers: {{ after: 500ms..3s, fails: 0.2%, error: 'disk_full: 3 MB are missing' }}\n"
    );
    let fleet = Fleet::from_yaml(&text).context("the demo's fleet is invalid")?;
    Ok(fleet)
}

/// Returns a rollout of the message to all refrigerators, canaries first.
fn rollout(version: &str, message: &Value) -> Result<RolloutSpec, Failure> {
    let spec = json!({
        "name": format!("firmware-{version}"),
        "target": { "tags": { "type": "fridge" } },
        "message": { "body": { "json": message }, "properties": { "kind": "update" }, "ttl": "5m" },
        "stages": [{
            "name": "canary",
            "tags": { "ring": "canary" },
            "gate": { "counts": "applied", "success_at_least": "80%", "failure_above": "20%", "min_sample": CANARIES },
        }],
    });
    RolloutSpec::read("the demo's rollout", &spec.to_string())
        .map_err(|error| Failure::new(ExitCode::Unexpected, error))
}

/// The environment of the demo.
struct DemoEnvironment {
    hub: RunningHub,
    hubs: Hubs,
    client: Client,
    store: Arc<EmbeddedStore>,
    settings: Settings,
    files: FileServer,
    key: SecretKey,
    canaries: Canaries,
    /// The folder of all written files; deleted at the end.
    #[expect(dead_code, reason = "it is held")]
    folder: TempDir,
}

impl DemoEnvironment {
    async fn start(devices: u64) -> Result<Self, Failure> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let config = HubConfig {
            tier: twincast_emulator::Tier::S3,
            units: UNITS,
            fleet: fleet(devices)?,
            ..HubConfig::default()
        };
        let hub = twincast_emulator::start(config).await;
        let hub = hub.context("cannot start the emulator")?;
        let files = FileServer::start(&[(FAULTY_BUILD, false), (FIXED_BUILD, true)]).await?;
        let (key, _) = SecretKey::new().context("cannot create a signing key")?;
        let canaries = Canaries::start(folder.path(), &hub, &key.public()).await?;
        let settings = Settings::load(None, Overrides::default())?;
        let (connection, options) = connection(&hub)?;
        let client = Client::new(&connection, options.clone());
        let limits = HubLimits::of(TIER, UNITS, 1.0);
        let handle = engine::handle(
            connection.address(),
            Credentials::SharedAccess(connection.clone().into()),
            options,
            limits,
            &settings.worker,
        )?;
        let store = EmbeddedStore::open_in_memory(engine::clock());
        Ok(Self {
            hubs: engine::single("demo", handle),
            client: client.context("cannot connect to the emulator")?,
            store: Arc::new(store.context("cannot create a store in memory")?),
            hub,
            settings,
            files,
            key,
            canaries,
            folder,
        })
    }

    fn engine(&self) -> Engine {
        let (store, hubs) = (Arc::clone(&self.store), self.hubs.clone());
        Engine::new(
            store,
            hubs,
            &self.settings.worker,
            ".".into(),
            &Tracer::default(),
        )
    }

    /// Rolls a build out.
    async fn roll_out(&self, version: &str, output: &Output) -> Result<RunResult, Failure> {
        let message = self.files.signed(version, &self.key)?;
        let spec = rollout(version, &message)?;
        let options = RunOptions {
            command_to_continue: None,
            waits_for_answers: true,
            resumes_paused: false,
        };
        let files = BTreeMap::new();
        run::accept_and_run(self.engine(), spec, files, &self.settings, &options, output).await
    }

    /// Counts the devices of each reported version.
    async fn versions(&self) -> Result<BTreeMap<String, u64>, Failure> {
        let by_version = "SELECT properties.reported.firmware AS version, COUNT() AS devices FROM devices \
                          GROUP BY properties.reported.firmware";
        let pages = self.client.query(by_version, 100);
        let mut pages = pages.context("cannot query the firmware of the devices")?;
        let mut versions = BTreeMap::new();
        while let Some(page) = pages
            .next_page()
            .await
            .context("cannot query the firmware of the devices")?
        {
            for row in page.items {
                let version = row["version"].as_str().unwrap_or("unknown").to_owned();
                *versions.entry(version).or_default() += row["devices"].as_u64().unwrap_or(0);
            }
        }
        Ok(versions)
    }

    /// Returns a table of the canaries: the last answer and the running version of each.
    async fn canary_table(&self) -> Result<String, Failure> {
        self.wait_for_canaries().await?;
        let all = "SELECT deviceId AS id, properties.reported.update AS answer, properties.reported.firmware AS runs FROM devices \
                   WHERE tags.ring = 'canary'";
        let pages = self
            .client
            .query(all, 100)
            .context("cannot query the canaries")?;
        let mut pages = pages;
        let mut rows = Vec::new();
        while let Some(page) = pages
            .next_page()
            .await
            .context("cannot query the canaries")?
        {
            rows.extend(page.items.iter().map(|row| {
                let text = |value: &Value| escape_line(value.as_str().unwrap_or("-"));
                let answer = &row["answer"];
                vec![
                    text(&row["id"]),
                    text(&answer["state"]),
                    text(&answer["error"]["text"]),
                    text(&row["runs"]),
                ]
            }));
        }
        rows.sort();
        Ok(table(&["device", "answer", "reason", "firmware"], &rows))
    }

    /// Waits until every canary has given a final answer to the last update, for about ten seconds
    /// at most.
    async fn wait_for_canaries(&self) -> Result<(), Failure> {
        let condition = "tags.ring = 'canary' AND properties.reported.update.state IN ['applied', 'rolled_back', 'failed', 'refused']";
        for _ in 0..100 {
            let count = self.client.count(Some(condition)).await;
            if count.context("cannot query the canaries")? >= CANARIES as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn shut_down(self) {
        let Self {
            hub,
            hubs,
            client,
            store,
            files,
            canaries,
            ..
        } = self;
        canaries.end().await;
        files.end().await;
        store.close().await;
        // Connected clients would log errors.
        drop((hubs, client));
        hub.shutdown().await;
    }
}

pub(crate) async fn demo(args: &DemoArgs, output: &Output) -> Result<ExitCode, Failure> {
    let environment = DemoEnvironment::start(args.devices).await?;
    let page = match args.page {
        true => Some(LivePage::open(&environment.engine(), &environment.settings).await?),
        false => None,
    };
    let code = run_steps(args, &environment, page.as_ref(), output).await;
    if let (Some(page), Ok(ExitCode::Success)) = (page, &code) {
        output.note(&format!(
            "\nThe live page stays available at {} until Ctrl-C.",
            page.url()
        ));
        stop_signal().await;
        page.close().await;
    }
    environment.shut_down().await;
    code
}

async fn run_steps(
    args: &DemoArgs,
    environment: &DemoEnvironment,
    page: Option<&LivePage>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let print_step = |number: u32, title: &str, text: &str| {
        let title = output.paint_note(Style::Bold, &format!("{number}  {title}"));
        output.note(&format!("\n{title}\n{text}\n"));
    };
    print_step(
        1,
        "The fleet",
        &format!(
            "An emulated IoT Hub ({TIER}, {UNITS} units) with {} simulated refrigerators, and {CANARIES} canaries:\n\
             device agents in separate processes, connected over MQTT. All devices run firmware {FIRST_VERSION}.",
            thousands(args.devices)
        ),
    );
    if let Some(page) = page {
        output.note(&format!("Live page: {}", page.url()));
    }
    print_step(
        2,
        &format!("Firmware {FAULTY_BUILD}, a faulty build"),
        "The pipeline has built and signed the firmware, but its health check fails on real hardware.\n\
         The rollout starts with the canaries, and continues if at least 80 % of the canaries report\n\
         that they have applied the firmware.",
    );
    let faulty = environment.roll_out(FAULTY_BUILD, output).await?;
    if faulty.interrupted {
        output.note("Interrupted. The demo keeps nothing: run the same command to start from the beginning.");
        return Ok(ExitCode::Interrupted);
    }
    output.note(&faulty.text(output));
    output.note(&format!("\n{}", environment.canary_table().await?));
    output.note(&format!(
        "\nThe gate has stopped the rollout. No other device was sent {FAULTY_BUILD}, and the \
         canaries run {FIRST_VERSION} again."
    ));
    print_step(
        3,
        &format!("Firmware {FIXED_BUILD}, the fix"),
        "The same rollout with the fixed build: canaries first, then all devices.",
    );
    let fixed = environment.roll_out(FIXED_BUILD, output).await?;
    if fixed.interrupted {
        output.note("Interrupted. The demo keeps nothing: run the same command to start from the beginning.");
        return Ok(ExitCode::Interrupted);
    }
    output.note(&fixed.text(output));
    output.note(&format!("\n{}", environment.canary_table().await?));
    let versions = environment.versions().await?;
    print_step(4, "Firmware of the devices", "As reported by the devices:");
    let rows = versions
        .iter()
        .map(|(version, devices)| vec![version.clone(), thousands(*devices)]);
    let text = table(&["firmware", "devices"], &rows.collect::<Vec<_>>());
    let value = json!({ "stopped": faulty.summary, "done": fixed.summary, "versions": versions });
    output.result(&value, &text);
    if !output.is_json() {
        output.note(&try_next(&program()));
    }
    Ok(ExitCode::Success)
}

/// Returns the command to start this program: the name if `PATH` leads to this program, otherwise
/// the path.
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
    // The shell looks a bare name up in `PATH`.
    let below = below.map(|below| std::path::Path::new(".").join(below));
    below.unwrap_or(this).display().to_string()
}

/// Returns suggestions for after the demo. The suggested emulator is as fast as the demo's.
fn try_next(program: &str) -> String {
    format!(
        "\nNext, start an emulator that keeps running, and start a rollout in another terminal:\n  \
         {program} hub --tier S3 --units 10 --devices 10000\n\n  \
         {program} --config twincast-hub/twincast.toml plan examples/firmware.yaml\n  \
         {program} --config twincast-hub/twincast.toml run --no-wait examples/firmware.yaml\n  \
         {program} report firmware-1.4.2 --failed"
    )
}

/// Returns the connection string and the client options of the emulator.
fn connection(hub: &RunningHub) -> anyhow::Result<(ConnectionString, ClientOptions)> {
    let connection = hub.connection_string().parse();
    let connection = connection.context("the emulator's connection string is invalid")?;
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.amqp.port = Some(hub.amqp_addr().port());
    options.https.port = Some(hub.https_addr().port());
    Ok((connection, options))
}
