//! The devices' side: ends messages when their time comes and turns the ends into feedback.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::core::Hub;
use super::feedback::{FeedbackBatch, Record};

/// How often due messages are looked for. Latencies are tens of milliseconds and more.
const TICK: Duration = Duration::from_millis(5);
/// How many messages end under one lock: about a millisecond's work.
const ENDS_PER_LOCK: usize = 2_000;

impl Hub {
    /// Runs the devices until `stop`.
    pub(crate) async fn run_devices(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            while self.run_due() >= ENDS_PER_LOCK {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Ends some due messages; returns how many.
    pub(crate) fn run_due(&self) -> usize {
        let now_ms = self.now_ms();
        let mut state = self.state();
        let state = &mut *state;
        let feedback = &mut state.feedback;
        let count = state
            .store
            .run_due(now_ms, ENDS_PER_LOCK, |number, message| {
                if message.state == super::MessageState::Delivered {
                    self.mark_completed(message.device, now_ms);
                }
                if message.ack.wants(message.state) {
                    feedback.push(Record {
                        at_ms: now_ms,
                        message: number,
                        state: message.state,
                    });
                }
            });
        if feedback.cut(now_ms) {
            self.feedback_may_be_ready();
        }
        count
    }

    /// The body of a feedback message. Records of devices that are gone are left out.
    pub(crate) fn feedback_json(&self, batch: &FeedbackBatch) -> Vec<u8> {
        let registry = self.registry();
        let state = self.state();
        let records: Vec<Value> = batch
            .records
            .iter()
            .filter_map(|record| {
                let message = state.store.message(record.message)?;
                let (device_id, generation) = registry.id_and_generation(message.device)?;
                let status = record.state.feedback_status()?;
                Some(json!({
                    "originalMessageId": state.store.id(message),
                    "description": status,
                    "deviceGenerationId": generation,
                    "deviceId": device_id,
                    "enqueuedTimeUtc": iso_time(record.at_ms),
                    "statusCode": status,
                }))
            })
            .collect();
        Value::Array(records).to_string().into_bytes()
    }
}

/// A time in the hub's format.
pub(crate) fn iso_time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |time| time.to_string())
}
