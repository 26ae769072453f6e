//! Delivery feedback: what the hub says became of accepted messages.

pub(crate) mod receiver;
pub(crate) mod record;

pub use receiver::{
    FeedbackBatch, FeedbackError, FeedbackReceiver, SettleError, UnparsableFeedback,
};
pub use record::{FeedbackRecord, FeedbackStatus, UnreadableRecord};
