//! The emulator through its sockets, with clients that share no code with it.

mod amqp;
mod client;
mod faults;
mod feedback;
mod raw;
mod rest;
mod wire;
