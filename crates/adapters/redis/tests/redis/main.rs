//! The adapter on real servers, which these tests start for themselves.

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
