//! The hub: accepts messages, queues and delivers them, and reports feedback.

mod answers;
mod core;
mod delivery;
mod device;
mod feedback;
mod intern;
mod refusal;
mod store;
mod summary;
mod throttle;
mod windows;

pub(crate) use self::answers::PROPERTY as ANSWER_PROPERTY;
pub use self::core::Cut;
pub(crate) use self::core::{Hub, IncomingMessage};
pub use device::SessionReport;
pub(crate) use device::{
    AuthenticatedDevice, AuthenticationError, ClientCertificate, Delivery, DesiredPush,
    DeviceAuthorities, DeviceEvent, DeviceSession, EndReason, Interest, Invocation,
    MessageSettlement, MethodAnswer, MethodCall, Proof, Subscriptions,
};
pub(crate) use feedback::{FeedbackBatch, FeedbackSettlement};
pub(crate) use refusal::Refusal;
pub(crate) use store::Ack;
pub use store::MessageState;
pub use summary::Summary;
pub(crate) use throttle::{Admission, Operation};
