//! Cloud-to-device messages: message, link, and outcome.

mod engine;
mod link;
mod message;
mod outcome;
mod refusal;
mod sender;

pub use message::{
    Ack, C2dMessage, C2dTemplate, C2dTemplateBuilder, EXPIRY_MARGIN, Expiry, InvalidMessage,
    MAX_DEVICE_ID_BYTES, MAX_MESSAGE_BYTES, MAX_MESSAGE_ID_BYTES, MAX_TTL,
};
pub use outcome::{
    ConnectionFailure, DeviceReason, Disposition, HubUnavailableReason, NotSent, SendOutcome,
    THROTTLE_PAUSE, UnknownCause,
};
pub use refusal::Refusal;
pub(crate) use refusal::symbol;
pub use sender::{C2dSender, LinkState, SendReport};
