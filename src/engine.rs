//! Puts the local engine together: hubs, store, queue, worker and driver in one process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use twincast_core::ids::{HubHost, HubName};
use twincast_core::ports::{Clock, HubTrouble, Roster, Store, StoreError};
use twincast_core::spec::RolloutSpec;
use twincast_core::trace::Tracer;
use twincast_embedded::{EmbeddedStore, InProcessQueue, OpenError, SystemClock};
use twincast_hub_adapter::IotHub;
use twincast_iothub::{ClientOptions, Credentials, HubAddress, Roots};
use twincast_orchestrator::driver::{DriveError, Driver, DriverConfig, Repairs};
use twincast_orchestrator::intake::Intake;
use twincast_orchestrator::news::News;
use twincast_orchestrator::planner::{self, PlanError, PlanProgress};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_worker::{Worker, WorkerConfig, WorkerError, WorkerHub};

use crate::config::{HubSettings, Settings, WorkerSettings};
use crate::credentials;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;

/// How long the store of a local engine may be silent: it is in the same process.
const STORE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a message may wait in the hub's client.
const LEAVE_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);
/// Dispatches that a hub's queue may hold: more than a driver ever releases.
const QUEUE_LIMIT: usize = 1024;

/// The parts of a local engine.
pub(crate) struct Engine {
    pub(crate) store: Arc<EmbeddedStore>,
    pub(crate) driver: Driver,
    pub(crate) worker: Worker,
}

impl Engine {
    /// Puts an engine together for the hubs of one rollout.
    pub(crate) fn new(
        store: Arc<EmbeddedStore>,
        hubs: Hubs,
        settings: &WorkerSettings,
        base: PathBuf,
        tracer: &Tracer,
    ) -> Self {
        let queue = Arc::new(InProcessQueue::new(QUEUE_LIMIT));
        let config = WorkerConfig {
            slots: settings.slots,
            window: settings.window,
            give_up: Some(STORE_PATIENCE),
            ..WorkerConfig::default()
        };
        let worker_hubs = hubs
            .iter()
            .map(|(name, handle)| WorkerHub {
                name: name.clone(),
                host: handle.host.clone(),
                hub: Arc::clone(&handle.hub),
                limits: handle.limits,
            })
            .collect();
        let worker = Worker::new(
            config,
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&queue) as _,
            worker_hubs,
            clock(),
        )
        .traced_by(tracer.clone());
        let driver = Driver {
            queue,
            hubs,
            base,
            tracer: tracer.clone(),
            ..idle_driver(Arc::clone(&store))
        };
        Self {
            store,
            driver,
            worker,
        }
    }

    /// What does commands on the rollouts of its store.
    pub(crate) fn intake(&self, settings: &Settings) -> Intake {
        Intake {
            clock: Arc::clone(&self.driver.clock),
            tracer: self.driver.tracer.clone(),
            ..intake_of(Arc::clone(&self.store) as _, None, settings)
        }
    }
}

/// What does commands on the rollouts of a store.
pub(crate) fn intake_of(
    store: Arc<dyn Store>,
    roster: Option<Arc<dyn Roster>>,
    settings: &Settings,
) -> Intake {
    Intake {
        store,
        roster,
        hubs: settings.hubs.keys().cloned().collect(),
        measures: settings.prometheus.url.is_some(),
        clock: clock(),
        tracer: Tracer::default(),
    }
}

/// A driver for what needs no hub and no worker.
pub(crate) fn idle_driver(store: Arc<EmbeddedStore>) -> Driver {
    Driver {
        store: store as Arc<dyn Store>,
        queue: Arc::new(InProcessQueue::new(QUEUE_LIMIT)),
        hubs: Hubs::default(),
        metric_source: None,
        clock: clock(),
        config: DriverConfig {
            leave_at_approval: true,
            ..DriverConfig::default()
        },
        base: PathBuf::new(),
        planning: PlanProgress::default(),
        news: News::Asked,
        broker: Arc::default(),
        repairs: Repairs::default(),
        tracer: Tracer::default(),
    }
}

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::start())
}

