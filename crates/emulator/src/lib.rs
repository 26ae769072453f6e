//! An Azure IoT Hub emulator on real sockets, accepted by the official service and device SDKs.
//!
//! [`start`] binds the ports and returns a [`RunningHub`]: cloud-to-device messages over AMQP 1.0,
//! feedback over AMQP 1.0 and HTTPS, queries, twins, direct methods and the registry over HTTPS,
//! and a plain HTTP interface for inspection and for injecting [`Faults`]. The devices are a
//! [`Fleet`]: computed from a seed, with a million devices in a few bytes. A device is simulated
//! until a client connects as the device, over MQTT 3.1.1 (on a dedicated port or over WebSockets),
//! AMQP 1.0 or HTTPS, and is real from then on. Devices may register at a Device Provisioning
//! Service on the same ports ([`Enrollments`]).
//!
//! The emulator keeps no telemetry, and has no jobs, no modules and no uploads of files.

mod amqp;
mod certificate;
mod config;
mod control;
mod dps;
mod entra;
mod faults;
mod fleet;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod hub;
mod mqtt;
mod policy;
mod query;
mod rest;
mod sas;
mod server;
mod tier;

pub use certificate::IdentityError;
pub use config::HubConfig;
pub use control::MessageReport;
pub use dps::{EnrollmentError, Enrollments};
pub use entra::{Directory, DirectoryError};
pub use faults::{Chance, Faults};
pub use fleet::{
    AnswerSpec, Behaviour, DelayedShare, DurationRange, Fleet, FleetError, FleetFile, GroupSpec,
    Share, ValueSpec,
};
pub use hub::{Cut, MessageState, SessionReport, Summary};
pub use policy::{Permissions, Policy};
pub use sas::{sign_device_token, sign_token};
pub use server::{HubHandle, RunningHub, StartError, start};
pub use tier::{Limits, Tier};

/// Locks a mutex, also after a panic: every critical section leaves the guarded state consistent.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
