//! Assembles the local engine: hubs, store, queue, worker and driver in one process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use twincast_core::ids::{HubHost, HubName};
use twincast_core::ports::{Clock, HubTrouble, RolloutRegistry, Store, StoreError};
use twincast_core::spec::RolloutSpec;
use twincast_core::trace::Tracer;
use twincast_embedded::{EmbeddedStore, InProcessQueue, OpenError, SystemClock};
use twincast_hub_adapter::IotHub;
use twincast_iothub::{ClientOptions, Credentials, HubAddress, Roots};
use twincast_orchestrator::changes::ChangeSource;
use twincast_orchestrator::command_executor::CommandExecutor;
use twincast_orchestrator::driver::{DriveError, Driver, DriverConfig, Repairs};
use twincast_orchestrator::planner::{self, PlanError, PlanProgress};
use twincast_orchestrator::{HubHandle, Hubs};
use twincast_worker::{Worker, WorkerConfig, WorkerError, WorkerHub};

use crate::config::{HubSettings, Settings, WorkerSettings};
use crate::credentials;
use crate::failure::{ExitCode, Failure};
use crate::output::Output;

/// Time limit for silence of the store in a local engine: the store is in the same process.
const STORE_GIVE_UP_AFTER: std::time::Duration = std::time::Duration::from_secs(10);
/// Time limit for a message to wait in the hub's client.
const LEAVE_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);
/// The capacity of a hub's queue: more dispatches than a driver ever releases.
const QUEUE_LIMIT: usize = 1024;

/// The parts of a local engine.
pub(crate) struct Engine {
    pub(crate) store: Arc<EmbeddedStore>,
    pub(crate) driver: Driver,
    pub(crate) worker: Worker,
}

impl Engine {
    /// Assembles an engine for the hubs of a rollout.
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
            give_up: Some(STORE_GIVE_UP_AFTER),
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

    /// Returns the executor of commands for the engine's store.
    pub(crate) fn command_executor(&self, settings: &Settings) -> CommandExecutor {
        CommandExecutor {
            clock: Arc::clone(&self.driver.clock),
            tracer: self.driver.tracer.clone(),
            ..command_executor(Arc::clone(&self.store) as _, None, settings)
        }
    }
}

/// Returns the executor of commands for a store.
pub(crate) fn command_executor(
    store: Arc<dyn Store>,
    registry: Option<Arc<dyn RolloutRegistry>>,
    settings: &Settings,
) -> CommandExecutor {
    CommandExecutor {
        store,
        registry,
        hubs: settings.hubs.keys().cloned().collect(),
        has_metric_source: settings.prometheus.url.is_some(),
        clock: clock(),
        tracer: Tracer::default(),
    }
}

/// Returns a driver for work without a hub and a worker.
pub(crate) fn idle_driver(store: Arc<EmbeddedStore>) -> Driver {
    Driver {
        store: store as Arc<dyn Store>,
        queue: Arc::new(InProcessQueue::new(QUEUE_LIMIT)),
        hubs: Hubs::default(),
        metric_source: None,
        clock: clock(),
        config: DriverConfig {
            stop_at_approval: true,
            ..DriverConfig::default()
        },
        base: PathBuf::new(),
        planning: PlanProgress::default(),
        changes: ChangeSource::Polled,
        broker: Arc::default(),
        repairs: Repairs::default(),
        tracer: Tracer::default(),
    }
}

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::start())
}

/// Converts an error of opening a state folder into a failure for the user.
pub(crate) fn open_failure(error: OpenError) -> Failure {
    let hint = match &error {
        OpenError::InUse { .. } => {
            "wait for the other twincast process to end, or choose another folder with --state"
        }
        OpenError::NotReadable { .. } => {
            "ask the owner for read permission, or choose another folder with --state"
        }
        OpenError::NotAFolder { .. } | OpenError::NotWritable { .. } => {
            "choose a writable folder with --state"
        }
        OpenError::NoRoom { .. } => "free disk space, or choose another folder with --state",
        OpenError::TooNew { .. } => {
            "install the newest release of twincast, or choose another folder with --state"
        }
        OpenError::Damaged { .. } => {
            "restore the folder from a backup, or choose another folder with --state"
        }
        OpenError::System { .. } => "choose another folder with --state",
    };
    Failure::new(ExitCode::State, error).hint(hint)
}

