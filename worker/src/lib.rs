//! Works batches: leases, permits, sending, recording.
