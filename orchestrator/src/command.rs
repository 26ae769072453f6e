//! What operators and pipelines ask for: one JSON object a command.
//!
//! ```json
//! {"command": "start", "spec": {"name": "firmware-1.4.2", "target": {"tags": {"type": "fridge"}}, "message": {...}}}
//! {"command": "pause", "rollout": "firmware-1.4.2", "reason": "complaints from Oslo", "by": "ann"}
//! {"command": "stop-all", "reason": "wrong build"}
//! ```
//!
//! Every command may be sent twice. The version of the format is in the content type.

use serde::{Deserialize, Serialize};
use twincast_core::ids::{CommandKey, RolloutName, StageName};
use twincast_core::json::Json;
use twincast_core::outcome::{Ends, Outcome};
use twincast_core::ports::Tally;
use twincast_core::rollout::{Keyed, Rollout, Word};
use twincast_core::spec::{Body, Document, MAX_BY_CHARS, MAX_TEXT_CHARS, RolloutSpec, too_long};
use twincast_core::trace::{Begun, TraceContext};
use utoipa::ToSchema;

use crate::standing::counted;

/// The content type of a command. Plain `application/json`, or none at all, means the same.
pub const CONTENT_TYPE: &str = "application/vnd.twincast.command.v1+json";

/// The header of a request over HTTP that has its [key](Command::key).
pub const KEY_HEADER: &str = "idempotency-key";

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Roll `spec` out.
    Start,
    /// Send nothing more of `rollout` for now.
    Pause,
    /// Let `rollout` go on.
    Resume,
    /// End `rollout`; what was not sent is skipped.
    Abort,
    /// Send nothing of any rollout.
    StopAll,
    /// Let all rollouts go on that `stop-all` has stopped.
    ResumeAll,
    /// Say yes to a stage's gate.
    Approve,
    /// Say no to a stage's gate, which then has failed.
    Reject,
    /// Take a stage's gate for passed, whatever it says, and let the rollout go on.
    Promote,
    /// Send to devices again that failed, or of which nothing was heard.
    Retry,
    /// Remove `rollout`, which has ended, with all that is stored of it. Its name is free then.
    Delete,
    /// Say where `rollout` is. Changes nothing.
    Status,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// What is to be done.
    pub command: Kind,
    /// The rollout, for all that are about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutName>,
    /// The stage, for `promote`; for `approve`, `reject` and `retry` if it is to be that one and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageName>,
    /// Which devices, for `retry`: those with one of these outcomes. All failures if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<Outcome>,
    /// The rollout's spec, for `start`. Its files must be inlined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Json>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asks, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What it is known by when it comes again; for all that change one rollout. A `start` is known by the rollout's name
    /// as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<CommandKey>,
    /// Its span, if that has begun; not in the message, but in a header of it.
    #[serde(skip)]
    pub begun: Option<Begun>,
}

/// What was done about a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Answer {
    /// Always true.
    pub ok: bool,
    /// Whether the command changed anything. Asking twice does not.
    pub changed: bool,
    /// The rollouts that it was about, as they are now; one that was deleted, as it was.
    pub rollouts: Vec<State>,
    /// Why nothing was changed, where that is not plain; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Where a rollout is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// Its name.
    #[schema(value_type = String)]
    pub name: RolloutName,
    /// Its phase.
    pub phase: String,
    /// Why it is in that phase, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It is paused as soon as its plan is whole, unless it is resumed before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_be_paused: bool,
    /// The stage that it is at, if its spec has stages and it is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage: Option<StageName>,
    /// Its record's version.
    pub version: u64,
    /// How many devices it has; 0 until it is planned.
    pub devices: u64,
    /// Devices by class: `applied`, `taken`, `sent`, `silent`, `pending`, `not_applied`, `not_taken`, `not_sent`, `skipped`.
    /// All 0 until it is planned.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub ends: Ends,
    /// The span of the command that started it.
    #[serde(skip)]
    pub trace: Option<TraceContext>,
}

impl State {
    /// Where a rollout is, with its devices' outcomes.
    #[must_use]
    pub fn of(rollout: &Rollout, tallies: &[Tally]) -> Self {
        let counts = Tally::sum(counted(rollout, tallies));
        Self {
            name: rollout.spec.name.clone(),
            phase: rollout.phase.as_str().to_owned(),
            reason: rollout
                .phase
                .reason()
                .map(str::to_owned)
                .or_else(|| rollout.is_to_be_paused())
                .or_else(|| Some(format!("waits for {}", rollout.waits_to_be_planned()?))),
            to_be_paused: rollout.pause.is_some(),
            stage: rollout
                .stage_progress()
                .filter(|_| rollout.spec.is_staged())
                .map(|stage| stage.name.clone()),
            version: rollout.version.0,
            devices: rollout.plan.as_ref().map_or(0, |plan| plan.devices),
            ends: Ends::of(&counts, rollout.spec.message.answers()),
            trace: rollout.trace,
        }
    }

