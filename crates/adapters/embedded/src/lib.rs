//! The embedded adapters: a durable file store and an in-process queue.