/// Why a state folder cannot be used, and what to do.
pub(crate) fn open_failure(error: OpenError) -> Failure {
    let hint = match &error {
        OpenError::InUse { .. } => {
            "wait for the other twincast to end, or give this one another folder with --state"
        }
        OpenError::NotReadable { .. } => {
            "ask its owner for the right to read it, or give another folder with --state"
        }
        OpenError::NotAFolder { .. } | OpenError::NotWritable { .. } => {
            "give a folder that can be written to with --state"
        }
        OpenError::NoRoom { .. } => "make room on the disk, or give another folder with --state",
        OpenError::TooNew { .. } => {
            "install the newest twincast, or give another folder with --state"
        }
        OpenError::Damaged { .. } => {
            "restore the folder from a backup, or give another one with --state"
        }
        OpenError::System { .. } => "give another folder with --state",
    };
    Failure::new(ExitCode::State, error).hint(hint)
}

/// All configured hubs, ready to be connected to. Nothing is dialled yet.
/// With a store, links are opened within the budget that all processes share in it.
pub(crate) fn all_hubs(
    settings: &Settings,
    budget: Option<&Arc<dyn Store>>,
) -> Result<Hubs, Failure> {
    hubs_where(settings, budget, |_| true)
}

fn hubs_where(
    settings: &Settings,
    budget: Option<&Arc<dyn Store>>,
    wanted: impl Fn(&HubName) -> bool,
) -> Result<Hubs, Failure> {
    if settings.hubs.is_empty() {
        return Err(Failure::message(ExitCode::Refused, "no hub is configured").hint(
            "give a hub's connection string: put it into a file, and set TWINCAST__HUBS__MAIN__CONNECTION_STRING_FILE to \
             its path; or write a configuration file with [hubs.main] and give it with --config; or start an emulator \
             with `twincast hub`",
        ));
    }
    let hubs = settings.hubs.iter().filter(|(name, _)| wanted(name));
    let hubs = hubs
        .map(|(name, hub)| Ok((name.clone(), connectable(name, hub, settings, budget)?)))
        .collect::<Result<Hubs, Failure>>()?;
    refuse_two_names(&hubs)?;
    Ok(hubs)
}

/// A hub with two names would be sent twice its quota, and devices could be sent a message by each name.
fn refuse_two_names(hubs: &Hubs) -> Result<(), Failure> {
    let mut names: BTreeMap<&HubHost, &HubName> = BTreeMap::new();
    for (name, HubHandle { host, .. }) in hubs {
        if let Some(other) = names.insert(host, name) {
            let message = format!("hubs {other} and {name} are the same hub, {host}");
            let failure = Failure::message(ExitCode::Refused, message);
            return Err(failure.hint("configure each hub once"));
        }
    }
    Ok(())
}

/// The hubs that a rollout uses, likewise.
pub(crate) fn hubs_of(spec: &RolloutSpec, settings: &Settings) -> Result<Hubs, Failure> {
    let named = &spec.target.hubs;
    let hubs = hubs_where(settings, None, |hub| {
        named.is_empty() || named.contains(hub)
    })?;
    // Names a hub of the spec that is not configured.
    planner::hubs_of(spec, &hubs).map_err(|_| {
        let all: Vec<_> = settings.hubs.keys().map(HubName::as_str).collect();
        let unknown: Vec<_> = spec
            .target
            .hubs
            .iter()
            .filter(|hub| !settings.hubs.contains_key(*hub))
            .map(HubName::as_str)
            .collect();
        Failure::message(
            ExitCode::Refused,
            format!(
                "target.hubs names {}, which is not configured; configured are: {}",
                unknown.join(", "),
                all.join(", ")
            ),
        )
    })?;
    Ok(hubs)
}

/// Says which hubs' quotas are guesses.
pub(crate) fn note_guesses(hubs: &Hubs, settings: &Settings, output: &Output) {
    for name in hubs.keys() {
        if let Some(guess) = settings.hubs[name].guess() {
            output.note(&format!("Hub {name}: {guess}"));
        }
    }
}

fn connectable(
    name: &HubName,
    hub: &HubSettings,
    settings: &Settings,
    budget: Option<&Arc<dyn Store>>,
) -> Result<HubHandle, Failure> {
    let (address, credentials, mut options) = reach(name, hub, settings)?;
    options.before_link =
        budget.map(|store| twincast_hub_adapter::link_budget(Arc::clone(store), name.clone()));
    let handle = handle(
        &address,
        credentials,
        options,
        hub.limits(),
        &settings.worker,
    );
    handle.map_err(|error| unusable(name, error))
}

