//! The devices of the hub: a virtual fleet, computed and not stored.
//!
//! A device is a number. The id, tags, reported properties and behaviour follow from the number and
//! from the fleet's seed, so a device takes no memory until changed or sent a message.

mod authentication;
mod file;
mod generator;
mod limits;
mod metadata;
mod parse;
mod pattern;
mod permutation;
mod registry;
mod twin;
mod virtual_fleet;

pub(crate) use authentication::{Authentication, AuthenticationBody, Credentials};
pub use file::{AnswerSpec, Behaviour, DelayedShare, FleetError, FleetFile, GroupSpec};
pub(crate) use generator::Generator;
pub use generator::ValueSpec;
pub(crate) use limits::{DESIRED_BYTES_MAX, REPORTED_BYTES_MAX, TAGS_BYTES_MAX, check_section};
pub(crate) use metadata::{Stamp, touch};
pub use parse::{DurationRange, Share};
pub(crate) use registry::{DeviceRecord, RealTwin, Registry, RegistryEntry, Status};
pub(crate) use twin::{
    ConnectionInfo, Reported, device_document, etag_of, iso_time, merge, twin_document,
};
pub use virtual_fleet::Fleet;
pub(crate) use virtual_fleet::{Group, MessageBehaviour, check_id};
