//! Delivery feedback: the hub's reports on accepted messages.

pub(crate) mod receiver;
pub(crate) mod record;

pub use receiver::{
    FeedbackBatch, FeedbackError, FeedbackReceiver, SettleError, UnparsableFeedback,
};
pub use record::{FeedbackRecord, FeedbackStatus, UnreadableRecord};
