//! `twincast demo`: the whole story on this machine, with nothing left behind. A bad build stops at the canaries, its
//! fix reaches the fleet.

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
use crate::commands::run::{self, How, Ran};
use crate::config::{Overrides, Settings};
use crate::engine::{self, Engine};
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, Style, one_line, table, thousands};
use crate::page::Page;
use crate::signal::asked_to_stop;

const TIER: Tier = Tier::S3;
const UNITS: u32 = 10;
/// The build that does not work on real hardware.
const BAD: &str = "1.4.0";
/// Its fix.
const GOOD: &str = "1.4.1";

/// Simulated refrigerators that answer, and the canaries, which are not simulated.
fn fleet(devices: u64) -> Result<Fleet, Failure> {
    let text = format!(
        "seed: 1\n\
         groups:\n\
         - {{ count: {CANARIES}, id: 'canary-{{index}}', tags: {{ type: fridge, ring: canary }} }}\n\
         - count: {devices}\n  id: 'fridge-{{index:06}}'\n\
         \x20 tags: {{ type: fridge, ring: main, region: {{ $weighted: {{ eu-north: 40, eu-south: 25, us-east: 20, us-west: 15 }} }} }}\n\
         \x20 reported: {{ firmware: '{FIRST_VERSION}' }}\n\
         \x20 reported_after_delivery: {{ firmware: '{GOOD}' }}\n\
         \x20 behaviour:\n    latency: 50ms..400ms\n    answers: {{ after: 500ms..3s, fails: 0.2%, error: 'disk_full: 3 MB are missing' }}\n"
    );
    let fleet = Fleet::from_yaml(&text).context("the demo's fleet is refused")?;
    Ok(fleet)
}

/// A rollout of the message to all refrigerators, canaries first.
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

/// What the demo runs on.
struct Stage {
    hub: RunningHub,
    hubs: Hubs,
    client: Client,
    store: Arc<EmbeddedStore>,
    settings: Settings,
    files: FileServer,
    key: SecretKey,
    canaries: Canaries,
    /// Everything that is written; deleted at the end.
    #[expect(dead_code, reason = "it is held")]
    room: TempDir,
}

