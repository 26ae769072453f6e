//! The devices behind the hub: a virtual fleet that is computed, not stored.
//!
//! A device is a number. Its id, tags, reported properties and behaviour follow from that number and the
//! fleet's seed, so a million devices cost nothing until one of them is changed or is sent a message.

mod file;
mod generator;
mod parse;
mod pattern;
mod permutation;
mod registry;
mod twin;
mod virtual_fleet;

pub use file::{Behaviour, FleetError, FleetFile, GroupSpec, Later};
pub(crate) use generator::Generator;
pub use generator::ValueSpec;
pub use parse::{Share, Span};
pub(crate) use registry::{DeviceRecord, Registry, RegistryEntry, Status};
pub(crate) use twin::{device_document, etag_of, twin_document};
pub use virtual_fleet::Fleet;
pub(crate) use virtual_fleet::{Conduct, Group, check_id};
