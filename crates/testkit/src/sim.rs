//! Doubles for simulations: a whole engine on one thread and on virtual time, with faults.
//!
//! ```text
//!   process ──call──▶ request ──▶ effect ──▶ answer ──▶ process
//!              crash?   lost?       │         lost?        crash? stall?
//!                                   └──▶ Watch: what really happened
//! ```
//!
//! * [`Sim`] is one simulated world; everything in it follows from its [`Chance`];
//! * a [`Process`] makes calls. Any of them may be slow, get lost on its way there or back, or be
//!   the last that the process made. A request that is under way goes on without its process;
//! * [`SimStore`], [`Broker`] and [`SimHub`] are what processes call;
//! * a [`Watch`] sees every effect at the moment in which it happens, and so knows more than any
//!   process does.
//!
//! What happens to a call follows from who makes it, what it is about, and how often it was made
//! before; not from what other processes do meanwhile. So two tasks that run in another order do
//! not make another world.

mod broker;
mod bug;
mod chance;
mod condition;
mod hub;
mod post;
mod process;
mod store;
mod trace;

pub use broker::Broker;
pub use bug::Bug;
pub use chance::{Chance, Dice};
pub use hub::{SimHub, Sky, SkyWindow, Tags};
pub use post::{Post, Telling};
pub use process::{Faults, Lost, Process, Sim, Watch, Witnessed};
pub use store::SimStore;
pub use trace::Trace;
