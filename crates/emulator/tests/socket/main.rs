//! The emulator through its sockets, with clients that share no code with it.

mod amqp;
mod answers;
mod client;
mod device_amqp;
mod device_client;
mod device_faults;
mod device_https;
mod device_mqtt;
mod faults;
mod feedback;
mod http;
mod raw;
mod registry;
mod rest;
mod service;
mod twins;
mod wire;
