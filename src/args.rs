//! The command line's grammar.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use twincast_core::spec::Span;

use crate::exit::ExitCode;

/// Rolls a cloud-to-device message out to a fleet of devices behind Azure IoT Hub.
#[derive(Debug, Parser)]
#[command(name = "twincast", version, about, after_help = ExitCode::HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// A configuration file (TOML or YAML).
    #[arg(long, global = true, value_name = "FILE", env = "TWINCAST_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// The folder where rollouts are kept. Default: twincast-state.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// The server whose HTTP API is asked, with the token that TWINCAST_TOKEN has.
    #[arg(long, global = true, value_name = "URL", env = "TWINCAST_SERVER")]
    pub(crate) server: Option<String>,

    /// Results as one JSON object on standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// What to log to standard error: warn, info, debug, or a filter like twincast=debug.
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// Shows the configuration that is in force, without secrets, and ends.
    #[arg(long, global = true)]
    pub(crate) print_config: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try everything that is configured: hubs, RabbitMQ, Redis, Prometheus.
    ///
    /// Says for each what works (name, port, TLS, identity, roles, quota, clock), and what to do. Sends nothing.
    Check,
    /// Roll a message out from this machine; run it again to go on after an interruption.
    Run(RunArgs),
    /// Show what a rollout would do, without sending anything.
    Plan(PlanArgs),
    /// Check a rollout's spec and its files.
    Validate(ValidateArgs),
    /// Show what became of each device.
    Report(ReportArgs),
    /// Show where a device is in a rollout, why, and what it waits for.
    Explain(ExplainArgs),
    /// Show the hubs: their quotas, what may be sent now, and what waits for it.
    Hubs,
    /// Run an IoT Hub emulator that the official SDKs accept.
    Hub(HubArgs),
    /// See it all at work: canaries stop a bad build, and its fix reaches an emulated fleet.
    Demo(DemoArgs),
    /// Print the JSON Schema of a rollout's spec.
    Schema,
    /// Make a token for the HTTP API.
    Token(TokenArgs),
    /// Run the device agent: take signed updates, install them, say what became of them.
    ///
    /// --config names its own configuration (TOML, docs/devices.md).
    Agent,
    /// Sign updates for device agents.
    Sign(SignArgs),
    /// Print what makes a shell complete this command line.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder.
    Man {
        /// The folder; it is made if it is not there.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Plan and drive rollouts that arrive on the command queue (RabbitMQ and Redis).
    Orchestrator,
    /// Send to the devices of batches that orchestrators release (RabbitMQ and Redis).
    Worker,
    /// Put a rollout on the command queue; the same one again changes nothing.
    Submit(SubmitArgs),
    /// Show all rollouts, or one.
    Status(StatusArgs),
    /// Watch a rollout until it ends; the exit code says how.
    Watch(WatchArgs),
    /// Send nothing more of a rollout for now.
    Pause(ChangeArgs),
    /// Let a paused rollout go on.
    Resume(ChangeArgs),
    /// End a rollout; what was not sent is skipped.
    Abort(ChangeArgs),
    /// Remove a rollout that has ended; its name is free then.
    Delete(DeleteArgs),
    /// Say yes to a stage's gate.
    Approve(ApproveArgs),
    /// Say no to a stage's gate: the rollout is paused or aborted, as the gate says.
    Reject(ApproveArgs),
    /// Take a stage's gate for passed, whatever it says, and go on.
    Promote(PromoteArgs),
    /// Send to devices again that failed; a rollout that had ended goes on.
    Retry(RetryArgs),
    /// Send nothing of any rollout, and start none, until resume-all.
    StopAll(AllArgs),
    /// Let all rollouts go on that stop-all has stopped.
    ResumeAll(AllArgs),
    /// List, show, replay or discard messages that could not be used.
    DeadLetters(DeadLettersArgs),
}

