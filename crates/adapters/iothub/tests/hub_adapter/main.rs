//! Tests of the hub adapter against the emulator.

mod clock;
mod feedback;
mod silent;
