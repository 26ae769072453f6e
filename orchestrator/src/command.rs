//! The commands of operators and pipelines, one JSON object per command.
//!
//! ```json
//! {"command": "start", "spec": {"name": "firmware-1.4.2", "target": {"tags": {"type": "fridge"}}, "message": {...}}}
//! {"command": "pause", "rollout": "firmware-1.4.2", "reason": "complaints from Oslo", "by": "ann"}
//! {"command": "stop-all", "reason": "wrong build"}
//! ```
//!
//! Every command may be sent twice. The content type carries the version of the format.

use serde::{Deserialize, Serialize};
use twincast_core::ids::{CommandKey, RolloutName, StageName};
use twincast_core::json::Json;
use twincast_core::outcome::{ClassCounts, Outcome};
use twincast_core::ports::Tally;
use twincast_core::rollout::{Attribution, KeyedCommand, Rollout};
use twincast_core::spec::{
    Body, Document, MAX_ACTOR_CHARS, MAX_TEXT_CHARS, RolloutSpec, length_problem,
};
use twincast_core::trace::{CommandSpan, TraceContext};
use utoipa::ToSchema;

use crate::rollout_text::valid_tallies;

/// The content type of a command. Plain `application/json`, or none at all, means the same.
pub const CONTENT_TYPE: &str = "application/vnd.twincast.command.v1+json";

/// The HTTP request header with the command's [key](Command::key).
pub const KEY_HEADER: &str = "idempotency-key";

/// The action of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Roll `spec` out.
    Start,
    /// Pause `rollout`: send nothing more for now.
    Pause,
    /// Let `rollout` continue.
    Resume,
    /// End `rollout` and skip the devices not sent to.
    Abort,
    /// Stop all rollouts: send nothing.
    StopAll,
    /// Let all rollouts continue that `stop-all` has stopped.
    ResumeAll,
    /// Approve a stage's gate.
    Approve,
    /// Reject a stage's gate. The gate has then failed.
    Reject,
    /// Count a stage's gate as passed, whatever its state, and let the rollout continue.
    Promote,
    /// Send again to devices that failed or gave no feedback.
    Retry,
    /// Remove an ended `rollout` with all of its stored data. The name is free afterwards.
    Delete,
    /// Report the state of `rollout`. Changes nothing.
    Status,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The action.
    pub command: Kind,
    /// The rollout, for commands about a single rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutName>,
    /// The stage: required for `promote`; a restriction to this stage for `approve`, `reject` and
    /// `retry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageName>,
    /// The outcomes that select devices, for `retry`. An empty list selects all failures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<Outcome>,
    /// The rollout's spec, for `start`, with all files inlined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Json>,
    /// The reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The requester, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The idempotency key by which a repeated command is recognized, for commands that change a
    /// single rollout. A `start` is also recognized by the rollout's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<CommandKey>,
    /// The command's trace span, if already begun. Carried in a message header, not in the body.
    #[serde(skip)]
    pub span: Option<CommandSpan>,
}

/// The answer to an executed command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Answer {
    /// Always true.
    pub ok: bool,
    /// Whether the command changed anything. Repeating a command changes nothing, but a repetition
    /// with the same key reports `true` again.
    pub changed: bool,
    /// The affected rollouts in their current state; a deleted rollout in its last state.
    pub rollouts: Vec<RolloutState>,
    /// The reason why nothing was changed, where not obvious; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The state of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutState {
    /// The rollout's name.
    #[schema(value_type = String)]
    pub name: RolloutName,
    /// The rollout's phase.
    pub phase: String,
    /// The reason for the phase, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the rollout is paused as soon as its plan is complete, unless resumed before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_be_paused: bool,
    /// The current stage, if the spec has stages and the rollout is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage: Option<StageName>,
    /// The version of the rollout's record.
    pub version: u64,
    /// The number of devices; 0 until the rollout is planned.
    pub devices: u64,
    /// Devices by class: `applied`, `taken`, `sent`, `silent`, `pending`, `not_applied`,
    /// `not_taken`, `not_sent`, `skipped`. All 0 until the rollout is planned.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub by_class: ClassCounts,
    /// The trace span of the command that started the rollout.
    #[serde(skip)]
    pub trace: Option<TraceContext>,
}

