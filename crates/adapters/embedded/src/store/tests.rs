//! The contract, and what is this store's own: reopening, crashes, full disks, damage.

mod contract;
mod crash;
mod full;
mod growth;
mod opening;
mod sim;
