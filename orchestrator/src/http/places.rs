//! Places for requests of a kind: so many at the same time in all, and so many for one caller.
//!
//! A caller who takes all that one may have leaves places for others. Nobody waits for a place: who finds none is told
//! to come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::problem::Problem;

/// Places for requests of a kind.
#[derive(Debug)]
pub(super) struct Places {
    /// What those who have one do, for people.
    doing: &'static str,
    most: usize,
    most_of_one: usize,
    /// How many each caller has.
    taken: Mutex<HashMap<String, usize>>,
}

/// A place, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    caller: String,
}

impl Places {
    pub(super) fn new(doing: &'static str, most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            doing,
            most,
            most_of_one,
            taken: Mutex::default(),
        })
    }

    /// Takes a place for a caller, if there is one.
    pub(super) fn take(self: &Arc<Self>, caller: &str) -> Result<Place, Problem> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = self.doing;
        if taken.values().sum::<usize>() >= self.most {
            return Err(Problem::busy(format!("too many {doing}")));
        }
        let of_caller = taken.entry(caller.to_owned()).or_default();
        if *of_caller >= self.most_of_one {
            let most = self.most_of_one;
            return Err(Problem::busy(format!(
                "too many {doing} for {caller}, who may have {most} at once"
            )));
        }
        *of_caller += 1;
        Ok(Place {
            of: Arc::clone(self),
            caller: caller.to_owned(),
        })
    }
}

impl Drop for Place {
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
    fn one_caller_leaves_places_for_others() {
        let places = Places::new("requests are being answered", 3, 2);
        let mut held = vec![places.take("ann").unwrap(), places.take("ann").unwrap()];
        let refused = places.take("ann").unwrap_err();
        let words = format!("{refused:?}");
        assert!(words.contains("for ann, who may have 2 at once"), "{words}");
        held.push(places.take("bob").unwrap());
        let refused = format!("{:?}", places.take("cid").unwrap_err());
        assert!(
            refused.contains("too many requests are being answered\""),
            "{refused}"
        );
        held.clear();
        assert!(places.taken.lock().unwrap().is_empty());
        places.take("cid").unwrap();
    }
}