impl RolloutState {
    /// Builds the state of a rollout from the record and the tallies.
    #[must_use]
    pub fn of(rollout: &Rollout, tallies: &[Tally]) -> Self {
        let counts = Tally::sum(valid_tallies(rollout, tallies));
        Self {
            name: rollout.spec.name.clone(),
            phase: rollout.phase.as_str().to_owned(),
            reason: rollout
                .phase
                .reason()
                .map(str::to_owned)
                .or_else(|| rollout.pending_pause())
                .or_else(|| Some(format!("waits for {}", rollout.waits_to_be_planned()?))),
            to_be_paused: rollout.pause_after_planning.is_some(),
            stage: rollout
                .stage_progress()
                .filter(|_| rollout.spec.is_staged())
                .map(|stage| stage.name.clone()),
            version: rollout.version.0,
            devices: rollout.plan.as_ref().map_or(0, |plan| plan.devices),
            by_class: ClassCounts::of(&counts, rollout.spec.message.wants_feedback()),
            trace: rollout.trace,
        }
    }

    /// Returns whether the rollout has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(
            &*self.phase,
            "succeeded" | "finished_with_failures" | "failed" | "aborted"
        )
    }
}

/// Why a command was refused, for machines. Repeating the command does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// The command is too large.
    TooLarge,
    /// The command is not JSON.
    Unreadable,
    /// The content type has a version or kind unknown to this release.
    UnsupportedVersion,
    /// The command is JSON, but not a valid command.
    InvalidCommand,
    /// The spec has mistakes.
    InvalidSpec,
    /// The spec names an unconfigured hub.
    UnknownHub,
    /// Another spec has the rollout's name, or another rollout of the concurrency group is active.
    Conflict,
    /// No rollout has this name.
    UnknownRollout,
    /// The rollout's state does not permit the command.
    NotPossible,
    /// A newer release has written the rollout. An orchestrator of that release can execute the
    /// command.
    NewerRelease,
    /// The stored data of the rollout cannot be read.
    Damaged,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 11] = [
        Self::TooLarge,
        Self::Unreadable,
        Self::UnsupportedVersion,
        Self::InvalidCommand,
        Self::InvalidSpec,
        Self::UnknownHub,
        Self::Conflict,
        Self::UnknownRollout,
        Self::NotPossible,
        Self::NewerRelease,
        Self::Damaged,
    ];

    /// Returns the cause as written in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Returns whether the command was sound but does not fit the rollout's state.
    #[must_use]
    pub fn is_about_the_rollout(self) -> bool {
        matches!(
            self,
            Self::Conflict | Self::UnknownRollout | Self::NotPossible | Self::NewerRelease
        )
    }
}

