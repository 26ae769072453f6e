//! The store: the source of truth about every rollout. The store consists of five ports, one per
//! subject.

use super::{Batches, GroupQueues, Limiter, Presence, Rollouts};

/// Everything stored about rollouts: [`Rollouts`], [`Batches`], [`GroupQueues`], [`Limiter`] and
/// [`Presence`].
///
/// All methods are atomic: they take effect completely or not at all.
///
/// `Ok` means durable after a certain [time](Batches::durable_after). A store that crashes earlier
/// may come back without some of its last writes: in an older state, never in a mixture of states.
///
/// # Cancel safety
/// A dropped call may or may not have taken effect, as after
/// [`StoreError::Unavailable`](super::StoreError::Unavailable); every call may be repeated.
pub trait Store: Rollouts + Batches + GroupQueues + Limiter + Presence {}

impl<T: Rollouts + Batches + GroupQueues + Limiter + Presence> Store for T {}