impl Command {
    /// The name of a command that a server cannot be asked for: it does the work itself.
    pub(crate) fn only_here(&self) -> Option<&'static str> {
        match self {
            Self::Run(_) => Some("run"),
            Self::Orchestrator => Some("orchestrator"),
            Self::Worker => Some("worker"),
            _ => None,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SubmitArgs {
    /// The rollout's spec (YAML or JSON); - for standard input.
    pub(crate) spec: PathBuf,

    /// Wait until the rollout ends; the exit code says how it did.
    #[arg(long)]
    pub(crate) wait: bool,

    #[command(flatten)]
    pub(crate) who: Who,
}

/// Who asks and why, for the record.
#[derive(Debug, ClapArgs)]
pub(crate) struct Who {
    /// Who asks. Default: the user of this machine. A server takes the name of the token.
    #[arg(long, value_name = "NAME", env = "TWINCAST_BY")]
    pub(crate) by: Option<String>,

    /// How long to wait for an orchestrator's answer.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// The rollout's name; all if there is none.
    pub(crate) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WatchArgs {
    /// The rollout's name.
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ChangeArgs {
    /// The rollout's name.
    pub(crate) name: String,

    /// Why, for people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,

    #[command(flatten)]
    pub(crate) who: Who,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,

    /// Write the rollout and what became of each device to this new file first, as JSON lines: the rollout in the first
    /// line, then one device a line, as in `report --format jsonl`.
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ApproveArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,

    /// The stage that is meant. Default: the one that the rollout is at.
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PromoteArgs {
    /// The rollout's name.
    pub(crate) name: String,

    /// The stage whose gate is overridden.
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: String,

    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,

    #[command(flatten)]
    pub(crate) who: Who,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,

    /// Only devices with one of these outcomes: rejected, expired, enqueued ... Default: all that failed.
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',')]
    pub(crate) outcome: Vec<String>,

    /// Only devices of this stage.
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AllArgs {
    /// Why, for people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,

    #[command(flatten)]
    pub(crate) who: Who,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    pub(crate) action: Option<DeadLettersAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersAction {
    /// List them, oldest first (the default).
    List,
    /// Show one, whole.
    Show {
        /// Its id, as the list has it.
        id: String,
    },
    /// Put one, or all, back on the queue that it came from.
    Replay {
        /// Its id.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Remove one, or all, for good.
    Discard {
        /// Its id.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The rollout's spec (YAML or JSON); - for standard input.
    pub(crate) spec: PathBuf,
    /// End once every device was sent the message, without waiting for answers. Run again, it takes in what came since.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Resume a rollout that is paused.
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PlanArgs {
    /// The rollout's spec (YAML or JSON); - for standard input.
    pub(crate) spec: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ValidateArgs {
    /// The rollout's spec (YAML or JSON); - for standard input.
    pub(crate) spec: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    /// The rollout's name.
    pub(crate) name: String,

    /// How to write it.
    #[arg(long, value_enum, default_value_t = ReportFormat::Table)]
    pub(crate) format: ReportFormat,

    /// Only devices with one of these outcomes: pending, enqueued, not_found, queue_full ...
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',')]
    pub(crate) outcome: Vec<String>,

    /// Only devices in one of these classes: applied, taken, sent, silent, pending, not_applied,
    /// not_taken, not_sent, skipped.
    #[arg(
        long,
        value_name = "CLASS",
        value_delimiter = ',',
        conflicts_with = "outcome"
    )]
    pub(crate) class: Vec<String>,

    /// Only devices that were not sent the message, did not take it, or could not do what it asks for: --class
    /// not_sent,not_taken,not_applied.
    #[arg(long, conflicts_with_all = ["outcome", "class"])]
    pub(crate) failed: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// The rollout's name.
    pub(crate) rollout: String,

    /// The device's id. It may begin with a `-`.
    #[arg(allow_hyphen_values = true)]
    pub(crate) device: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Columns for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// The same for spreadsheets: text that would be a formula begins with an apostrophe.
    Spreadsheet,
    /// One JSON object a line.
    Jsonl,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HubArgs {
    /// A fleet file (YAML). Default: 1000 refrigerators with the tags type (fridge), region (eu-north, eu-south, us-east,
    /// us-west), ring (canary, early, main) and site (site-0000 ...), which report their firmware.
    #[arg(long, value_name = "FILE")]
    pub(crate) fleet: Option<PathBuf>,

    /// Just so many devices, without a fleet file.
    #[arg(long, value_name = "N", conflicts_with = "fleet")]
    pub(crate) devices: Option<u64>,

    /// Who may register at the Device Provisioning Service: a file (YAML or JSON) with an idScope, enrollments and
    /// enrollmentGroups, in the words of the service. Default: one group for all devices, whose key is printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) dps_file: Option<PathBuf>,

    /// Take tokens of Microsoft Entra ID, and be the token service: one principal, whose id and secret are printed, with
    /// the role IoT Hub Data Contributor. It is also the managed identity at the control endpoint.
    #[arg(long)]
    pub(crate) entra: bool,

    /// As --entra, with the principals of a file (YAML or JSON): their ids, secrets, certificates, federated credentials
    /// and roles.
    #[arg(long, value_name = "FILE", conflicts_with = "entra")]
    pub(crate) entra_file: Option<PathBuf>,

    /// Refuse the keys of shared access policies, as a hub whose local authentication is disabled.
    #[arg(long)]
    pub(crate) no_local_auth: bool,

    /// The folder for the certificate, the connection string, and a configuration file to use with --config.
    #[arg(long, value_name = "DIR", default_value = "twincast-hub")]
    pub(crate) out: PathBuf,

    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) bind: IpAddr,

    /// The hub's host name, as clients are to know it.
    #[arg(long, default_value = "localhost")]
    pub(crate) host_name: String,

    /// AMQP port; 0 takes a free one.
    #[arg(long, default_value_t = 5671)]
    pub(crate) amqp_port: u16,

    /// HTTPS port; 0 takes a free one. The official SDKs insist on 443.
    #[arg(long, default_value_t = 0)]
    pub(crate) https_port: u16,

    /// MQTT port, for devices; 0 takes a free one. The official SDKs insist on 8883.
    #[arg(long, default_value_t = 0)]
    pub(crate) mqtt_port: u16,

    /// Certificates (PEM) of the authorities whose certificates devices may present; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) device_ca: Vec<PathBuf>,

    /// Port of the control endpoint (plain HTTP, loopback); 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub(crate) control_port: u16,

    /// The hub's tier, which its limits follow from.
    #[arg(long, value_enum, ignore_case = true, default_value_t = HubTier::S1)]
    pub(crate) tier: HubTier,

    /// Units of the tier.
    #[arg(long, default_value_t = 1)]
    pub(crate) units: u32,

    /// No throttles and no quotas.
    #[arg(long)]
    pub(crate) unlimited: bool,

    /// Seed of keys, certificate and fleet: the same seed gives the same hub.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// How long a message waits for its device if it does not say so itself.
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    pub(crate) default_ttl: Span,

    /// How long feedback is collected before it is told.
    #[arg(long, value_name = "SPAN", default_value = "15s")]
    pub(crate) feedback_batching: Span,

    /// How long a feedback message is hidden from others once it was handed out.
    #[arg(long, value_name = "SPAN", default_value = "1m")]
    pub(crate) feedback_lock: Span,

    /// How many records a feedback message has at the most.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) feedback_records: usize,

    /// How long a change of a reported property is missing in the answers to queries.
    #[arg(long, value_name = "SPAN", default_value = "0s")]
    pub(crate) query_lag: Span,

    /// Devices that are made over REST are connected and complete their messages. Default: they are disconnected.
    #[arg(long)]
    pub(crate) added_devices_online: bool,

    /// How far the hub's clock is ahead of this machine's.
    #[arg(long, value_name = "SPAN", default_value = "0s")]
    pub(crate) clock_ahead: Span,

    /// How far it is behind.
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0s",
        conflicts_with = "clock_ahead"
    )]
    pub(crate) clock_behind: Span,

    /// Fault switches to start with (JSON), as the control endpoint takes them.
    #[arg(long, value_name = "JSON")]
    pub(crate) faults: Option<String>,
}

/// The tiers of a hub that can send to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HubTier {
    #[value(name = "F1")]
    F1,
    #[value(name = "S1")]
    S1,
    #[value(name = "S2")]
    S2,
    #[value(name = "S3")]
    S3,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DemoArgs {
    /// How many simulated devices.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) devices: u64,

    /// Serve the live page, also after the end, until Ctrl-C.
    #[arg(long)]
    pub(crate) page: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SignArgs {
    #[command(subcommand)]
    pub(crate) action: SignAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SignAction {
    /// Make and show keys.
    Key {
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Write the signed message of an update.
    Update(SignUpdateArgs),
    /// Check the signed message of an update, and show what is in it.
    Verify(SignVerifyArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Make an ed25519 key (PKCS#8 in PEM) in a new file that only its owner can read.
    New {
        /// The file.
        #[arg(value_name = "KEYFILE")]
        file: PathBuf,
    },
    /// Show a key's public half, as devices have it.
    Show {
        /// The file with the key.
        #[arg(value_name = "KEYFILE")]
        file: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SignUpdateArgs {
    /// A file with a key; twice while devices change from one key to another.
    #[arg(long, value_name = "KEYFILE", required = true)]
    pub(crate) key: Vec<PathBuf>,

    /// What is updated: `update.name` of the devices.
    #[arg(long)]
    pub(crate) name: String,

    /// The version.
    #[arg(long)]
    pub(crate) version: String,

    /// Hardware that it is for: `update.hardware` of the devices. Default: any.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) hardware: Vec<String>,

    /// Where devices fetch it: https, http or ftp.
    #[arg(long)]
    pub(crate) url: String,

    /// The file that is there.
    #[arg(long, value_name = "FILE")]
    pub(crate) artifact: PathBuf,

    /// From then on it is not installed any more: 2027-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,

    /// Devices also install it if they run the same or a later version.
    #[arg(long)]
    pub(crate) force: bool,

    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = "update.json")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SignVerifyArgs {
    /// The signed message.
    pub(crate) file: PathBuf,

    /// A public key that is trusted (base64).
    #[arg(long, value_name = "KEY", required = true)]
    pub(crate) public_key: Vec<String>,

    /// The artefact, whose size and SHA-256 are checked.
    #[arg(long, value_name = "FILE")]
    pub(crate) artifact: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenArgs {
    /// Whose token it is: operations are recorded under this name.
    pub(crate) name: String,

    /// What its bearer may do: look; start, pause, resume and abort; decide on gates; all of it.
    #[arg(long, value_enum, default_value_t = TokenRole::Viewer)]
    pub(crate) role: TokenRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    Viewer,
    Operator,
    Approver,
    Admin,
}