fn unusable(name: &HubName, error: anyhow::Error) -> Failure {
    let error = error.context(format!("hub {name} cannot be used"));
    Failure::new(ExitCode::Refused, error)
}

/// How a configured hub is reached. Files are read, and nothing is dialled.
pub(crate) fn reach(
    name: &HubName,
    hub: &HubSettings,
    settings: &Settings,
) -> Result<(HubAddress, Credentials, ClientOptions), Failure> {
    let mut options = ClientOptions::default();
    if let Some(path) = &hub.ca_file {
        options.roots = Roots::SystemAndFile(settings.base.join(path));
    }
    options.transport = hub.transport.into();
    options.proxy = hub.proxy();
    options.amqp.port = hub.amqp_port;
    options.https.port = hub.https_port;
    if let Some(address) = hub.address {
        options.amqp.host = Some(address.to_string());
        options.https.host = Some(address.to_string());
    }
    if let Some(timeout) = hub.send_timeout {
        options.send_timeout = timeout.0;
        // A connection without a sign of life is to be given up before its sends are.
        options.stall_timeout = options.stall_timeout.min(timeout.0 / 2);
    }
    let shown = credentials::of_hub(name, hub, &settings.base, &options);
    let (address, credentials) = shown.map_err(|error| unusable(name, error))?;
    Ok((address, credentials, options))
}

/// A hub that is reached with these options.
pub(crate) fn handle(
    address: &HubAddress,
    credentials: Credentials,
    mut options: ClientOptions,
    limits: twincast_core::hub::HubLimits,
    worker: &WorkerSettings,
) -> Result<HubHandle, anyhow::Error> {
    // A message that left later would come after a pause, and on top of the permits of that time.
    options.leave_timeout = LEAVE_TIMEOUT;
    // The worker bounds what is under way; the client must not bind below it.
    options.max_in_flight =
        (worker.slots * worker.window).clamp(1, twincast_iothub::LARGEST_MAX_IN_FLIGHT);
    let hub = IotHub::new(address, credentials, options, limits.queries_per_minute)?;
    Ok(HubHandle {
        host: host_of(address)?,
        hub: Arc::new(hub),
        limits,
    })
}

/// What identifies a hub.
fn host_of(address: &HubAddress) -> Result<HubHost, anyhow::Error> {
    let port = address.port().map(|port| format!(":{port}"));
    let host = format!("{}{}", address.host_name(), port.unwrap_or_default());
    Ok(HubHost::new(host)?)
}

/// Binds the hubs' names to the hubs in the store.
///
/// # Errors
/// A refusal when the store knows another hub by one of the names.
pub(crate) async fn bind_hubs(store: &dyn Store, hubs: &Hubs) -> Result<(), Failure> {
    for (name, handle) in hubs {
        let bound = store
            .bind_hub(name, &handle.host)
            .await
            .map_err(store_failure)?;
        if bound != handle.host {
            let configured = &handle.host;
            let message = format!(
                "hub {name} is {configured} in the configuration, and {bound} for all that is stored under that name"
            );
            return Err(Failure::message(ExitCode::Refused, message).hint(format!(
                "configure {bound} as {name} again; or give {configured} another name; or keep its rollouts apart, with \
                 another state folder or redis.prefix"
            )));
        }
    }
    Ok(())
}

/// One hub under a name.
pub(crate) fn single(name: &str, handle: HubHandle) -> Hubs {
    BTreeMap::from([(HubName::new(name).expect("a name of ours"), handle)])
}

/// What a driver's failure means for the user.
pub(crate) fn drive_failure(error: DriveError) -> Failure {
    match &error {
        DriveError::Plan { source, .. } => {
            let (code, hint) = plan_trouble(source);
            with_hint(Failure::new(code, error), hint)
        }
        DriveError::Store { source, .. } => {
            let hint = store_hint(source);
            with_hint(Failure::new(ExitCode::State, error), hint)
        }
        DriveError::Illegal { .. } | DriveError::Unknown(_) => {
            Failure::new(ExitCode::Unexpected, error)
        }
    }
}

