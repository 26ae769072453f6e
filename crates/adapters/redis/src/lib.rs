//! The store and the rollout registry on Redis, shared by all processes of the engine.
//!
//! [`RedisStore::connect`] opens a store on a single Redis (or a compatible service: a primary
//! behind an address that follows failovers), on a master watched by sentinels, or on a Redis
//! Cluster. Version 6.2 or later; only plain commands and Lua scripts are used. User and password
//! come from the URL, or from a [`CredentialsProvider`].
//!
//! # Keys
//!
//! All keys begin with a prefix, `twincast:` unless set. The part in braces decides on the node of
//! a cluster. So all keys of a rollout are on the same node, and a script can change all of them
//! atomically.
//!
//! | key | type | what |
//! |---|---|---|
//! | `{<rollout>}` | hash | `format` of all keys of the rollout, `record` and `notes` on the rollout (JSON), the remembered `commands` (JSON), `id`, `version` and `lineage`, `plan`, the rollout's state for operations on batches (`control`, JSON), the directive for workers (`directive`), the permission for adding batches (`adding`), the checksum of all batches (`batches`, `devices`, `sum`), the time of the completed plan (`plan_completed_at`), a stamp of the last time a budget began to count a batch (`budget_stamp`); and for each batch, by number, a row with counts and lease |
//! | `{<rollout>}:numbers` | sorted set | the numbers of the batches |
//! | `{<rollout>}:headers` | hash | by batch number: the header of the batch (JSON) |
//! | `{<rollout>}:manifests` | hash | by batch number: the device ids, separated by newlines, deflated |
//! | `{<rollout>}:states` | hash | by batch number: the outcomes of the batch's devices, two per byte, and the hub's codes; from the first outcome on |
//! | `{<rollout>}:open` | sorted set | `<hub>:<stage>:<sort key>-<number>` of the batches with work left |
//! | `{<rollout>}:tallies` | hash | `<stage>:<hub>:<outcome>`: number of devices; for outcome 0, pending, the number of all devices of the stage and hub |
//! | `{<rollout>}:groups` | hash | by budget group: number of devices |
//! | `{<rollout>}:counted` | sorted set | `<group>`, a zero byte and the number, for each batch counted by the budget of the group |
//! | `{<rollout>}:registry` | hash | the last published version (`published`) |
//! | `{group:<group>}:queue` | hash | the queue of a concurrency group: `queue` (JSON) with the rollouts in order, and the `version` |
//! | `{hub:<hub>}:host` | string | the host name bound to the hub's alias |
//! | `{hub:<hub>}:permits` | hash | the hub's limiter, each rollout's share while relevant, and the id of the last seen `run` of the server |
//! | `{hub:<hub>}:listeners` | hash | by listener to the hub's feedback: time of the last report, heard-until time, and state (JSON) |
//! | `{hub:<hub>}:senders` | hash | by worker: time of the last report, begin of the state of the sending link, and the state (JSON) |
//! | `{hub:<hub>}:links` | string | the time until which the hub's budget for links is spent |
//! | `rollouts` | sorted set | the names of all rollouts |
//! | `{registry}:active` | sorted set | the names of the active rollouts, each with the last stored version |
//! | `{registry}:claims` | hash | by rollout: end and holder of the claim |
//! | `ping` | string | written by each process every two seconds, to check for write access |
//! | `{registry}:halt` | string | reason and begin of the halt of all rollouts (JSON), if halted |
//!
//! The record and plan of a rollout take the first nine keys, for any number of batches. So a new
//! plan drops the old plan in the same step: the names of the keys at once, the memory by a
//! background thread of the server. Neither normal operation nor a crash leaves anything to clean
//! up.
//!
//! No key has a time to live. So a server that may evict keys with a time to live (`volatile-…`)
//! evicts no key of the store, and is accepted; a server that may evict any key (`allkeys-…`) is
//! refused.
//!
//! # Memory
//!
//! Per device: half a byte for the outcome, and the id's share of the manifest: 14 bytes for 20
//! random letters and digits (with more than 13 bytes of information), 3 bytes for ascending ids.
//! Memory is allocated in steps, which adds up to a fifth. Per batch: some 300 bytes. The sum is 17
//! to 21 bytes per device with random ids (the larger the batches, the less), and 170 MB for ten
//! million devices. A refused device takes 8 additional bytes for the code. All memory stays in use
//! after the rollout has ended.
//!
//! While the server rewrites the append-only file, the server may need as much memory again. Leave
//! room: set `maxmemory` well above the sum, because a full server accepts neither outcomes nor any
//! other write. The server refuses a script at the first write of the script, so a full server
//! leaves nothing half-done.
//!
//! # Commands
//!
//! A single script changes a batch: the script compares the stamp of the batch, and writes the new
//! state. The caller decides about the new state ([`Batch`](twincast_core::batch::Batch)). A window
//! of outcomes is a single script of some five commands, a block of permits a script of four,
//! regardless of size: with windows of 128, less than a tenth of a command per device.
//!
//! # Durability
//!
//! The server answers a call when the write is in memory. The durability of the write depends on
//! the server's settings; the store logs a warning at the start if the append-only file is off.
//!
//! With `appendonly yes` and `appendfsync everysec`, the default, a crashed server loses up to two
//! seconds of acknowledged writes. A failover to a replica loses the writes not yet received by the
//! replica, a loss of the same order. The server comes back in an older state, never in a mixture
//! of states:
//!
//! * A plan is complete only if the server holds every batch of the plan: the step that completes
//!   the plan compares the checksum of the stored batches with the planner's checksum. A plan with
//!   a lost batch is made again.
//! * No batch is listed or leased before the batch and the completion of the plan are two seconds
//!   old. So no message is sent for a lost plan. (`appendfsync always` without a replica needs no
//!   such wait.)
//! * A rollout ends only if no device of the rollout is open in the server.
//! * A lost transition is detected by the record's lineage, even if another transition has received
//!   the same version since; the rollout's driver makes the transition again, and repeats the
//!   event.
//! * Devices with lost outcomes are sent to again, with the same message ids. (Under
//!   `at_most_once`, too; set `appendfsync always` where this matters.) Feedback is completed at
//!   the hub when the records are durable.
//! * Holders of lost leases are fenced at the next record: epochs follow the clock, so no epoch is
//!   granted twice.
//! * Permits of the lost time are used, and unknown to the server. The first request after a crash
//!   or a failover (detected by a changed `run_id` of the server) skips as much time.
//!
//! Without an append-only file, all of this applies to all writes since the last snapshot.
//!
//! # Time
//!
//! Leases, claims and permits use the server's clock. After a failover to a server with a clock
//! ahead by d, leases lapse early by d; a server with a clock behind by d extends leases and
//! reserved permits by d. Keep the servers' clocks within a second of each other.

mod check;
mod credentials;
mod dial;
mod error;
mod keys;
mod link;
mod reply;
mod row;
mod scripts;
mod settings;
mod store;
mod url;

pub use credentials::{Credentials, CredentialsProvider};
pub use error::ConnectError;
pub use settings::{Settings, TimeSource, Topology};
pub use store::RedisStore;