    /// It is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(
            &*self.phase,
            "succeeded" | "finished_with_failures" | "failed" | "aborted"
        )
    }
}

/// Why a command was not done, for machines. Sending it again does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// It is too large.
    TooLarge,
    /// It is not JSON.
    Unreadable,
    /// Its content type is of a version or kind that this release does not know.
    UnsupportedVersion,
    /// It is JSON, but no command.
    InvalidCommand,
    /// The spec has mistakes.
    InvalidSpec,
    /// The spec names a hub that is not configured.
    UnknownHub,
    /// Another spec has the rollout's name, or another rollout of its group is active.
    Conflict,
    /// There is no rollout of that name.
    UnknownRollout,
    /// The rollout is not in a state in which that can be done.
    NotPossible,
    /// A newer release has written the rollout; an orchestrator of that release can do the command.
    NewerRelease,
    /// What is stored of the rollout cannot be read.
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

    /// The cause as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The command was sound, but does not fit the rollout as it is.
    #[must_use]
    pub fn is_about_the_rollout(self) -> bool {
        matches!(
            self,
            Self::Conflict | Self::UnknownRollout | Self::NotPossible | Self::NewerRelease
        )
    }
}

/// A command that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Always false.
    pub ok: bool,
    /// Why, for machines.
    pub cause: Cause,
    /// Why, for people: what was found, and what is allowed.
    pub error: String,
    /// The mistakes or differences one by one, where there may be several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Refusal {
    /// A refusal without details.
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
    /// A command about one rollout.
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
            begun: None,
        }
    }

    /// Reads a command.
    ///
    /// # Errors
    /// [`Refusal`] with what is wrong.
    pub fn read(body: &[u8], content_type: Option<&str>) -> Result<Self, Refusal> {
        check_content_type(content_type)?;
        let unreadable = |what: String| Refusal::new(Cause::Unreadable, what);
        let text = std::str::from_utf8(body)
            .map_err(|_| unreadable("the command is not JSON: it is not UTF-8 text".into()))?;
        let document = Document::parse_json("the command", text)
            .map_err(|problems| unreadable(problems.in_one_line()))?;
        let command: Self = document.read().map_err(|problems| {
            let mistakes = problems.without_places().join("; ");
            Refusal::new(Cause::InvalidCommand, format!("not a command: {mistakes}"))
        })?;
        command.ask()?;
        Ok(command)
    }

    /// What is asked for, with all that it needs, and nothing else.
    ///
    /// # Errors
    /// [`Refusal`] that names what is missing, has no meaning, or is too long.
    pub(crate) fn ask(&self) -> Result<Ask<'_>, Refusal> {
        let kind = self.command;
        let is_about_all = matches!(kind, Kind::StopAll | Kind::ResumeAll);
        let is_about_one = !is_about_all && kind != Kind::Start;
        let judges = matches!(kind, Kind::Approve | Kind::Reject | Kind::Promote);
        let fields = [
            // Nothing of one rollout would know them again.
            ("key", !is_about_all, self.key.is_some()),
            ("rollout", is_about_one, self.rollout.is_some()),
            ("stage", judges || kind == Kind::Retry, self.stage.is_some()),
            ("outcomes", kind == Kind::Retry, !self.outcomes.is_empty()),
            ("spec", kind == Kind::Start, self.spec.is_some()),
        ];
        if let Some((field, ..)) = fields.iter().find(|(_, may, given)| *given && !may) {
            return Err(self.misses(field, "has no meaning"));
        }
        let texts = [
            ("reason", &self.reason, MAX_TEXT_CHARS),
            ("by", &self.by, MAX_BY_CHARS),
        ];
        for (field, text, most) in texts {
            if let Some(problem) = too_long(text.as_deref().unwrap_or_default(), most) {
                let error = format!("not a command: {field} {problem}");
                return Err(Refusal::new(Cause::InvalidCommand, error));
            }
        }
        let missing = |field| self.misses(field, "is missing");
        let stage = self.stage.as_ref();
        let deed = match kind {
            Kind::StopAll => return Ok(Ask::StopAll),
            Kind::ResumeAll => return Ok(Ask::ResumeAll),
            Kind::Start => {
                let spec = self.spec.as_ref();
                return spec.map(Ask::Start).ok_or_else(|| missing("spec"));
            }
            Kind::Pause => Deed::Pause,
            Kind::Resume => Deed::Resume,
            Kind::Abort => Deed::Abort,
            Kind::Approve => Deed::Approve { stage },
            Kind::Reject => Deed::Reject { stage },
            Kind::Promote => Deed::Promote {
                stage: stage.ok_or_else(|| missing("stage"))?,
            },
            Kind::Retry => Deed::Retry {
                stage,
                outcomes: &self.outcomes,
            },
            Kind::Delete => Deed::Delete,
            Kind::Status => Deed::Status,
        };
        let rollout = self.rollout.as_ref().ok_or_else(|| missing("rollout"))?;
        Ok(Ask::Of(rollout, deed))
    }

    fn misses(&self, field: &str, problem: &str) -> Refusal {
        let command = serde_json::to_value(self.command).unwrap_or_default();
        let error = format!("not a command: {field} {problem} in a command {command}");
        Refusal::new(Cause::InvalidCommand, error)
    }

    /// The spec of a `start`, checked.
    ///
    /// # Errors
    /// [`Refusal`] with every mistake, each with its field.
    pub fn spec(&self) -> Result<RolloutSpec, Refusal> {
        spec_of(self.spec.as_ref().map_or("null", Json::as_str))
    }

    /// Who asks and why.
    #[must_use]
    pub fn word(&self) -> Word {
        Word {
            by: self.by.clone(),
            reason: self.reason.clone(),
        }
    }

    /// The command by its key, if it has one and may change something.
    pub(crate) fn keyed(&self) -> Option<Keyed> {
        let key = self.key.clone();
        // A rollout that is removed remembers no commands.
        let key = key.filter(|_| !matches!(self.command, Kind::Status | Kind::Delete))?;
        let asks = Self {
            stage: self.stage.clone(),
            outcomes: self.outcomes.clone(),
            ..Self::about(self.command, None)
        };
        let asks = serde_json::to_string(&asks).unwrap_or_default();
        Some(Keyed { key, asks })
    }

    /// What is to be done, as it is written.
    #[must_use]
    pub fn name(&self) -> String {
        let command = serde_json::to_value(self.command).unwrap_or_default();
        command.as_str().unwrap_or_default().to_owned()
    }

    /// The rollout that it is about, where it names one.
    #[must_use]
    pub fn subject(&self) -> Option<RolloutName> {
        let of_spec = || {
            let spec = self.spec.as_ref()?.to_value();
            RolloutName::new(spec.get("name")?.as_str()?).ok()
        };
        self.rollout.clone().or_else(of_spec)
    }

    /// Who asks and why, in one line.
    #[must_use]
    pub fn because(&self) -> String {
        let command = self.name();
        match (&self.reason, &self.by) {
            (Some(reason), Some(by)) => format!("{reason} ({command} by {by})"),
            (Some(reason), None) => reason.clone(),
            (None, Some(by)) => format!("{command} by {by}"),
            (None, None) => command,
        }
    }
}

