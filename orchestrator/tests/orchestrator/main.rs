//! Tests of the orchestrator on test doubles.

mod answers;
mod commands;
mod driving;
mod groups;
mod http;
mod listening;
mod metrics;
mod planning;
mod retry;
mod service;
