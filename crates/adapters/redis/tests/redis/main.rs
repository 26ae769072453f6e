//! The adapter on real servers, which these tests start for themselves.

mod common;
mod conformance;
mod connecting;
mod costs;
mod faults;
mod formats;
mod plans;
mod work;
