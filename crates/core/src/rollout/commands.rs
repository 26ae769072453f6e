//! The remembered commands of a rollout.

use serde::{Deserialize, Serialize};

use crate::ids::CommandKey;

/// A command with a key. A repeated command takes effect once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedCommand {
    /// The key.
    pub key: CommandKey,
    /// The requested operation, for detecting another command under the same key.
    pub operation: String,
}

/// Commands with a key that changed a rollout, oldest first. Stored beside the record, in the same
/// step as the change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Commands(Vec<KeyedCommand>);

impl Commands {
    /// The number of remembered commands.
    pub const MAX: usize = 64;

    /// Returns the command with this key.
    #[must_use]
    pub fn find(&self, key: &CommandKey) -> Option<&KeyedCommand> {
        self.0.iter().find(|keyed| keyed.key == *key)
    }

    /// Adds a command; removes the oldest command beyond [`Commands::MAX`].
    #[must_use]
    pub fn with(mut self, command: KeyedCommand) -> Self {
        self.0.push(command);
        let surplus = self.0.len().saturating_sub(Self::MAX);
        self.0.drain(..surplus);
        self
    }

    /// Returns the number of commands.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no commands.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
