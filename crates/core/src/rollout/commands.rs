//! The commands that a rollout remembers.

use serde::{Deserialize, Serialize};

use crate::ids::CommandKey;

/// A command that is done once, however often it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    /// What it is known by.
    pub key: CommandKey,
    /// What it asks for, to be told from another one that was given the same key.
    pub asks: String,
}

/// Commands with a key that have changed a rollout, oldest first. They are stored beside the record, in the step that stores
/// the change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Commands(Vec<Keyed>);

impl Commands {
    /// How many are remembered.
    pub const MAX: usize = 64;

    /// The command of that key.
    #[must_use]
    pub fn find(&self, key: &CommandKey) -> Option<&Keyed> {
        self.0.iter().find(|keyed| keyed.key == *key)
    }

    /// The same with one more; the oldest is forgotten when there are more than [`Commands::MAX`].
    #[must_use]
    pub fn with(mut self, command: Keyed) -> Self {
        self.0.push(command);
        let surplus = self.0.len().saturating_sub(Self::MAX);
        self.0.drain(..surplus);
        self
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