/// The refusal of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Always false.
    pub ok: bool,
    /// The cause, for machines.
    pub cause: Cause,
    /// The problem and the allowed values, for people.
    pub error: String,
    /// The single mistakes or differences, where there may be several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Refusal {
    /// Creates a refusal without details.
    #[must_use]
    pub fn new(cause: Cause, error: impl Into<String>) -> Self {
        Self {
            ok: false,
            cause,
            error: error.into(),
            details: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

impl Command {
    /// Creates a command about a rollout, with all other fields empty.
    #[must_use]
    pub fn about(kind: Kind, rollout: Option<RolloutName>) -> Self {
        Self {
            command: kind,
            rollout,
            stage: None,
            outcomes: Vec::new(),
            spec: None,
            reason: None,
            by: None,
            key: None,
            span: None,
        }
    }

    /// Parses and checks a command.
    ///
    /// # Errors
    /// [`Refusal`] with the problem.
    pub fn read(body: &[u8], content_type: Option<&str>) -> Result<Self, Refusal> {
        check_content_type(content_type)?;
        let unreadable = |what: String| Refusal::new(Cause::Unreadable, what);
        let text = std::str::from_utf8(body)
            .map_err(|_| unreadable("the command is not JSON: it is not UTF-8 text".into()))?;
        let document = Document::parse_json("the command", text)
            .map_err(|problems| unreadable(problems.in_one_line()))?;
        let command: Self = document.read().map_err(|problems| {
            let mistakes = problems.without_positions().join("; ");
            Refusal::new(
                Cause::InvalidCommand,
                format!("invalid command: {mistakes}"),
            )
        })?;
        command.operation()?;
        Ok(command)
    }

    /// Returns the requested operation with exactly the required parameters.
    ///
    /// # Errors
    /// [`Refusal`] naming the missing, meaningless or too long field.
    pub(crate) fn operation(&self) -> Result<Operation<'_>, Refusal> {
        let kind = self.command;
        let is_about_all = matches!(kind, Kind::StopAll | Kind::ResumeAll);
        let is_about_one = !is_about_all && kind != Kind::Start;
        let judges = matches!(kind, Kind::Approve | Kind::Reject | Kind::Promote);
        let fields = [
            // Keys are stored with a rollout, and these commands concern no single rollout.
            ("key", !is_about_all, self.key.is_some()),
            ("rollout", is_about_one, self.rollout.is_some()),
            ("stage", judges || kind == Kind::Retry, self.stage.is_some()),
            ("outcomes", kind == Kind::Retry, !self.outcomes.is_empty()),
            ("spec", kind == Kind::Start, self.spec.is_some()),
        ];
        if let Some((field, ..)) = fields.iter().find(|(_, may, given)| *given && !may) {
            return Err(self.field_refusal(field, "is not allowed"));
        }
        let texts = [
            ("reason", &self.reason, MAX_TEXT_CHARS),
            ("by", &self.by, MAX_ACTOR_CHARS),
        ];
        for (field, text, most) in texts {
            if let Some(problem) = length_problem(text.as_deref().unwrap_or_default(), most) {
                let error = format!("invalid command: {field} {problem}");
                return Err(Refusal::new(Cause::InvalidCommand, error));
            }
        }
        let missing = |field| self.field_refusal(field, "is missing");
        let stage = self.stage.as_ref();
        let operation = match kind {
            Kind::StopAll => return Ok(Operation::StopAll),
            Kind::ResumeAll => return Ok(Operation::ResumeAll),
            Kind::Start => {
                let spec = self.spec.as_ref();
                return spec.map(Operation::Start).ok_or_else(|| missing("spec"));
            }
            Kind::Pause => RolloutOperation::Pause,
            Kind::Resume => RolloutOperation::Resume,
            Kind::Abort => RolloutOperation::Abort,
            Kind::Approve => RolloutOperation::Approve { stage },
            Kind::Reject => RolloutOperation::Reject { stage },
            Kind::Promote => RolloutOperation::Promote {
                stage: stage.ok_or_else(|| missing("stage"))?,
            },
            Kind::Retry => RolloutOperation::Retry {
                stage,
                outcomes: &self.outcomes,
            },
            Kind::Delete => RolloutOperation::Delete,
            Kind::Status => RolloutOperation::Status,
        };
        let rollout = self.rollout.as_ref().ok_or_else(|| missing("rollout"))?;
        Ok(Operation::Of(rollout, operation))
    }

    fn field_refusal(&self, field: &str, problem: &str) -> Refusal {
        let command = serde_json::to_value(self.command).unwrap_or_default();
        let error = format!("invalid command: {field} {problem} in command {command}");
        Refusal::new(Cause::InvalidCommand, error)
    }

    /// Parses and checks the spec of a `start`.
    ///
    /// # Errors
    /// [`Refusal`] with every mistake, each with its field.
    pub fn spec(&self) -> Result<RolloutSpec, Refusal> {
        spec_of(self.spec.as_ref().map_or("null", Json::as_str))
    }

    /// Returns the attribution of the command: requester and reason.
    #[must_use]
    pub fn attribution(&self) -> Attribution {
        Attribution {
            by: self.by.clone(),
            reason: self.reason.clone(),
        }
    }

    /// Returns the command with its key, if the command has a key and may change a remaining
    /// rollout.
    pub(crate) fn keyed(&self) -> Option<KeyedCommand> {
        let key = self.key.clone();
        // A removed rollout remembers no commands.
        let key = key.filter(|_| !matches!(self.command, Kind::Status | Kind::Delete))?;
        let operation = Self {
            stage: self.stage.clone(),
            outcomes: self.outcomes.clone(),
            ..Self::about(self.command, None)
        };
        let operation = serde_json::to_string(&operation).unwrap_or_default();
        Some(KeyedCommand { key, operation })
    }

    /// Returns the action as written in JSON.
    #[must_use]
    pub fn name(&self) -> String {
        let command = serde_json::to_value(self.command).unwrap_or_default();
        command.as_str().unwrap_or_default().to_owned()
    }

    /// Returns the rollout named by the command or by its spec, if any.
    #[must_use]
    pub fn subject(&self) -> Option<RolloutName> {
        let of_spec = || {
            let spec = self.spec.as_ref()?.to_value();
            RolloutName::new(spec.get("name")?.as_str()?).ok()
        };
        self.rollout.clone().or_else(of_spec)
    }

    /// Returns the reason and the requester in one line.
    #[must_use]
    pub fn reason_text(&self) -> String {
        let command = self.name();
        match (&self.reason, &self.by) {
            (Some(reason), Some(by)) => format!("{reason} ({command} by {by})"),
            (Some(reason), None) => reason.clone(),
            (None, Some(by)) => format!("{command} by {by}"),
            (None, None) => command,
        }
    }
}

/// The operation requested by a command.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation<'a> {
    Start(&'a Json),
    StopAll,
    ResumeAll,
    Of(&'a RolloutName, RolloutOperation<'a>),
}

/// An operation on a single rollout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RolloutOperation<'a> {
    Pause,
    Resume,
    Abort,
    Approve {
        stage: Option<&'a StageName>,
    },
    Reject {
        stage: Option<&'a StageName>,
    },
    Promote {
        stage: &'a StageName,
    },
    Retry {
        stage: Option<&'a StageName>,
        outcomes: &'a [Outcome],
    },
    Delete,
    Status,
}

