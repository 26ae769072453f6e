//! Tests of the IoT Hub client against the emulator.

mod c2d;
mod clock;
mod common;
mod credentials;
mod feedback;
mod hostile;
mod links;
mod pauses;
mod rest;
mod secrets;
mod transports;
