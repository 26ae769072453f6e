//! Doubles for simulations of a whole engine on a single thread and in virtual time, with faults.
//!
//! ```text
//!   process ──call──▶ request ──▶ effect ──▶ answer ──▶ process
//!              crash?   lost?       │         lost?        crash? stall?
//!                                   └──▶ Observer: what really happened
//! ```
//!
//! * [`Sim`] is a simulated world. Everything in the world follows from a [`Chance`];
//! * a [`Process`] makes calls. A call may be slow, lose the request or the answer, or be the last
//!   call before a crash of the process. A request in progress continues without the process;
//! * [`SimStore`], [`Broker`] and [`SimHub`] are called by processes;
//! * an [`Observer`] observes every effect at the moment of the effect, and so knows more than any
//!   process.
//!
//! The fate of a call depends on the process, the subject of the call, and the number of equal
//! calls before, and not on other processes. So a different order of two tasks does not make a
//! different world.

mod broker;
mod bug;
mod chance;
mod condition;
mod feedback;
mod hub;
mod process;
mod store;
mod trace;

pub use broker::Broker;
pub use bug::Bug;
pub use chance::{Chance, Dice};
pub use feedback::{FeedbackFaults, SimFeedbackQueue};
pub use hub::{HubFault, HubFaultWindow, SimHub, Tags};
pub use process::{Effect, Faults, Lost, Observer, Process, Sim};
pub use store::SimStore;
pub use trace::Trace;