/// Parses and checks a spec.
///
/// # Errors
/// [`Refusal`] with every mistake, each with its field.
pub(crate) fn spec_of(text: &str) -> Result<RolloutSpec, Refusal> {
    let spec = RolloutSpec::read("the spec", text).map_err(|problems| {
        let mistakes = problems.without_positions();
        Refusal::new(Cause::InvalidSpec, "the spec is invalid").with(mistakes)
    })?;
    let files = files_of(&spec);
    if files.is_empty() {
        return Ok(spec);
    }
    let refusal = Refusal::new(
        Cause::InvalidSpec,
        "the spec refers to files, which the orchestrator cannot read; inline the files, as \
         `twincast submit` does",
    );
    Err(refusal.with(files))
}

fn check_content_type(found: Option<&str>) -> Result<(), Refusal> {
    // Ignore parameters: JSON is always UTF-8.
    let kind = found.map(|text| text.split(';').next().unwrap_or_default().trim());
    match kind {
        None | Some("") => Ok(()),
        // Media types are case-insensitive (RFC 9110, 8.3.1).
        Some(kind)
            if ["application/json", CONTENT_TYPE]
                .iter()
                .any(|it| it.eq_ignore_ascii_case(kind)) =>
        {
            Ok(())
        }
        Some(other) => Err(Refusal::new(
            Cause::UnsupportedVersion,
            format!(
                "the content type {other:?} of the command is not supported; supported: \
                 {CONTENT_TYPE}, application/json"
            ),
        )),
    }
}

