//! The spec of a rollout, written by a user in YAML or JSON.
//!
//! [`Document`] keeps the position of every value. [`RolloutSpec::read`] returns either a fully
//! checked spec, or every problem with its field and line.

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
pub use continuous::{Continuous, LATE_STAGE, MAX_SCAN_INTERVAL, MIN_SCAN_INTERVAL};
pub use document::{Document, InputValue, MAX_DOCUMENT_BYTES, Problem, Problems, difference};
pub use limits::{
    MAX_ACTOR_CHARS, MAX_DEVICES_INLINE, MAX_MESSAGE_BYTES, MAX_STAGES, MAX_TEXT_CHARS, MAX_TTL,
    MAX_WEIGHT, MIN_TTL, length_problem,
};
pub use message::{Body, MessageSpec, NoContent};
pub use metric::{
    Comparison, Condition, InvalidCondition, MAX_MEASUREMENTS, MAX_METRICS, MAX_PROMQL_CHARS,
    MIN_EVERY, Metric,
};
pub use order::Order;
pub use pace::StagePace;
pub use quantity::{HumanDuration, InvalidDuration, InvalidPercent, InvalidRate, Percent, Rate};
pub use ramp::{MAX_EVERY, MAX_FACTOR, MIN_FACTOR, Ramp, RampOf};
pub use rollout_spec::{Concurrency, ConcurrencyPolicy, Delivery, RolloutSpec};
pub use schedule::{
    CivilDate, Closed, Day, Freeze, HORIZON, InvalidDate, InvalidTimeOfDay, InvalidZone,
    MAX_FREEZES, MAX_WINDOW, MAX_WINDOWS, MIN_WINDOW, Schedule, ScheduleState, TimeOfDay,
    UnknownZone, Window, ZoneName,
};
pub use stage::{
    ApprovalRule, EVIDENCE_WITHIN, Gate, OnFailure, SmallSample, Stage, SuccessLevel, Unconfirmed,
};
pub use target::{Exclusion, Target};

pub use crate::query::MAX_CONDITION_CHARS;