impl Stage {
    async fn set(devices: u64) -> Result<Self, Failure> {
        let room = tempfile::tempdir().context("cannot make a temporary folder")?;
        let config = HubConfig {
            tier: twincast_emulator::Tier::S3,
            units: UNITS,
            fleet: fleet(devices)?,
            ..HubConfig::default()
        };
        let hub = twincast_emulator::start(config).await;
        let hub = hub.context("cannot start the emulator")?;
        let files = FileServer::start(&[(BAD, false), (GOOD, true)]).await?;
        let (key, _) = SecretKey::new().context("cannot make a key to sign with")?;
        let canaries = Canaries::start(room.path(), &hub, &key.public()).await?;
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
            store: Arc::new(store.context("cannot make a store in memory")?),
            hub,
            settings,
            files,
            key,
            canaries,
            room,
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
    async fn roll_out(&self, version: &str, output: &Output) -> Result<Ran, Failure> {
        let message = self.files.signed(version, &self.key)?;
        let spec = rollout(version, &message)?;
        let how = How {
            again: None,
            waits: true,
            resumes: false,
        };
        let files = BTreeMap::new();
        run::take_through(self.engine(), spec, files, &self.settings, &how, output).await
    }

    /// How many devices run which version, by what they report.
    async fn versions(&self) -> Result<BTreeMap<String, u64>, Failure> {
        let by_version = "SELECT properties.reported.firmware AS version, COUNT() AS devices FROM devices \
                          GROUP BY properties.reported.firmware";
        let pages = self.client.query(by_version, 100);
        let mut pages = pages.context("cannot ask the hub who runs what")?;
        let mut versions = BTreeMap::new();
        while let Some(page) = pages
            .next_page()
            .await
            .context("cannot ask the hub who runs what")?
        {
            for row in page.items {
                let version = row["version"].as_str().unwrap_or("unknown").to_owned();
                *versions.entry(version).or_default() += row["devices"].as_u64().unwrap_or(0);
            }
        }
        Ok(versions)
    }

    /// A line for each canary: what it says of the last update, and what it runs.
    async fn what_canaries_say(&self) -> Result<String, Failure> {
        self.canaries_have_answered().await?;
        let all = "SELECT deviceId AS id, properties.reported.update AS answer, properties.reported.firmware AS runs FROM devices \
                   WHERE tags.ring = 'canary'";
        let pages = self
            .client
            .query(all, 100)
            .context("cannot ask for the canaries")?;
        let mut pages = pages;
        let mut rows = Vec::new();
        while let Some(page) = pages
            .next_page()
            .await
            .context("cannot ask for the canaries")?
        {
            rows.extend(page.items.iter().map(|row| {
                let text = |value: &Value| one_line(value.as_str().unwrap_or("-"));
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
        Ok(table(&["device", "answers", "because", "runs"], &rows))
    }

    /// Waits until each canary has answered the last update for good, for a few seconds at the most.
    async fn canaries_have_answered(&self) -> Result<(), Failure> {
        let condition = "tags.ring = 'canary' AND properties.reported.update.state IN ['applied', 'rolled_back', 'failed', 'refused']";
        for _ in 0..100 {
            let count = self.client.count(Some(condition)).await;
            if count.context("cannot ask for the canaries")? >= CANARIES as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn clear(self) {
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
        // Whoever is connected would complain.
        drop((hubs, client));
        hub.shutdown().await;
    }
}

pub(crate) async fn demo(args: &DemoArgs, output: &Output) -> Result<ExitCode, Failure> {
    let stage = Stage::set(args.devices).await?;
    let page = match args.page {
        true => Some(Page::open(&stage.engine(), &stage.settings).await?),
        false => None,
    };
    let code = play(args, &stage, page.as_ref(), output).await;
    if let (Some(page), Ok(ExitCode::Success)) = (page, &code) {
        output.note(&format!(
            "\nThe live page stays at {} until Ctrl-C.",
            page.url()
        ));
        asked_to_stop().await;
        page.close().await;
    }
    stage.clear().await;
    code
}

async fn play(
    args: &DemoArgs,
    stage: &Stage,
    page: Option<&Page>,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let act = |number: u32, title: &str, text: &str| {
        let title = output.paint_note(Style::Bold, &format!("{number}  {title}"));
        output.note(&format!("\n{title}\n{text}\n"));
    };
    act(
        1,
        "The fleet",
        &format!(
            "An emulated IoT Hub ({TIER}, {UNITS} units) with {} simulated refrigerators, and {CANARIES} canaries:\n\
             device agents in processes of their own, connected over MQTT. All run firmware {FIRST_VERSION}.",
            thousands(args.devices)
        ),
    );
    if let Some(page) = page {
        output.note(&format!("Watch it at {}", page.url()));
    }
    act(
        2,
        &format!("Firmware {BAD}, which does not work"),
        "The pipeline has built and signed it. Nobody knows yet that its health check fails on real\n\
         hardware. The rollout begins with the canaries, and goes on if at least 80 % of them say that\n\
         they have applied it.",
    );
    let bad = stage.roll_out(BAD, output).await?;
    if bad.interrupted {
        output.note("Interrupted. Nothing of the demo is kept: run again, it begins anew.");
        return Ok(ExitCode::Interrupted);
    }
    output.note(&bad.text(output));
    output.note(&format!("\n{}", stage.what_canaries_say().await?));
    output.note(&format!(
        "\nThe gate has stopped the rollout. Nobody else was sent {BAD}, and the canaries are back on {FIRST_VERSION}."
    ));
    act(
        3,
        &format!("Firmware {GOOD}, the fix"),
        "The same again: canaries first, then everybody.",
    );
    let good = stage.roll_out(GOOD, output).await?;
    if good.interrupted {
        output.note("Interrupted. Nothing of the demo is kept: run again, it begins anew.");
        return Ok(ExitCode::Interrupted);
    }
    output.note(&good.text(output));
    output.note(&format!("\n{}", stage.what_canaries_say().await?));
    let versions = stage.versions().await?;
    act(4, "Who runs what", "As the devices themselves report it:");
    let rows = versions
        .iter()
        .map(|(version, devices)| vec![version.clone(), thousands(*devices)]);
    let text = table(&["firmware", "devices"], &rows.collect::<Vec<_>>());
    let value = json!({ "stopped": bad.summary, "done": good.summary, "versions": versions });
    output.result(&value, &text);
    if !output.is_json() {
        output.note(&try_next(&program()));
    }
    Ok(ExitCode::Success)
}

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

/// The emulator as a client reaches it.
fn connection(hub: &RunningHub) -> anyhow::Result<(ConnectionString, ClientOptions)> {
    let connection = hub.connection_string().parse();
    let connection = connection.context("the emulator's connection string is refused")?;
    let mut options = ClientOptions::default();
    options.roots = Roots::Only(hub.ca_pem().to_owned());
    options.amqp.port = Some(hub.amqp_addr().port());
    options.https.port = Some(hub.https_addr().port());
    Ok((connection, options))
}
