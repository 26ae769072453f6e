//! A rollout's spec: what a user writes, in YAML or JSON.
//!
//! [`Document`] keeps the place of every value; [`RolloutSpec::read`] gives either a spec of
//! which nothing need be checked again, or every problem with its field and line.

mod answers;
mod budget;
mod by_group;
mod continuous;
mod document;
mod limits;
mod message;
mod metric;
mod order;
mod pace;
mod quantity;
mod ramp;
mod rollout_spec;
mod schedule;
mod stage;
mod staging;
mod target;
#[cfg(test)]
mod tests;
mod validate;

pub use answers::{Answers, Convention, MAX_ANSWERS_WITHIN};
pub use budget::{AtMost, Budget, InvalidAtMost};
pub use continuous::{Continuous, LATE, MAX_LOOK_EVERY, MIN_LOOK_EVERY};
pub use document::{Document, Given, MAX_DOCUMENT_BYTES, Problem, Problems, difference};
pub use limits::{
    MAX_BY_CHARS, MAX_DEVICES_INLINE, MAX_MESSAGE_BYTES, MAX_STAGES, MAX_TEXT_CHARS, MAX_TTL,
    MAX_WEIGHT, MIN_TTL, too_long,
};
pub use message::{Body, MessageSpec, NoContent};
pub use metric::{
    Comparison, Condition, InvalidCondition, MAX_MEASUREMENTS, MAX_METRICS, MAX_PROMQL_CHARS,
    MIN_EVERY, Metric,
};
pub use order::Order;
pub use pace::StagePace;
pub use quantity::{InvalidPercent, InvalidRate, InvalidSpan, Percent, Rate, Span};
pub use ramp::{MAX_EVERY, MAX_FACTOR, MIN_FACTOR, Ramp, RampOf};
pub use rollout_spec::{Conflict, Delivery, RolloutSpec};
pub use schedule::{
    CivilDate, Closed, Day, Freeze, HORIZON, InvalidDate, InvalidTimeOfDay, InvalidZone,
    MAX_FREEZES, MAX_WINDOW, MAX_WINDOWS, MIN_WINDOW, Opening, Schedule, TimeOfDay, UnknownZone,
    Window, ZoneName,
};
pub use stage::{
    ApprovalRule, EVIDENCE_WITHIN, Gate, OnFailure, Rung, Stage, TooLittle, Unconfirmed,
};
pub use target::{Exclusion, Target};

pub use crate::query::MAX_CONDITION_CHARS;