/// What a failure to plan means for the user.
pub(crate) fn plan_failure(error: PlanError) -> Failure {
    let (code, hint) = plan_trouble(&error);
    with_hint(Failure::new(code, error), hint)
}

/// A failure with what to do about it, if that is known.
pub(crate) fn with_hint(failure: Failure, hint: Option<&str>) -> Failure {
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn plan_trouble(error: &PlanError) -> (ExitCode, Option<&'static str>) {
    match error {
        PlanError::Hub { source, .. } => hub_trouble(source.trouble),
        _ => (ExitCode::Refused, None),
    }
}

/// The exit code of a hub's trouble, and what to do about it.
pub(crate) fn hub_trouble(trouble: HubTrouble) -> (ExitCode, Option<&'static str>) {
    match trouble {
        HubTrouble::Unreachable => (
            ExitCode::HubUnreachable,
            Some(
                "check the HostName of the connection string, the network, and that outgoing ports 443 and 5671 are open; then run the same command again",
            ),
        ),
        HubTrouble::Certificate => (
            ExitCode::HubUnreachable,
            Some(
                "give the certificate of the authority that signed the hub's (or your proxy's) certificate as ca_file",
            ),
        ),
        HubTrouble::CertificateName => (
            ExitCode::HubUnreachable,
            Some(
                "use the host name that the hub's (or your proxy's) certificate is for: check the HostName of the connection string",
            ),
        ),
        HubTrouble::CertificateDates => (
            ExitCode::HubUnreachable,
            Some(
                "check this machine's clock, and until when the hub's (or your proxy's) certificate is valid",
            ),
        ),
        HubTrouble::Tls => (
            ExitCode::HubUnreachable,
            Some(
                "check that what answers there is the hub and speaks TLS 1.2 or 1.3, and whether a proxy is in between",
            ),
        ),
        HubTrouble::Unauthorized => (
            ExitCode::HubRefused,
            Some(
                "check the key in the connection string and that its policy has \"service connect\", or the identity's role at the hub; and this machine's clock",
            ),
        ),
        HubTrouble::QuotaUsedUp | HubTrouble::Shut => (
            ExitCode::HubRefused,
            Some(
                "look at the hub in the portal: its daily quota may be used up, or it is suspended",
            ),
        ),
        HubTrouble::Clock => (
            ExitCode::HubRefused,
            Some("set this machine's clock; a message may live for two days at the most"),
        ),
        HubTrouble::Throttled => (
            ExitCode::HubRefused,
            Some("other applications use the hub's quota up; lower `share`, or try later"),
        ),
        HubTrouble::BadQuery => (
            ExitCode::Refused,
            Some("check target.where: the hub does not understand it"),
        ),
        HubTrouble::Other => (ExitCode::Unexpected, None),
    }
}

/// What a worker's failure means for the user.
pub(crate) fn worker_failure(error: WorkerError) -> Failure {
    match &error {
        WorkerError::Store { source, .. } => {
            let hint = store_hint(source);
            with_hint(Failure::new(ExitCode::State, error), hint)
        }
        WorkerError::Queue { .. } | WorkerError::Panicked(_) => {
            Failure::new(ExitCode::Unexpected, error)
        }
    }
}

/// What a failure of the store means for the user. It may have come through what reads from the store.
pub(crate) fn store_failure(error: impl Into<anyhow::Error>) -> Failure {
    let error = error.into();
    let of_store = error.chain().find_map(|it| it.downcast_ref());
    let hint = of_store.and_then(store_hint);
    with_hint(Failure::new(ExitCode::State, error), hint)
}

fn store_hint(error: &StoreError) -> Option<&'static str> {
    match error {
        StoreError::NotWritable { .. } => Some(
            "make room on the disk of the state folder (or in Redis's memory), or make it writable; then run the same command again, it goes on where it left off",
        ),
        StoreError::Newer { .. } => Some("use a twincast of that release, or a newer one"),
        StoreError::Corrupt { .. } => Some(
            "the state was changed by something else or the disk is failing; restore it from a backup",
        ),
        _ => None,
    }
}
