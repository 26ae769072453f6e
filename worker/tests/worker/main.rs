//! Tests of the worker on test doubles.

mod bench;
mod feedback;
mod suspects;
mod troubles;
mod worker;
