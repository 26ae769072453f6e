//! The hub itself: what is accepted, queued, delivered and reported back.

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
pub(crate) use self::core::{Hub, Submission};
pub use device::SessionReport;
pub(crate) use device::{
    ClientCertificate, Delivery, Denial, DesiredPush, DeviceAuthorities, DeviceEvent, DevicePass,
    DeviceSession, Ended, Interest, Invocation, MethodAnswer, MethodCall, Proof, Settling,
    Subscriptions,
};
pub(crate) use feedback::{FeedbackBatch, Settlement};
pub(crate) use refusal::Refusal;
pub(crate) use store::Ack;
pub use store::MessageState;
pub use summary::Summary;
pub(crate) use throttle::{Admission, Operation};
