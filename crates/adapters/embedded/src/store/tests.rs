//! The contract, and the behaviour specific to this store: reopening, crashes, full disks, damage.

mod contract;
mod crash;
mod full;
mod growth;
mod opening;
mod sim;
