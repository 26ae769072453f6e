//! Plans rollouts and drives them to their end.
