//! The distributed engine as it runs in production: orchestrators and workers in processes of
//! their own, over a real RabbitMQ and a real Redis, against emulated hubs, with real kills.
//!
//! Each test has its own hubs, folder and ports, and either its own names in services that all
//! tests share or, if it stops them, services of its own. A test waits for something that it can
//! see. What it believes about sends it takes from the hubs' accounts.
//!
//! `TWINCAST_LONG=1` runs the same tests at their full size, for an hour or so.

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
mod forgetting;
mod groups;
mod happy_path;
mod metrics;
mod outages;
mod quota;
mod refusals;
mod rotation;
mod siege;
mod upgrade;
mod versions;
