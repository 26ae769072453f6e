//! Checks of a spec beyond its types.

use std::collections::BTreeSet;

use twincast_hub_limits::{MAX_ENCODED_ID_BYTES, encoded_id};

use super::budget::AtMost;
use super::continuous::LATE_STAGE;
use super::document::{Document, Problem, Problems};
use super::limits::{
    MAX_COUNTED, MAX_DEVICES_INLINE, MAX_MESSAGE_BYTES, MAX_STAGES, MAX_TEXT_CHARS, MAX_TTL,
    MAX_WAIT, MAX_WEIGHT, MIN_TTL, length_problem,
};
use super::message::NoContent;
use super::metric;
use super::order::Order;
use super::quantity::Percent;
use super::ramp::{Ramp, RampOf};
use super::rollout_spec::RolloutSpec;
use super::stage::{Gate, Stage, SuccessLevel};
use super::target::{Exclusion, Target};
use crate::message::{Ack, Content};
use crate::query::{
    MAX_CONDITION_CHARS, MAX_QUERY_CHARS, OneOrMany, TagSelector, condition_problem,
};

impl RolloutSpec {
    /// Reads and checks a spec. `origin` names the text for people, for example by a path.
    ///
    /// # Errors
    /// Returns all problems, each with field and line.
    ///
    /// # Example
    /// ```
    /// use twincast_core::spec::{Problems, RolloutSpec};
    ///
    /// let text = "\
    /// name: firmware-1.4.2
    /// target: {tags: {region: [eu, us]}}
    /// message: {body: {text: update}, ttl: 72h}
    /// rate: 600
    /// ";
    /// let problems = RolloutSpec::read("firmware.yaml", text).unwrap_err().problems;
    /// let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
    /// assert_eq!(fields, ["message.ttl", "rate"]);
    ///
    /// let text = text.replace("72h", "24h").replace("600", "600/min");
    /// let spec = RolloutSpec::read("firmware.yaml", &text)?;
    /// assert_eq!(spec.condition(), "tags.region IN ['eu', 'us']");
    /// # Ok::<(), Problems>(())
    /// ```
    pub fn read(origin: impl Into<String>, text: &str) -> Result<Self, Problems> {
        const PLACEHOLDERS: [(&str, &str); 4] = [
            ("name", r#""a""#),
            ("target", r#"{"all":true}"#),
            ("message", r#"{"body":{"text":""}}"#),
            ("message.body", r#"{"text":""}"#),
        ];
        Document::parse(origin, text)?.read_and_check(&PLACEHOLDERS, problems_of)
    }

    /// Returns the problems of a spec changed after reading, for example by inlining files.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        problems_of(self)
    }
}

/// Returns all problems of a spec with values of the right types.
fn problems_of(spec: &RolloutSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    target(&spec.target, &mut problems);
    for (index, rule) in spec.target.exclude.iter().enumerate() {
        exclusion(index, rule, &mut problems);
    }
    let mut seen = BTreeSet::new();
    for (index, path) in spec.batch_by.iter().enumerate() {
        if !seen.insert(path) {
            problems.push(Problem::new(
                format!("batch_by[{index}]"),
                format!("tag {path} is named twice"),
            ));
        }
    }
    if spec.batch_by.len() > 8 {
        problems.push(Problem::new(
            "batch_by",
            format!("{} tags are too many; at most 8", spec.batch_by.len()),
        ));
    }
    if !(1..=MAX_WEIGHT).contains(&spec.weight) {
        problems.push(Problem::new(
            "weight",
            format!("is {}; from 1 to {MAX_WEIGHT} is allowed", spec.weight),
        ));
    }
    order(spec, spec.order.as_ref(), "order", &mut problems);
    budgets(spec, &mut problems);
    if let Some(given) = &spec.ramp {
        ramp(spec, given, "ramp", &mut problems);
    }
    stages(spec, &mut problems);
    answers(spec, &mut problems);
    continuous(spec, &mut problems);
    if let Some(schedule) = &spec.schedule {
        let within = schedule.problems().into_iter();
        problems.extend(within.map(|(path, what)| Problem::new(format!("schedule.{path}"), what)));
        if let Some(tag) = schedule
            .zone_tag
            .as_ref()
            .filter(|tag| !spec.batch_by.contains(tag))
        {
            let what = format!(
                "tag {tag} must be one of batch_by, so that all devices of a batch have one zone"
            );
            problems.push(Problem::new("schedule.zone_tag", what).depends_on("batch_by"));
        }
    }
    texts(spec, &mut problems);
    message(spec, &mut problems);
    let condition = spec.condition().chars().count();
    if condition > MAX_CONDITION_CHARS {
        problems.push(Problem::new(
            "target",
            format!(
                "the query's condition would have {condition} characters; at most \
                 {MAX_CONDITION_CHARS} are allowed"
            ),
        ));
    }
    problems
}

/// Checks the texts for people. These texts are stored as long as the rollout.
fn texts(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    let mut texts = vec![
        ("description".to_owned(), &spec.description),
        ("salt".to_owned(), &spec.salt),
    ];
    for (index, rule) in spec.target.exclude.iter().enumerate() {
        texts.push((format!("target.exclude[{index}].reason"), &rule.reason));
    }
    let freezes = spec.schedule.iter().flat_map(|schedule| &schedule.freeze);
    for (index, freeze) in freezes.enumerate() {
        texts.push((format!("schedule.freeze[{index}].reason"), &freeze.reason));
    }
    for (field, text) in texts {
        let text = text.as_deref().unwrap_or_default();
        problems.extend(length_problem(text, MAX_TEXT_CHARS).map(|what| Problem::new(field, what)));
    }
}

fn target(target: &Target, problems: &mut Vec<Problem>) {
    let by_query = !target.tags.is_empty() || target.condition.is_some();
    let ways = [
        by_query,
        !target.devices.is_empty(),
        target.devices_file.is_some(),
        target.all,
    ];
    match ways.iter().filter(|way| **way).count() {
        0 => problems.push(Problem::new(
            "target",
            "selects no devices; give tags, where, devices, devices_file, or `all: true` for every \
             device",
        )),
        1 => {}
        _ => problems.push(Problem::new(
            "target",
            "selects devices in more than one way; give one of: tags and/or where, devices, \
             devices_file, all",
        )),
    }
    selector("target.tags", &target.tags, problems);
    if target
        .condition
        .as_ref()
        .is_some_and(|c| c.trim().is_empty())
    {
        problems.push(Problem::new(
            "target.where",
            "is empty; omit it, or write `all: true` for every device",
        ));
    }
    if let Some(what) = target.condition.as_deref().and_then(condition_problem) {
        problems.push(Problem::new("target.where", what));
    }
    if target.devices.len() > MAX_DEVICES_INLINE {
        problems.push(Problem::new(
            "target.devices",
            format!(
                "{} ids are too many; at most {MAX_DEVICES_INLINE} are allowed, put more into a \
                 devices_file",
                target.devices.len()
            ),
        ));
    }
    let mut seen = BTreeSet::new();
    for (index, hub) in target.hubs.iter().enumerate() {
        if !seen.insert(hub) {
            problems.push(Problem::new(
                format!("target.hubs[{index}]"),
                format!("hub {hub} is named twice"),
            ));
        }
    }
}

fn exclusion(index: usize, rule: &Exclusion, problems: &mut Vec<Problem>) {
    let field = format!("target.exclude[{index}]");
    let ways = [
        !rule.tags.is_empty(),
        !rule.devices.is_empty(),
        rule.devices_file.is_some(),
    ];
    if ways.iter().filter(|way| **way).count() != 1 {
        problems.push(Problem::new(
            &field,
            "must have exactly one of tags, devices and devices_file",
        ));
    }
    selector(&format!("{field}.tags"), &rule.tags, problems);
}

fn selector(field: &str, tags: &TagSelector, problems: &mut Vec<Problem>) {
    for (path, values) in tags {
        if matches!(values, OneOrMany::Many(values) if values.is_empty()) {
            problems.push(Problem::new(
                format!("{field}.{path}"),
                "is an empty list, which no device matches",
            ));
        }
    }
}

fn stages(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    if spec.stages.len() > MAX_STAGES {
        problems.push(Problem::new(
            "stages",
            format!(
                "{} stages are too many; at most {MAX_STAGES}",
                spec.stages.len()
            ),
        ));
    }
    if spec.salt.as_ref().is_some_and(String::is_empty) {
        problems.push(Problem::new(
            "salt",
            "is empty; omit it to use the rollout's name",
        ));
    }
    let mut names = BTreeSet::new();
    let mut reached = None;
    for (index, stage) in spec.stages.iter().enumerate() {
        let field = format!("stages[{index}]");
        let is_last = index + 1 == spec.stages.len();
        if !names.insert(&stage.name) {
            problems.push(Problem::new(
                format!("{field}.name"),
                format!("stage {} is named twice", stage.name),
            ));
        }
        if !is_last && stage.takes_every_device() {
            problems.push(Problem::new(
                &field,
                "takes every device and leaves none to later stages; give it tags, percent or \
                 max_devices",
            ));
        }
        if is_last && !stage.takes_every_device() && stage.name.as_str() == "rest" {
            problems.push(Problem::new(
                format!("{field}.name"),
                "\"rest\" is reserved for the devices that no stage takes; give this stage another \
                 name",
            ));
        }
        if spec.continuous.is_some() && stage.name.as_str() == LATE_STAGE {
            problems.push(Problem::new(
                format!("{field}.name"),
                "\"late\" is reserved for late joiners; give this stage another name",
            ));
        }
        share(stage, &field, &mut reached, problems);
        selector(&format!("{field}.tags"), &stage.tags, problems);
        order(
            spec,
            stage.order.as_ref(),
            &format!("{field}.order"),
            problems,
        );
        if let Some(given) = &stage.ramp {
            ramp(spec, given, &format!("{field}.ramp"), problems);
        }
        if let Some(given) = &stage.gate {
            gate(spec, stage, given, &format!("{field}.gate"), problems);
        }
    }
}

/// Checks the part of the devices taken by a stage. `reached` is the percent taken by earlier
/// stages by the cohort alone.
fn share(stage: &Stage, field: &str, reached: &mut Option<Percent>, problems: &mut Vec<Problem>) {
    if let Some(percent) = stage.percent {
        if percent == Percent::NONE {
            problems.push(Problem::new(
                format!("{field}.percent"),
                "is 0%, which takes no device",
            ));
        }
        // Between stages that take by the cohort alone, a percent no higher than before takes no
        // device.
        if stage.tags.is_empty() {
            if reached.is_some_and(|reached| percent <= reached) {
                problems.push(Problem::new(
                    format!("{field}.percent"),
                    format!(
                        "is {percent}, but it is cumulative: an earlier stage has taken as much"
                    ),
                ));
            }
            if stage.max_devices.is_none() {
                *reached = Some(percent);
            }
        }
    }
    if let Some(max) = stage.max_devices
        && !(1..=MAX_COUNTED).contains(&max)
    {
        problems.push(Problem::new(
            format!("{field}.max_devices"),
            format!("is {max}; from 1 to {MAX_COUNTED} is allowed, above that use percent"),
        ));
    }
}

fn answers(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    let problem = spec.convention().and_then(|it| it.problem());
    problems.extend(problem.map(|(part, what)| Problem::new(format!("answers.{part}"), what)));
}

fn continuous(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    let Some(continuous) = &spec.continuous else {
        return;
    };
    let own = continuous.problems().into_iter();
    problems.extend(own.map(|(part, what)| Problem::new(format!("continuous.{part}"), what)));
    if spec.has_list() {
        let what = "needs a target with tags, where or all: no device can join a list";
        problems.push(Problem::new("continuous", what).depends_on("target"));
    }
}

fn budgets(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    if !spec.budgets.is_empty() && spec.message.ack != Ack::Full {
        let what = "need message.ack: full, so that it is known which devices are done";
        problems.push(Problem::new("budgets", what).depends_on("message.ack"));
    }
    let mut seen = BTreeSet::new();
    for (index, budget) in spec.budgets.iter().enumerate() {
        let field = format!("budgets[{index}]");
        let tag = &budget.tag;
        if !spec.batch_by.contains(tag) {
            let what = format!(
                "tag {tag} must be one of batch_by, so that all devices of a batch have one value"
            );
            problems.push(Problem::new(format!("{field}.tag"), what).depends_on("batch_by"));
        }
        if !seen.insert(tag) {
            let what = format!("tag {tag} has a budget already");
            problems.push(Problem::new(format!("{field}.tag"), what));
        }
        let is_none = match budget.at_most {
            AtMost::Devices(devices) => devices == 0,
            AtMost::Percent(percent) => percent == Percent::NONE,
        };
        if is_none {
            let what = format!("is {}, which allows no sends", budget.at_most);
            problems.push(Problem::new(format!("{field}.at_most"), what));
        }
        if let Some(deadline) = budget.deadline
            && deadline.0 > MAX_WAIT
        {
            let what = format!("{deadline} is too long; at most 90d");
            problems.push(Problem::new(format!("{field}.deadline"), what));
        }
    }
}

fn order(spec: &RolloutSpec, order: Option<&Order>, field: &str, problems: &mut Vec<Problem>) {
    if let Some(Order::By(tag)) = order
        && !spec.batch_by.contains(tag)
    {
        let what = format!(
            "tag {tag} must be one of batch_by, so that all devices of a batch have one position \
             in the order"
        );
        problems.push(Problem::new(format!("{field}.by"), what).depends_on("batch_by"));
    }
}

fn ramp(spec: &RolloutSpec, ramp: &Ramp, field: &str, problems: &mut Vec<Problem>) {
    let own = ramp.problems().into_iter();
    problems.extend(own.map(|(part, what)| Problem::new(format!("{field}.{part}"), what)));
    if ramp.of == RampOf::Succeeded && matches!(spec.message.ack, Ack::None | Ack::Negative) {
        let what = "succeeded needs message.ack: full or positive, so that successes are reported";
        problems.push(Problem::new(format!("{field}.of"), what).depends_on("message.ack"));
    }
}

fn gate(spec: &RolloutSpec, stage: &Stage, gate: &Gate, field: &str, problems: &mut Vec<Problem>) {
    let wrong = |part: &str, what: String| Problem::new(format!("{field}.{part}"), what);
    let asks = gate.success_at_least.is_some()
        || gate.failure_above.is_some()
        || gate.bake.is_some()
        || !gate.metrics.is_empty()
        || gate.approval.is_some();
    if !asks {
        let all = "success_at_least, failure_above, bake, metrics, approval";
        problems.push(wrong(
            "success_at_least",
            format!(
                "is missing: the gate of stage {} has no condition; give at least one of {all}",
                stage.name
            ),
        ));
    }
    if gate.counts != SuccessLevel::Enqueued && !gate.has_share_rules() {
        problems.push(wrong(
            "counts",
            "needs success_at_least or failure_above".into(),
        ));
    }
    if gate.counts == SuccessLevel::Delivered {
        let (missing, needed) = match spec.message.ack {
            Ack::None | Ack::Negative => (
                true,
                "message.ack: full or positive, so that deliveries are reported",
            ),
            Ack::Positive if gate.failure_above.is_some() => (
                true,
                "message.ack: full, so that failures are reported, too",
            ),
            Ack::Positive | Ack::Full => (false, ""),
        };
        if missing {
            let what = format!("delivered needs {needed}");
            problems.push(wrong("counts", what).depends_on("message.ack"));
        }
    }
    let answered = spec.convention().is_some();
    problems.extend(applied_when(gate, answered).map(|what| wrong("applied_when", what)));
    if gate.min_sample == 0 {
        problems.push(wrong("min_sample", "is 0; the minimum is 1".into()));
    }
    let waits = [
        ("deadline", gate.deadline),
        ("evidence_within", gate.evidence_within),
        ("bake", gate.bake),
        (
            "approval.within",
            gate.approval.as_ref().and_then(|rule| rule.within),
        ),
    ];
    for (part, wait) in waits {
        if let Some(wait) = wait
            && wait.0 > MAX_WAIT
        {
            problems.push(wrong(part, format!("{wait} is too long; at most 90d")));
        }
    }
    metric::check(&gate.metrics, field, problems);
}

/// Returns the problem of a gate's `applied_when`, if any.
fn applied_when(gate: &Gate, answered: bool) -> Option<String> {
    match (&gate.applied_when, gate.counts) {
        (None, SuccessLevel::Applied) if !answered => Some(
            "is missing: give the condition that a device fulfils once it has applied the change, \
             or `answers: true` if devices answer in their twins"
                .into(),
        ),
        (Some(_), SuccessLevel::Enqueued | SuccessLevel::Delivered) => {
            Some("is allowed only with `counts: applied`".into())
        }
        (Some(condition), SuccessLevel::Applied) if condition.trim().is_empty() => {
            Some("is empty".into())
        }
        (Some(condition), SuccessLevel::Applied) => condition_problem(condition).or_else(|| {
            let is_long = condition.chars().count() > MAX_QUERY_CHARS / 4;
            is_long.then(|| format!("is too long; at most {} characters", MAX_QUERY_CHARS / 4))
        }),
        _ => None,
    }
}

/// Returns a problem if the message is larger than the hub accepts, with the longest possible ids.
fn too_large(spec: &RolloutSpec, content: &Content) -> Option<Problem> {
    let target = &spec.target;
    let listed = target.devices.iter().map(|id| encoded_id(id.as_str()));
    // If the hub finds the devices, any id may occur.
    let longest = listed.max().unwrap_or(MAX_ENCODED_ID_BYTES);
    let bytes = content.size(&spec.name, longest);
    let body = content.body.len();
    let spare = MAX_MESSAGE_BYTES.saturating_sub(bytes - body);
    (bytes > MAX_MESSAGE_BYTES).then(|| {
        Problem::new(
            "message",
            format!(
                "a hub accepts at most {MAX_MESSAGE_BYTES} bytes with properties, content fields \
                 and the longest ids: this message has {bytes}; there is room for a body of \
                 {spare}, and the body has {body}"
            ),
        )
    })
}

fn message(spec: &RolloutSpec, problems: &mut Vec<Problem>) {
    let message = &spec.message;
    if let Some(ttl) = message.ttl
        && !(MIN_TTL..=MAX_TTL).contains(&ttl.0)
    {
        problems.push(Problem::new(
            "message.ttl",
            format!("{ttl} is out of bounds; the hub accepts 1m to 2d"),
        ));
    }
    for key in message.properties.keys() {
        let allowed = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-^_`|~.".contains(&b));
        let field = format!("message.properties.{key}");
        if !allowed {
            problems.push(Problem::new(&field, format!("{key:?} is not a property name; allowed are letters, digits and !#$%&'*+-^_`|~.")));
        } else if key.to_ascii_lowercase().starts_with("iothub-") {
            problems.push(Problem::new(
                &field,
                "names that start with \"iothub-\" are reserved for the hub; for feedback, use \
                 message.ack",
            ));
        }
    }
    for (field, value) in [
        ("message.content_type", &message.content_type),
        ("message.content_encoding", &message.content_encoding),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_ascii()) {
            problems.push(Problem::new(field, "must be ASCII"));
        }
    }
    match message.content() {
        Ok(content) => problems.extend(too_large(spec, &content)),
        // A body in a file is checked once the file is read.
        Err(NoContent::File(_)) => {}
        Err(NoContent::Base64(error)) => {
            problems.push(Problem::new(
                "message.body.base64",
                format!("is not base64: {error}"),
            ));
        }
    }
}
