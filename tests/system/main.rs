//! Whole-system tests: the real program against the emulator, each in a process of its own, over
//! real TLS sockets, with real kills.
//!
//! Every test has its own hub, its own folder and its own ports. A test waits for something it
//! can see (the hub's account, a line of output, an end); [`harness`] has the means. What a test
//! believes about sends it takes from the hub's own account, not from the program under test.

#![expect(
    clippy::print_stdout,
    reason = "seeds and figures, shown when a test fails"
)]

mod harness;

mod answers;
mod check;
mod commands;
mod continuous;
mod crash;
mod evidence;
mod exactly_once;
mod explain;
mod failover;
mod faults;
mod feedback;
mod golden;
mod groups;
mod identities;
mod interrupt;
mod metrics;
mod names;
mod networks;
mod odd_devices;
mod pace;
mod planning_faults;
mod refused_input;
mod refused_settings;
mod rotation;
mod secrets;
mod stages;
mod state;
mod traces;
mod unreachable;
