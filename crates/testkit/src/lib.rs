//! Doubles, conformance suites and simulators for Twincast's own tests.
