//! Cloud-to-device messages: what is sent, the link it goes over, and what became of it.

mod engine;
mod link;
mod message;
mod outcome;
mod refusal;
mod sender;

pub use message::{
    Ack, C2dMessage, C2dTemplate, C2dTemplateBuilder, EXPIRY_MARGIN, Expiry, InvalidMessage,
    LARGEST_MESSAGE, LONGEST_DEVICE_ID, LONGEST_MESSAGE_ID, LONGEST_TTL,
};
pub use outcome::{
    ConnectionFailure, DeviceReason, Disposition, HubShutReason, Lost, NotSent, SendOutcome,
    THROTTLE_PAUSE,
};
pub use refusal::Refusal;
pub(crate) use refusal::symbol;
pub use sender::{C2dSender, LinkState, SendReport};
