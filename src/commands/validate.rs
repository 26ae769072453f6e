//! `twincast validate` and `twincast schema`.

use serde_json::json;
use twincast_core::gate::advice;
use twincast_core::spec::{Problem, Problems, RolloutSpec};
use twincast_orchestrator::view::plan::MessageView;

use crate::args::ValidateArgs;
use crate::config::Settings;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::output::{Output, message};
use crate::prometheus;
use crate::specfile;

pub(crate) fn validate(
    args: &ValidateArgs,
    settings: &Settings,
    output: &Output,
) -> Result<ExitCode, Failure> {
    let file = specfile::read(&args.spec)?;
    let schedule = file.spec.schedule.as_ref();
    let now = engine::clock().now();
    if let Some(why) = schedule.and_then(|schedule| schedule.never_opens(now)) {
        let problems = Problems {
            origin: args.spec.display().to_string(),
            problems: vec![Problem::new("schedule", why)],
        };
        return Err(Failure::new(ExitCode::Refused, problems));
    }
    if let Some(what) = prometheus::missing(&file.spec, settings) {
        output.note(&format!("Note: {what}: the rollout would be refused."));
    }
    for advice in advice::of_spec(&file.spec) {
        output.note(&format!("Note: {advice}."));
    }
    let condition = file.spec.condition();
    let devices = match (file.spec.has_list(), condition.is_empty()) {
        (true, _) => "the listed devices".to_owned(),
        (false, true) => "all devices".to_owned(),
        (false, false) => format!("devices where {condition}"),
    };
    let content = file.spec.message.content();
    let content = content.map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let sent = MessageView::of(&file.spec.name, &content);
    let text = format!(
        "{}: rollout {} is valid\n  target: {devices}\n  message: {}",
        args.spec.display(),
        file.spec.name,
        message(&sent)
    );
    output.result(
        &json!({ "valid": true, "rollout": file.spec.name, "condition": condition, "message": sent }),
        &text,
    );
    Ok(ExitCode::Success)
}

pub(crate) fn schema(output: &Output) -> ExitCode {
    let schema =
        serde_json::to_string_pretty(&RolloutSpec::json_schema()).expect("a schema is plain data");
    output.out(&schema);
    ExitCode::Success
}
