//! The Device Provisioning Service: devices register, and are assigned to this hub.
//!
//! [`Enrollments`] says who may register and with what; [`Provisioning`] decides a request and puts the device into the
//! registry with the keys or the certificate of its enrolment. How requests come in is a matter of `http` and of the
//! protocols' own modules: each hands over what the device proved itself with and gets an [`Answer`].

mod attestation;
mod enrollment;
mod http;
mod service;
#[cfg(test)]
mod tests;

pub use enrollment::{EnrollmentError, Enrollments};
pub(crate) use http::{answer, path_of};
pub(crate) use service::{Answer, Operation, Provisioning, Request};

/// The version of the interface that all official SDKs ask for.
pub(crate) const API_VERSION: &str = "2019-03-31";
