//! The devices behind the hub: a virtual fleet that is computed, not stored.
//!
//! A device is a number. Its id, tags, reported properties and behaviour follow from that number and the
//! fleet's seed, so a million devices cost nothing until one of them is changed or is sent a message.

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
pub use file::{AnswerSpec, Behaviour, FleetError, FleetFile, GroupSpec, Later};
pub(crate) use generator::Generator;
pub use generator::ValueSpec;
pub(crate) use limits::{DESIRED_BYTES_MAX, REPORTED_BYTES_MAX, TAGS_BYTES_MAX, check_section};
pub(crate) use metadata::{Stamp, touch};
pub use parse::{Share, Span};
pub(crate) use registry::{DeviceRecord, RealTwin, Registry, RegistryEntry, Status};
pub(crate) use twin::{
    Contact, Reported, device_document, etag_of, iso_time, merge, twin_document,
};
pub use virtual_fleet::Fleet;
pub(crate) use virtual_fleet::{Conduct, Group, check_id};
