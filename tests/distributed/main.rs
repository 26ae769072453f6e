//! The distributed engine as in production: orchestrators and workers in separate processes, over a
//! real RabbitMQ and a real Redis, against emulated hubs, with real kills.
//!
//! Each test has separate hubs, a separate folder and separate ports. A test uses services shared
//! by all tests, under names of the test's own, or starts separate services in order to stop them.
//! A test waits for an observable condition. Facts about sends come from the hubs' accounts.
//!
//! `TWINCAST_LONG=1` runs the same tests at full size, for about an hour.

#![expect(
    clippy::print_stdout,
    reason = "seeds and figures, shown when a test fails"
)]

#[expect(
    dead_code,
    unused_imports,
    reason = "the harness has more than this binary needs"
)]
#[path = "../system/harness/mod.rs"]
mod harness;

mod engine;
mod pipeline;
mod repeats;
mod services;
mod waiting;

mod answers;
mod api;
mod chaos;
mod cluster;
mod continuous;
mod control;
mod evidence;
mod failover;
mod groups;
mod happy_path;
mod lost_writes;
mod metrics;
mod newer_broker;
mod outages;
mod overload;
mod quota;
mod refusals;
mod rotation;
mod upgrade;
mod versions;