/// Returns all configured hubs. Opens no connection. With a store, links are opened within the
/// budget shared by all processes of the store.
pub(crate) fn all_hubs(
    settings: &Settings,
    budget: Option<&Arc<dyn Store>>,
) -> Result<Hubs, Failure> {
    hubs_where(settings, budget, |_| true)
}

fn hubs_where(
    settings: &Settings,
    budget: Option<&Arc<dyn Store>>,
    is_included: impl Fn(&HubName) -> bool,
) -> Result<Hubs, Failure> {
    if settings.hubs.is_empty() {
        return Err(
            Failure::message(ExitCode::Refused, "no hub is configured").hint(
                "write a hub's connection string into a file, and set \
             TWINCAST__HUBS__MAIN__CONNECTION_STRING_FILE to the file's path; or pass a \
             configuration file with [hubs.main] by --config; or start an emulator with `twincast \
             hub`",
            ),
        );
    }
    let hubs = settings.hubs.iter().filter(|(name, _)| is_included(name));
    let hubs = hubs
        .map(|(name, hub)| Ok((name.clone(), connectable(name, hub, settings, budget)?)))
        .collect::<Result<Hubs, Failure>>()?;
    refuse_two_names(&hubs)?;
    Ok(hubs)
}

/// Refuses a hub with two names: the hub would receive twice its quota, and a device could receive
/// a message per name.
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

/// Returns the hubs used by a rollout. Opens no connection.
pub(crate) fn hubs_of(spec: &RolloutSpec, settings: &Settings) -> Result<Hubs, Failure> {
    let named = &spec.target.hubs;
    let hubs = hubs_where(settings, None, |hub| {
        named.is_empty() || named.contains(hub)
    })?;
    // Fails if the spec names a hub missing from the configuration.
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
                "target.hubs has unconfigured hubs: {}; configured hubs: {}",
                unknown.join(", "),
                all.join(", ")
            ),
        )
    })?;
    Ok(hubs)
}

/// Prints a note for each hub with assumed limits.
pub(crate) fn note_assumed_limits(hubs: &Hubs, settings: &Settings, output: &Output) {
    for name in hubs.keys() {
        if let Some(assumed) = settings.hubs[name].assumed_limits() {
            output.note(&format!("Hub {name}: {assumed}"));
        }
    }
}

fn connectable(
    name: &HubName,
    hub: &HubSettings,
    settings: &Settings,
    budget: Option<&Arc<dyn Store>>,
) -> Result<HubHandle, Failure> {
    let (address, credentials, mut options) = connection_parameters(name, hub, settings)?;
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

/// Returns the address, credentials and options of a configured hub. Reads files; opens no
/// connection.
pub(crate) fn connection_parameters(
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
        // Give a silent connection up before the sends on the connection time out.
        options.stall_timeout = options.stall_timeout.min(timeout.0 / 2);
    }
    let shown = credentials::of_hub(name, hub, &settings.base, &options);
    let (address, credentials) = shown.map_err(|error| unusable(name, error))?;
    Ok((address, credentials, options))
}

/// Returns a hub reached with the given options.
pub(crate) fn handle(
    address: &HubAddress,
    credentials: Credentials,
    mut options: ClientOptions,
    limits: twincast_core::hub::HubLimits,
    worker: &WorkerSettings,
) -> Result<HubHandle, anyhow::Error> {
    // A message leaving later would be sent after a pause, and in addition to the permits of the
    // later time.
    options.leave_timeout = LEAVE_TIMEOUT;
    // The worker limits the sends in flight; the client's limit must not be lower.
    options.max_in_flight =
        (worker.slots * worker.window).clamp(1, twincast_iothub::MAX_IN_FLIGHT_LIMIT);
    let hub = IotHub::new(address, credentials, options, limits.queries_per_minute)?;
    Ok(HubHandle {
        host: host_of(address)?,
        hub: Arc::new(hub),
        limits,
    })
}

/// Returns the host name identifying a hub, with the port if the address has a port.
fn host_of(address: &HubAddress) -> Result<HubHost, anyhow::Error> {
    let port = address.port().map(|port| format!(":{port}"));
    let host = format!("{}{}", address.host_name(), port.unwrap_or_default());
    Ok(HubHost::new(host)?)
}

