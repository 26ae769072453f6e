//! The simulated devices: end messages when due, and turn each end into feedback.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::core::Hub;
use super::feedback::{FeedbackBatch, FeedbackSettlement, Record};
use crate::fleet::iso_time;

/// The interval between scans for due messages. Simulated latencies are tens of milliseconds and
/// more.
const TICK: Duration = Duration::from_millis(5);
/// The number of messages to end under one lock: about a millisecond of work.
const ENDS_PER_LOCK: usize = 2_000;

impl Hub {
    /// Runs the simulated devices until `stop`.
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

    /// Ends due messages, about [`ENDS_PER_LOCK`] at most. Returns the number of ended messages.
    pub(crate) fn run_due(&self) -> usize {
        let now_ms = self.now_ms();
        let mut state = self.state();
        let state = &mut *state;
        state.end_locks(now_ms);
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
        if feedback.form_batches(now_ms) {
            self.feedback_may_be_ready();
        }
        count
    }

    /// Takes the oldest feedback batch with a reportable record. Records of deleted devices are
    /// left out, and a batch without any other record is dropped.
    pub(crate) fn take_feedback(&self) -> Option<(FeedbackBatch, FeedbackMessage)> {
        loop {
            let batch = self.state().feedback.take()?;
            let records = self.feedback_records(&batch);
            if records.is_empty() {
                self.settle_taken_feedback(batch, FeedbackSettlement::Rejected);
                continue;
            }
            let message = FeedbackMessage {
                made_ms: batch.made_ms,
                deliveries: batch.deliveries,
                json: Value::Array(records).to_string().into_bytes(),
            };
            return Some((batch, message));
        }
    }

    fn feedback_records(&self, batch: &FeedbackBatch) -> Vec<Value> {
        let registry = self.registry();
        let state = self.state();
        batch
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
            .collect()
    }
}

/// A feedback batch in the form sent to services.
#[derive(Debug)]
pub(crate) struct FeedbackMessage {
    pub(crate) made_ms: u64,
    /// The number of earlier deliveries of this batch.
    pub(crate) deliveries: u32,
    /// The records, as a JSON array.
    pub(crate) json: Vec<u8>,
}
