//! The Device Provisioning Service: registers devices and assigns them to this hub.
//!
//! [`Enrollments`] defines who may register, and by which proof. [`Provisioning`] decides a
//! request, and puts the device into the registry with the keys or the certificate of the
//! enrolment. Requests arrive through `http` and through the modules of the other protocols: each
//! passes the device's proof, and gets an [`Answer`].

mod attestation;
mod enrollment;
mod http;
mod service;
#[cfg(test)]
mod tests;

pub use enrollment::{EnrollmentError, Enrollments};
pub(crate) use http::{answer, path_of};
pub(crate) use service::{Answer, Operation, Provisioning, Request};

/// The API version requested by all official SDKs.
pub(crate) const API_VERSION: &str = "2019-03-31";
