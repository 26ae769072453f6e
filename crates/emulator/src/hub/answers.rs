//! What simulated devices answer: the reported property `update`, with the id of the message that it is about.

use serde_json::{Value, json};

use super::MessageState;
use super::core::Hub;
use crate::fleet::{Group, iso_time};

/// The reported property of the answer.
pub(crate) const PROPERTY: &str = "update";

impl Hub {
    /// The time of which queries show reported properties, in milliseconds like [`Hub::now_ms`].
    pub(crate) fn queried_ms(&self) -> u64 {
        self.now_ms().saturating_sub(self.query_lag_ms())
    }

    pub(crate) fn query_lag_ms(&self) -> u64 {
        u64::try_from(self.config.query_lag.as_millis()).unwrap_or(u64::MAX)
    }

    /// The answer of a simulated device as it was at a time; none if its group does not answer, or it had completed no
    /// message by then.
    pub(crate) fn simulated_answer(
        &self,
        group: &Group,
        position: u32,
        at_ms: u64,
    ) -> Option<Value> {
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
        let fails = group.fails(position);
        let (state, error, at) = match (at_ms >= done_ms, fails) {
            (false, _) => ("installing", None, taken_ms),
            (true, false) => ("applied", None, done_ms),
            (true, true) => ("failed", Some(answers.error.as_str()), done_ms),
        };
        let error = error.map(|error| {
            let (code, text) = error.split_once(": ").unwrap_or(("failed", error));
            json!({ "code": code, "text": text })
        });
        Some(json!({
            "id": store.id(message),
            "state": state,
            "error": error,
            "attempt": 1,
            "at": iso_time(at),
        }))
    }
}
