//! The adapter on real servers started by the tests.

mod common;
mod conformance;
mod connecting;
mod costs;
mod credentials;
mod faults;
mod formats;
mod interposer;
mod names;
mod plans;
mod sentinels;
mod work;