/// What a command asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask<'a> {
    Start(&'a Json),
    StopAll,
    ResumeAll,
    Of(&'a RolloutName, Deed<'a>),
}

/// What is to be done to one rollout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deed<'a> {
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

/// The spec in a text, checked.
///
/// # Errors
/// [`Refusal`] with every mistake, each with its field.
pub(crate) fn spec_of(text: &str) -> Result<RolloutSpec, Refusal> {
    let spec = RolloutSpec::read("the spec", text).map_err(|problems| {
        let mistakes = problems.without_places();
        Refusal::new(Cause::InvalidSpec, "the spec has mistakes").with(mistakes)
    })?;
    let files = files_of(&spec);
    if files.is_empty() {
        return Ok(spec);
    }
    let refusal = Refusal::new(
        Cause::InvalidSpec,
        "the spec names files, which cannot be read from here; inline them, as `twincast submit` does",
    );
    Err(refusal.with(files))
}

fn check_content_type(found: Option<&str>) -> Result<(), Refusal> {
    // Parameters say nothing new: JSON is UTF-8.
    let kind = found.map(|text| text.split(';').next().unwrap_or_default().trim());
    match kind {
        None | Some("") => Ok(()),
        // The case of letters says nothing (RFC 9110, 8.3.1).
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
                "the command's content type is {other:?}; this release knows {CONTENT_TYPE} and application/json"
            ),
        )),
    }
}

/// The fields that name files.
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
    fn commands_read_and_say_why() {
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
            assert_eq!(command.because(), "smoke (pause by ann)");
        }
        let written = serde_json::to_string(&Command::about(Kind::StopAll, None)).unwrap();
        assert_eq!(written, r#"{"command":"stop-all"}"#);
    }

    #[test]
    fn a_command_keeps_every_digit_and_takes_null_for_absent() {
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
    fn what_is_stored_of_a_command_has_an_end() {
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
    fn whatever_is_wrong_is_named() {
        let cases = [
            ("{", None, Cause::Unreadable, "not JSON"),
            (
                r#"{"command":"pause","rollout":"a","rollout":"b"}"#,
                None,
                Cause::Unreadable,
                "rollout: is here twice",
            ),
            (
                r#"{"command":"start","spec":{"name":"a","message":{"body":{"json":{"a":1,"a":2}}}}}"#,
                None,
                Cause::Unreadable,
                "spec.message.body.json.a: is here twice",
            ),
            (
                r#"{"command":"start","spec":null}"#,
                None,
                Cause::InvalidCommand,
                "spec is missing",
            ),
            ("[]", None, Cause::InvalidCommand, "not a command"),
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
                "rollout has no meaning",
            ),
            (
                r#"{"command":"stop-all","key":"k"}"#,
                None,
                Cause::InvalidCommand,
                "key has no meaning",
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