/// Binds the hubs' names to the hubs in the store.
///
/// # Errors
/// The store knows another hub under a configured name.
pub(crate) async fn bind_hubs(store: &dyn Store, hubs: &Hubs) -> Result<(), Failure> {
    for (name, handle) in hubs {
        let bound = store
            .bind_hub(name, &handle.host)
            .await
            .map_err(store_failure)?;
        if bound != handle.host {
            let configured = &handle.host;
            let message = format!(
                "hub {name} is {configured} in the configuration, but {bound} in the stored data"
            );
            return Err(Failure::message(ExitCode::Refused, message).hint(format!(
                "configure {bound} as {name} again; or configure {configured} under another name; \
                 or use another state folder or redis.prefix"
            )));
        }
    }
    Ok(())
}

/// Returns a single hub under a name.
pub(crate) fn single(name: &str, handle: HubHandle) -> Hubs {
    BTreeMap::from([(HubName::new(name).expect("a name of ours"), handle)])
}

/// Converts a driver's error into a failure for the user.
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

/// Converts an error of planning into a failure for the user.
pub(crate) fn plan_failure(error: PlanError) -> Failure {
    let (code, hint) = plan_trouble(&error);
    with_hint(Failure::new(code, error), hint)
}

/// Adds a hint to a failure, if present.
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

/// Returns the exit code of a hub's trouble, and a hint for the user.
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
                "set ca_file to the certificate of the authority that signed the hub's (or your \
                 proxy's) certificate",
            ),
        ),
        HubTrouble::CertificateName => (
            ExitCode::HubUnreachable,
            Some(
                "check the HostName of the connection string: the hub's (or your proxy's) \
                 certificate is for another host name",
            ),
        ),
        HubTrouble::CertificateDates => (
            ExitCode::HubUnreachable,
            Some(
                "check this machine's clock, and the validity period of the hub's (or your \
                 proxy's) certificate",
            ),
        ),
        HubTrouble::Tls => (
            ExitCode::HubUnreachable,
            Some(
                "check that the server at this address is the hub and speaks TLS 1.2 or 1.3, and \
                 whether a proxy is in between",
            ),
        ),
        HubTrouble::Unauthorized => (
            ExitCode::HubRefused,
            Some(
                "check the key in the connection string and the right \"service connect\" of its \
                 policy, or the identity's role on the hub; check this machine's clock",
            ),
        ),
        HubTrouble::QuotaUsedUp | HubTrouble::Unavailable => (
            ExitCode::HubRefused,
            Some(
                "check the hub in the Azure portal: the daily quota may be used up, or the hub may \
                 be suspended",
            ),
        ),
        HubTrouble::Clock => (
            ExitCode::HubRefused,
            Some("set this machine's clock; the longest ttl of a message is two days"),
        ),
        HubTrouble::Throttled => (
            ExitCode::HubRefused,
            Some("other applications use up the hub's quota: lower `share`, or retry later"),
        ),
        HubTrouble::BadQuery => (
            ExitCode::Refused,
            Some("check target.where: the hub does not understand the condition"),
        ),
        HubTrouble::Other => (ExitCode::Unexpected, None),
    }
}

/// Converts a worker's error into a failure for the user.
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

/// Converts a store's error into a failure for the user. The store's error may be a cause of the
/// given error.
pub(crate) fn store_failure(error: impl Into<anyhow::Error>) -> Failure {
    let error = error.into();
    let of_store = error.chain().find_map(|it| it.downcast_ref());
    let hint = of_store.and_then(store_hint);
    with_hint(Failure::new(ExitCode::State, error), hint)
}

fn store_hint(error: &StoreError) -> Option<&'static str> {
    match error {
        StoreError::NotWritable { .. } => Some(
            "free disk space for the state folder (or memory in Redis), or make the store \
             writable; then run the same command again to continue",
        ),
        StoreError::Newer { .. } => Some("use that release of twincast, or a newer release"),
        StoreError::Corrupt { .. } => Some(
            "restore the state from a backup: another program has changed the state, or the disk \
             is failing",
        ),
        _ => None,
    }
}
