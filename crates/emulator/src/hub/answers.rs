//! The answers of simulated devices: the reported property `update`, with the id of the answered
//! message.

use serde_json::{Value, json};

use super::MessageState;
use super::core::Hub;
use crate::fleet::{Group, iso_time};

/// The name of the reported property with the answer.
pub(crate) const PROPERTY: &str = "update";

impl Hub {
    /// Returns the time for which queries show reported properties, in milliseconds as
    /// [`Hub::now_ms`].
    pub(crate) fn queried_ms(&self) -> u64 {
        self.now_ms().saturating_sub(self.query_lag_ms())
    }

    pub(crate) fn query_lag_ms(&self) -> u64 {
        u64::try_from(self.config.query_lag.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the answer of a simulated device at the time `at_ms`. Returns `None` if the device's
    /// group does not answer, or if the device had completed no message by then.
    pub(crate) fn simulated_answer(
        &self,
        group: &Group,
        position: u32,
        at_ms: u64,
    ) -> Option<SimulatedAnswer> {
        let answers = group.answers()?;
        let state = self.state();
        let store = &state.store;
        let messages = store.messages_of(group.start + position);
        let delivered = messages.filter_map(|number| {
            let message = store.message(number)?;
            let ended_ms = message.enqueued_ms + u64::from(message.done_after_ms);
            let is_taken = message.state == MessageState::Delivered && ended_ms <= at_ms;
            is_taken.then_some((message, ended_ms))
        });
        let (message, taken_ms) = delivered.max_by_key(|(_, ended_ms)| *ended_ms)?;
        let after = group.answers_after(position);
        let done_ms = taken_ms + u64::try_from(after.as_millis()).unwrap_or(u64::MAX >> 1);
        let (state, error, since_ms) = match (at_ms >= done_ms, group.fails(position)) {
            (false, _) => ("installing", None, taken_ms),
            (true, false) => ("applied", None, done_ms),
            (true, true) => ("failed", Some(answers.error.clone()), done_ms),
        };
        Some(SimulatedAnswer {
            id: store.id(message).to_owned(),
            state,
            error,
            since_ms,
        })
    }
}

/// The answer of a simulated device.
#[derive(Debug)]
pub(crate) struct SimulatedAnswer {
    id: String,
    state: &'static str,
    error: Option<String>,
    since_ms: u64,
}

impl SimulatedAnswer {
    /// Returns the value at a path below the property. The paths `id` and `state` are served
    /// without building the whole value, since queries read them for many devices.
    pub(crate) fn at(self, path: &[String]) -> Option<Value> {
        match path {
            [name] if name == "id" => Some(Value::String(self.id)),
            [name] if name == "state" => Some(Value::from(self.state)),
            path => {
                let value = Value::from(self);
                let found = path
                    .iter()
                    .try_fold(&value, |value, name| value.get(name))?;
                (!found.is_null()).then(|| found.clone())
            }
        }
    }
}

impl From<SimulatedAnswer> for Value {
    fn from(answer: SimulatedAnswer) -> Self {
        let error = answer.error.as_deref().map(|error| {
            let (code, text) = error.split_once(": ").unwrap_or(("failed", error));
            json!({ "code": code, "text": text })
        });
        json!({
            "id": answer.id,
            "state": answer.state,
            "error": error,
            "attempt": 1,
            "at": iso_time(answer.since_ms),
        })
    }
}
