//! The grammar of the command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use twincast_core::spec::HumanDuration;

use crate::failure::ExitCode;

/// Rolls a cloud-to-device message out to a fleet of devices behind Azure IoT Hub.
#[derive(Debug, Parser)]
#[command(name = "twincast", version, about, after_help = ExitCode::HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// Configuration file (TOML or YAML).
    #[arg(long, global = true, value_name = "FILE", env = "TWINCAST_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// State folder for rollouts. Default: twincast-state.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Server with the HTTP API; token from TWINCAST_TOKEN.
    #[arg(long, global = true, value_name = "URL", env = "TWINCAST_SERVER")]
    pub(crate) server: Option<String>,

    /// Write the result as one JSON object to standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Log level for standard error: warn, info, debug, or a filter like twincast=debug.
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// Print the effective configuration without secrets, and exit.
    #[arg(long, global = true)]
    pub(crate) print_config: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Test all configured services: hubs, RabbitMQ, Redis, Prometheus.
    ///
    /// Prints for each service what works (name, port, TLS, identity, roles, quota, clock), and how
    /// to fix failures. Sends nothing.
    Check,
    /// Run a rollout from this machine; the same command continues after an interruption.
    Run(RunArgs),
    /// Preview a rollout; send nothing.
    Plan(PlanArgs),
    /// Check a rollout's spec and its files.
    Validate(ValidateArgs),
    /// Show the outcome of each device.
    Report(ReportArgs),
    /// Show the state of one device in a rollout, with reasons and the current wait.
    Explain(ExplainArgs),
    /// Show the hubs: quotas, current rate, and waiting batches.
    Hubs,
    /// Run an IoT Hub emulator that works with the official SDKs.
    Hub(HubArgs),
    /// Run a demo: canaries stop a faulty build, and the fix reaches an emulated fleet.
    Demo(DemoArgs),
    /// Print the JSON Schema of a rollout's spec.
    Schema,
    /// Create a token for the HTTP API.
    Token(TokenArgs),
    /// Run the device agent: receive signed updates, install updates, report the results.
    ///
    /// --config names the agent's own configuration (TOML, docs/reference/device-agent.md).
    Agent,
    /// Sign updates for device agents.
    Sign(SignArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder.
    Man {
        /// The folder; created if missing.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Plan and drive rollouts that arrive on the command queue (RabbitMQ and Redis).
    Orchestrator,
    /// Send to the devices of batches that orchestrators release (RabbitMQ and Redis).
    Worker,
    /// Submit a rollout to the command queue; repeating the command changes nothing.
    Submit(SubmitArgs),
    /// Show all rollouts, or one rollout in full.
    Status(StatusArgs),
    /// Watch a rollout until its end; the exit code shows the result.
    Watch(WatchArgs),
    /// Pause a rollout: send nothing more until it is resumed.
    Pause(ChangeArgs),
    /// Resume a paused rollout.
    Resume(ChangeArgs),
    /// End a rollout; devices not sent to are skipped.
    Abort(ChangeArgs),
    /// Delete an ended rollout; the name becomes free.
    Delete(DeleteArgs),
    /// Approve a stage's gate.
    Approve(ApproveArgs),
    /// Reject a stage's gate: the rollout is paused or aborted, as set by the gate.
    Reject(ApproveArgs),
    /// Pass a stage's gate regardless of its verdict, and continue.
    Promote(PromoteArgs),
    /// Send to failed devices again; an ended rollout runs again.
    Retry(RetryArgs),
    /// Stop all rollouts, present and future, until resume-all.
    StopAll(AllArgs),
    /// Resume all rollouts stopped by stop-all.
    ResumeAll(AllArgs),
    /// List, show, replay or discard unusable messages.
    DeadLetters(DeadLettersArgs),
}

impl Command {
    /// Returns the command's name if the command does the work itself and cannot run over a server.
    pub(crate) fn local_only_name(&self) -> Option<&'static str> {
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

    /// Wait for the end of the rollout; the exit code shows the result.
    #[arg(long)]
    pub(crate) wait: bool,

    #[command(flatten)]
    pub(crate) caller: CallerArgs,
}

/// Who asks and why, for the record.
#[derive(Debug, ClapArgs)]
pub(crate) struct CallerArgs {
    /// Name of the caller, for the record. Default: the user of this machine. A server uses the
    /// token's name.
    #[arg(long, value_name = "NAME", env = "TWINCAST_BY")]
    pub(crate) by: Option<String>,

    /// Time limit for an orchestrator's answer.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// The rollout's name. Default: all rollouts.
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

    /// Reason, for people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,

    #[command(flatten)]
    pub(crate) caller: CallerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,

    /// First write the rollout and the outcome of each device to this new file, as JSON lines: the
    /// rollout in the first line, then one device per line, as in `report --format jsonl`.
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ApproveArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,

    /// The stage. Default: the current stage of the rollout.
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PromoteArgs {
    /// The rollout's name.
    pub(crate) name: String,

    /// The stage with the gate to override.
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: String,

    /// Reason, for the record.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,

    #[command(flatten)]
    pub(crate) caller: CallerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,

    /// Only devices with one of these outcomes: rejected, expired, enqueued ... Default: all failed
    /// devices.
    #[arg(long, value_name = "OUTCOME", value_delimiter = ',')]
    pub(crate) outcome: Vec<String>,

    /// Only devices of this stage.
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AllArgs {
    /// Reason, for people.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,

    #[command(flatten)]
    pub(crate) caller: CallerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    pub(crate) action: Option<DeadLettersAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersAction {
    /// List the messages, oldest first (the default).
    List,
    /// Show one message in full.
    Show {
        /// The message's id, as shown in the list.
        id: String,
    },
    /// Put one message, or all messages, back on the original queue.
    Replay {
        /// The message's id.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All messages.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Remove one message, or all messages, permanently.
    Discard {
        /// The message's id.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All messages.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The rollout's spec (YAML or JSON); - for standard input.
    pub(crate) spec: PathBuf,
    /// End once every device was sent the message, without waiting for answers. Another run
    /// collects the answers.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Resume a paused rollout.
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

    /// Output format.
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

    /// Only devices that were not sent the message, did not accept it, or could not fulfil the
    /// request: --class not_sent,not_taken,not_applied.
    #[arg(long, conflicts_with_all = ["outcome", "class"])]
    pub(crate) failed: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// The rollout's name.
    pub(crate) rollout: String,

    /// The device's id; may begin with a `-`.
    #[arg(allow_hyphen_values = true)]
    pub(crate) device: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Columns for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// CSV for spreadsheets: an apostrophe precedes text that would be a formula.
    Spreadsheet,
    /// One JSON object per line.
    Jsonl,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HubArgs {
    /// A fleet file (YAML). Default: 1000 refrigerators with the tags type (fridge), region
    /// (eu-north, eu-south, us-east, us-west), ring (canary, early, main) and site (site-0000 ...);
    /// the refrigerators report their firmware.
    #[arg(long, value_name = "FILE")]
    pub(crate) fleet: Option<PathBuf>,

    /// Number of devices, without a fleet file.
    #[arg(long, value_name = "N", conflicts_with = "fleet")]
    pub(crate) devices: Option<u64>,

    /// Enrollments of the Device Provisioning Service: a file (YAML or JSON) with an idScope,
    /// enrollments and enrollmentGroups, in the terms of the service. Default: one group for all
    /// devices; its key is printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) dps_file: Option<PathBuf>,

    /// Accept tokens of Microsoft Entra ID, and emulate the token service with one principal with
    /// the role IoT Hub Data Contributor; its id and secret are printed. The principal is also the
    /// managed identity at the control endpoint.
    #[arg(long)]
    pub(crate) entra: bool,

    /// Like --entra, with the principals of a file (YAML or JSON): ids, secrets, certificates,
    /// federated credentials and roles.
    #[arg(long, value_name = "FILE", conflicts_with = "entra")]
    pub(crate) entra_file: Option<PathBuf>,

    /// Refuse the keys of shared access policies, as a hub with disabled local authentication does.
    #[arg(long)]
    pub(crate) no_local_auth: bool,

    /// The folder for the certificate, the connection string, and a configuration file for
    /// --config.
    #[arg(long, value_name = "DIR", default_value = "twincast-hub")]
    pub(crate) out: PathBuf,

    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) bind: IpAddr,

    /// The hub's host name for clients.
    #[arg(long, default_value = "localhost")]
    pub(crate) host_name: String,

    /// AMQP port; 0 chooses a free port.
    #[arg(long, default_value_t = 5671)]
    pub(crate) amqp_port: u16,

    /// HTTPS port; 0 chooses a free port. The official SDKs require 443.
    #[arg(long, default_value_t = 0)]
    pub(crate) https_port: u16,

    /// MQTT port, for devices; 0 chooses a free port. The official SDKs require 8883.
    #[arg(long, default_value_t = 0)]
    pub(crate) mqtt_port: u16,

    /// Certificates (PEM) of the authorities trusted for device certificates; may be given several
    /// times.
    #[arg(long, value_name = "FILE")]
    pub(crate) device_ca: Vec<PathBuf>,

    /// Port of the control endpoint (plain HTTP, at the address of --bind); 0 chooses a free port.
    #[arg(long, default_value_t = 0)]
    pub(crate) control_port: u16,

    /// The hub's tier; determines the limits.
    #[arg(long, value_enum, ignore_case = true, default_value_t = HubTier::S1)]
    pub(crate) tier: HubTier,

    /// Number of units of the tier.
    #[arg(long, default_value_t = 1)]
    pub(crate) units: u32,

    /// No throttles and no quotas.
    #[arg(long)]
    pub(crate) unlimited: bool,

    /// Seed of keys, certificate and fleet: the same seed gives the same hub.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Time to live of messages without their own.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(crate) default_ttl: HumanDuration,

    /// Time for which feedback is collected before delivery.
    #[arg(long, value_name = "DURATION", default_value = "15s")]
    pub(crate) feedback_batching: HumanDuration,

    /// Lock duration of a delivered feedback message: hidden from other receivers.
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    pub(crate) feedback_lock: HumanDuration,

    /// Maximum number of records per feedback message.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) feedback_records: usize,

    /// Delay until a change of a reported property appears in the answers to queries.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(crate) query_lag: HumanDuration,

    /// Connect devices created over REST, so that they complete their messages. Default:
    /// disconnected.
    #[arg(long)]
    pub(crate) added_devices_online: bool,

    /// Time by which the hub's clock is ahead of this machine's clock.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub(crate) clock_ahead: HumanDuration,

    /// Time by which the hub's clock is behind this machine's clock.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "0s",
        conflicts_with = "clock_ahead"
    )]
    pub(crate) clock_behind: HumanDuration,

    /// Initial fault switches (JSON), in the format of the control endpoint.
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
    /// Number of simulated devices.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) devices: u64,

    /// Serve the live page until Ctrl-C, also after the end.
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
    /// Create and show keys.
    Key {
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Write the signed message of an update.
    Update(SignUpdateArgs),
    /// Verify the signed message of an update, and show its content.
    Verify(SignVerifyArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Create an ed25519 key (PKCS#8 in PEM) in a new file, readable only by its owner.
    New {
        /// The file.
        #[arg(value_name = "KEYFILE")]
        file: PathBuf,
    },
    /// Show the public key, in the format for devices.
    Show {
        /// The file with the key.
        #[arg(value_name = "KEYFILE")]
        file: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SignUpdateArgs {
    /// A file with a key; give two keys while devices change from one key to another.
    #[arg(long, value_name = "KEYFILE", required = true)]
    pub(crate) key: Vec<PathBuf>,

    /// Name of the updated software: `update.name` of the devices.
    #[arg(long)]
    pub(crate) name: String,

    /// The version.
    #[arg(long)]
    pub(crate) version: String,

    /// Compatible hardware: `update.hardware` of the devices. Default: any.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) hardware: Vec<String>,

    /// Download URL for devices: https, http or ftp.
    #[arg(long)]
    pub(crate) url: String,

    /// The file behind the URL.
    #[arg(long, value_name = "FILE")]
    pub(crate) artifact: PathBuf,

    /// Expiry: devices do not install the update from this time on, for example
    /// 2030-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,

    /// Install the update also on devices with the same or a later version.
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

    /// A trusted public key (base64).
    #[arg(long, value_name = "KEY", required = true)]
    pub(crate) public_key: Vec<String>,

    /// The artefact; its size and SHA-256 are checked.
    #[arg(long, value_name = "FILE")]
    pub(crate) artifact: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenArgs {
    /// Name of the bearer; operations are recorded under this name.
    pub(crate) name: String,

    /// Rights of the bearer: viewer reads; operator starts, pauses, resumes and aborts; approver
    /// decides on gates; admin does everything.
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
