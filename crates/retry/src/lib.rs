//! Retry policies: exponential backoff with full jitter, capped.
