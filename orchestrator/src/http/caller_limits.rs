//! Limits of concurrent requests of one kind: in total, and per caller.
//!
//! A caller at the limit leaves slots for other callers. Requests do not wait for a slot: a request
//! without a free slot is refused as busy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::problem::Problem;

/// The limit of concurrent requests of one kind.
#[derive(Debug)]
pub(super) struct CallerLimit {
    /// The activity of requests with a slot, for people.
    activity: &'static str,
    total: usize,
    per_caller: usize,
    /// The number of slots taken by each caller.
    taken: Mutex<HashMap<String, usize>>,
}

/// A slot, until dropped.
#[derive(Debug)]
pub(super) struct CallerSlot {
    of: Arc<CallerLimit>,
    caller: String,
}

impl CallerLimit {
    pub(super) fn new(activity: &'static str, total: usize, per_caller: usize) -> Arc<Self> {
        Arc::new(Self {
            activity,
            total,
            per_caller,
            taken: Mutex::default(),
        })
    }

    /// Takes a slot for a caller, if a slot is free.
    pub(super) fn take(self: &Arc<Self>, caller: &str) -> Result<CallerSlot, Problem> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let activity = self.activity;
        if taken.values().sum::<usize>() >= self.total {
            return Err(Problem::busy(format!("too many {activity}")));
        }
        let of_caller = taken.entry(caller.to_owned()).or_default();
        if *of_caller >= self.per_caller {
            let per_caller = self.per_caller;
            return Err(Problem::busy(format!(
                "too many {activity} for {caller}; allowed: {per_caller}"
            )));
        }
        *of_caller += 1;
        Ok(CallerSlot {
            of: Arc::clone(self),
            caller: caller.to_owned(),
        })
    }
}

impl Drop for CallerSlot {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_caller) = taken.get_mut(&self.caller) {
            *of_caller -= 1;
            if *of_caller == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_caller_cannot_take_all_slots() {
        let limit = CallerLimit::new("concurrent requests", 3, 2);
        let mut held = vec![limit.take("ann").unwrap(), limit.take("ann").unwrap()];
        let refused = limit.take("ann").unwrap_err();
        let words = format!("{refused:?}");
        assert!(words.contains("for ann; allowed: 2"), "{words}");
        held.push(limit.take("bob").unwrap());
        let refused = format!("{:?}", limit.take("cid").unwrap_err());
        assert!(
            refused.contains("too many concurrent requests\""),
            "{refused}"
        );
        held.clear();
        assert!(limit.taken.lock().unwrap().is_empty());
        limit.take("cid").unwrap();
    }
}
