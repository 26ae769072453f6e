//! The store: the truth about every rollout. It is five ports, one for each subject.

use super::{Batches, Limiter, Lines, Presence, Rollouts};

/// All that is kept about rollouts: [`Rollouts`], [`Batches`], [`Lines`], [`Limiter`] and [`Presence`].
///
/// All methods are atomic: they take effect whole or not at all.
///
/// `Ok` means durable after some [time](Batches::durable_after). A store that crashes earlier may come back as it was before
/// some of its last writes: in an older state, never in a mixture of states.
///
/// Cancel safety: a dropped call may or may not have taken effect, as after
/// [`StoreError::Unavailable`](super::StoreError::Unavailable); every call may be repeated.
pub trait Store: Rollouts + Batches + Lines + Limiter + Presence {}

impl<T: Rollouts + Batches + Lines + Limiter + Presence> Store for T {}
