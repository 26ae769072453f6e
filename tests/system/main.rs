//! Whole-system tests: the real program against the emulator, each in a separate process, over real
//! TLS sockets, with real kills.
//!
//! Every test has a separate hub, a separate folder and separate ports. A test waits for an
//! observable condition (the hub's message log, a line of output, an end); [`harness`] has the
//! tools. Facts about sends come from the hub's own message log, not from the program under test.

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