/// Lists the fields with references to files.
fn files_of(spec: &RolloutSpec) -> Vec<String> {
    let mut files = Vec::new();
    if let Body::File(path) = &spec.message.body {
        files.push(format!("message.body.file: {}", path.display()));
    }
    if let Some(path) = &spec.target.devices_file {
        files.push(format!("target.devices_file: {}", path.display()));
    }
    for (index, rule) in spec.target.exclude.iter().enumerate() {
        if let Some(path) = &rule.devices_file {
            files.push(format!(
                "target.exclude[{index}].devices_file: {}",
                path.display()
            ));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str, content_type: Option<&str>) -> (Cause, String) {
        let refusal = Command::read(body.as_bytes(), content_type)
            .and_then(|command| command.spec().map(|_| ()))
            .unwrap_err();
        (
            refusal.cause,
            [vec![refusal.error], refusal.details].concat().join("; "),
        )
    }

    #[test]
    fn commands_parse_with_all_accepted_content_types() {
        let body = br#"{"command":"pause","rollout":"r","reason":"smoke","by":"ann"}"#;
        for content_type in [
            None,
            Some("application/json; charset=utf-8"),
            Some("Application/JSON"),
            Some("APPLICATION/VND.twincast.command.V1+JSON"),
            Some(CONTENT_TYPE),
        ] {
            let command = Command::read(body, content_type).unwrap();
            assert_eq!(command.command, Kind::Pause);
            assert_eq!(command.reason_text(), "smoke (pause by ann)");
        }
        let written = serde_json::to_string(&Command::about(Kind::StopAll, None)).unwrap();
        assert_eq!(written, r#"{"command":"stop-all"}"#);
    }

    #[test]
    fn a_command_keeps_every_digit_and_null_counts_as_absent() {
        let body = r#"{"command":"start","spec":{"name":"a","target":{"all":true},
            "message":{"body":{"json":{"big":12345678901234567890123,"cents":1.10,"hash":1234567e8}}}},
            "outcomes":null,"reason":null,"stage":null}"#;
        let command = Command::read(body.as_bytes(), None).unwrap();
        assert_eq!(command.outcomes, []);
        let again = serde_json::to_vec(&command).unwrap();
        let spec = Command::read(&again, None).unwrap().spec().unwrap();
        let content = spec.message.content().unwrap();
        let sent = br#"{"big":12345678901234567890123,"cents":1.10,"hash":1234567e8}"#;
        assert_eq!(&content.body[..], sent);
    }

    #[test]
    fn reason_and_author_have_length_limits() {
        let command = |reason: usize, by: usize| {
            let (reason, by) = ("\u{e4}".repeat(reason), "b".repeat(by));
            format!(r#"{{"command":"pause","rollout":"r","reason":"{reason}","by":"{by}"}}"#)
        };
        assert!(Command::read(command(1_000, 128).as_bytes(), None).is_ok());
        let table = [
            (
                command(1_001, 1),
                "reason has 1001 characters; at most 1000",
            ),
            (command(1, 129), "by has 129 characters; at most 128"),
        ];
        for (body, part) in table {
            let (cause, words) = refused(&body, None);
            assert_eq!(cause, Cause::InvalidCommand);
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn every_error_of_a_command_is_named() {
        let cases = [
            ("{", None, Cause::Unreadable, "not JSON"),
            (
                r#"{"command":"pause","rollout":"a","rollout":"b"}"#,
                None,
                Cause::Unreadable,
                "rollout: is given twice",
            ),
            (
                r#"{"command":"start","spec":{"name":"a","message":{"body":{"json":{"a":1,"a":2}}}}}"#,
                None,
                Cause::Unreadable,
                "spec.message.body.json.a: is given twice",
            ),
            (
                r#"{"command":"start","spec":null}"#,
                None,
                Cause::InvalidCommand,
                "spec is missing",
            ),
            ("[]", None, Cause::InvalidCommand, "invalid command"),
            (
                r#"["pause","r",null,null,null]"#,
                None,
                Cause::InvalidCommand,
                "is a list, and must be a map with fields such as command, rollout,",
            ),
            (
                r#"{"command":"dance"}"#,
                None,
                Cause::InvalidCommand,
                "command: \"dance\" is not one of start, pause,",
            ),
            (
                r#"{"command":"pause"}"#,
                None,
                Cause::InvalidCommand,
                "rollout is missing",
            ),
            (
                r#"{"command":"stop-all","rollout":"r"}"#,
                None,
                Cause::InvalidCommand,
                "rollout is not allowed",
            ),
            (
                r#"{"command":"stop-all","key":"k"}"#,
                None,
                Cause::InvalidCommand,
                "key is not allowed",
            ),
            (
                r#"{"command":"pause","rollout":"r","key":"a b"}"#,
                None,
                Cause::InvalidCommand,
                "key: command key \"a b\" is not valid",
            ),
            (
                r#"{"command":"pause","rollout":"a b"}"#,
                None,
                Cause::InvalidCommand,
                "rollout: ",
            ),
            (
                r#"{"command":"pause","rolout":"a"}"#,
                None,
                Cause::InvalidCommand,
                "rolout",
            ),
            (
                "{}",
                Some("application/vnd.twincast.command.v2+json"),
                Cause::UnsupportedVersion,
                "v2",
            ),
            (
                "{}",
                Some("text/plain"),
                Cause::UnsupportedVersion,
                "text/plain",
            ),
            (
                r#"{"command":"start","spec":{"name":"a"}}"#,
                None,
                Cause::InvalidSpec,
                "target",
            ),
            (
                r#"{"command":"start","spec":{"name":"a","target":{"devices_file":"x"},"message":{"body":{"file":"y"}}}}"#,
                None,
                Cause::InvalidSpec,
                "message.body.file: y; target.devices_file: x",
            ),
        ];
        for (body, content_type, cause, part) in cases {
            let (found, words) = refused(body, content_type);
            assert_eq!(found, cause, "{body}");
            assert!(words.contains(part), "{part:?} is not in {words:?}");
            let written = serde_json::to_value(cause).unwrap();
            assert_eq!(written.as_str(), Some(cause.as_str()));
        }
    }
}
