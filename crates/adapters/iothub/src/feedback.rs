//! Feedback: converts the client's types to the port's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use twincast_core::outcome::Outcome;
use twincast_core::ports::{
    Feedback, FeedbackBatch, FeedbackRecord, FeedbackTicket, HubError, HubTrouble,
};
use twincast_core::time::Timestamp;
use twincast_iothub::{
    Client, FeedbackBatch as HubBatch, FeedbackError, FeedbackReceiver,
    FeedbackRecord as HubRecord, FeedbackStatus, SettleError, UnparsableFeedback,
};

use crate::classify::classify_link_failure;

/// A hub's feedback, over a link of its own.
pub(crate) struct HubFeedback {
    hub: String,
    client: Client,
    /// `None` only during `drop`.
    receiver: Option<FeedbackReceiver>,
    /// An unknown status has been logged; only the first such record is logged.
    unknown_status_logged: bool,
}

impl HubFeedback {
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            hub: client.host_name().to_owned(),
            client: client.clone(),
            receiver: Some(FeedbackReceiver::new(client)),
            unknown_status_logged: false,
        }
    }

    fn batch(&mut self, mut batch: HubBatch) -> FeedbackBatch {
        if let Some(first) = batch.unreadable.first() {
            let count = batch.unreadable.len();
            tracing::warn!(hub = %self.hub, count, first = first.raw, error = %first.error, "malformed \
                 feedback records left out");
        }
        let all = batch.records.len() + batch.unreadable.len();
        let records = std::mem::take(&mut batch.records);
        let records: Vec<_> = records
            .into_iter()
            .filter_map(|record| self.record(record))
            .collect();
        FeedbackBatch {
            unreadable: (all - records.len()) as u64,
            records,
            enqueued_at: self.to_local_clock(batch.enqueued_time),
            ticket: self.ticket(Message::Batch(batch)),
        }
    }

    /// Converts a moment of the hub's clock to this machine's clock, rounded towards earlier.
    fn to_local_clock(&self, theirs: Option<SystemTime>) -> Option<Timestamp> {
        let offset = self.client.clock_offset()?;
        theirs.map(|theirs| timestamp(offset.earliest(theirs)))
    }

    fn record(&mut self, record: HubRecord) -> Option<FeedbackRecord> {
        let outcome = outcome(&record.status);
        if outcome.is_none() && !self.unknown_status_logged {
            self.unknown_status_logged = true;
            tracing::warn!(hub = %self.hub, status = %record.status, "feedback with an unknown \
                 status left out");
        }
        Some(FeedbackRecord {
            message_id: record.original_message_id,
            outcome: outcome?,
            at: record.enqueued_time.map(timestamp),
        })
    }

    fn ticket(&self, message: Message) -> Box<dyn FeedbackTicket> {
        Box::new(Ticket {
            hub: self.hub.clone(),
            message,
        })
    }

    fn refused(&self, error: FeedbackError) -> HubError {
        let trouble = match &error {
            FeedbackError::Failed(failure) => classify_link_failure(failure),
            _ => HubTrouble::Other,
        };
        HubError {
            doing: format!("receive feedback from hub {}", self.hub),
            trouble,
            source: Box::new(error),
        }
    }
}

#[async_trait]
impl Feedback for HubFeedback {
    async fn next(&mut self, quiet: Duration) -> Result<Option<FeedbackBatch>, HubError> {
        let receiver = self.receiver.as_mut().expect("it is taken by drop only");
        match receiver.next_within(quiet).await {
            Ok(batch) => Ok(batch.map(|batch| self.batch(batch))),
            Err(FeedbackError::Unparsable(unparsable)) => {
                tracing::warn!(hub = %self.hub, raw = unparsable.raw, error = %unparsable.source, "malformed \
                     feedback message left out");
                Ok(Some(FeedbackBatch {
                    records: Vec::new(),
                    unreadable: 1,
                    enqueued_at: None,
                    ticket: self.ticket(Message::Unparsable(unparsable)),
                }))
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    fn connection(&self) -> u64 {
        let receiver = self.receiver.as_ref().expect("it is taken by drop only");
        receiver.connections()
    }

    async fn pause(&mut self) {
        let receiver = self.receiver.as_mut().expect("it is taken by drop only");
        receiver.pause().await;
    }
}

impl Drop for HubFeedback {
    /// Closes the link in an orderly way, so that the last settlements still leave.
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.close();
        }
    }
}

struct Ticket {
    hub: String,
    message: Message,
}

enum Message {
    Batch(HubBatch),
    Unparsable(Box<UnparsableFeedback>),
}

impl Ticket {
    fn answered(hub: &str, result: Result<(), SettleError>) -> Result<(), HubError> {
        result.map_err(|error| HubError {
            doing: format!("settle a feedback message of hub {hub}"),
            trouble: HubTrouble::Unreachable,
            source: Box::new(error),
        })
    }
}

#[async_trait]
impl FeedbackTicket for Ticket {
    async fn complete(self: Box<Self>) -> Result<(), HubError> {
        let result = match self.message {
            Message::Batch(batch) => batch.complete().await,
            Message::Unparsable(unparsable) => unparsable.complete().await,
        };
        Self::answered(&self.hub, result)
    }

    async fn release(self: Box<Self>) -> Result<(), HubError> {
        let result = match self.message {
            Message::Batch(batch) => batch.release().await,
            Message::Unparsable(unparsable) => unparsable.release().await,
        };
        Self::answered(&self.hub, result)
    }
}

fn outcome(status: &FeedbackStatus) -> Option<Outcome> {
    match status {
        FeedbackStatus::Success => Some(Outcome::Delivered),
        FeedbackStatus::Expired => Some(Outcome::Expired),
        FeedbackStatus::DeliveryCountExceeded => Some(Outcome::Undeliverable),
        FeedbackStatus::Rejected => Some(Outcome::Rejected),
        FeedbackStatus::Purged => Some(Outcome::Purged),
        _ => None,
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)).min(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_statuses_map_to_outcomes_except_unknown() {
        let table = [
            (FeedbackStatus::Success, Some(Outcome::Delivered)),
            (FeedbackStatus::Expired, Some(Outcome::Expired)),
            (
                FeedbackStatus::DeliveryCountExceeded,
                Some(Outcome::Undeliverable),
            ),
            (FeedbackStatus::Rejected, Some(Outcome::Rejected)),
            (FeedbackStatus::Purged, Some(Outcome::Purged)),
            (FeedbackStatus::Other("Teleported".into()), None),
        ];
        for (status, expected) in table {
            assert_eq!(outcome(&status), expected, "{status}");
        }
    }

    #[test]
    fn hub_times_convert_to_timestamps() {
        assert_eq!(timestamp(UNIX_EPOCH), Timestamp(0));
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            timestamp(before),
            Timestamp(0),
            "a time before 1970 counts as 1970"
        );
        let later = UNIX_EPOCH + Duration::from_millis(1_500);
        assert_eq!(timestamp(later), Timestamp(1_500));
    }
}
