//! The store and the roster on Redis: what makes several processes one Twincast.
//!
//! [`RedisStore::connect`] gives a store on one Redis (or whatever looks like one: a primary
//! behind an address that follows failovers), on a master that sentinels watch, or on a Redis Cluster. Version 6.2 or
//! later; nothing but plain commands and Lua scripts. User and password come from the URL, or from a
//! [`CredentialsProvider`].
//!
//! # Keys
//!
//! All begin with a prefix, `twincast:` unless it is set. What is in braces decides on which
//! node of a cluster a key is, so all of one rollout is on one node, and a script can be whole.
//!
//! | key | type | what |
//! |---|---|---|
//! | `{<rollout>}` | hash | `format` of all these keys, `record` and `notes` on it (JSON), the `commands` that it remembers (JSON), `id`, `version` and `lineage`, `plan`, what operations on batches depend on (`stance`, JSON), what is `wanted` of workers, by what batches may be `adding`, the checksum of all batches (`batches`, `devices`, `sum`), when the plan was `whole_at`, a stamp of when a budget last `begun` to count a batch; and for each batch, by its number, a row with counts and lease |
//! | `{<rollout>}:numbers` | sorted set | the batches' numbers |
//! | `{<rollout>}:headers` | hash | by number: what the batch is (JSON) |
//! | `{<rollout>}:manifests` | hash | by number: the ids, one a line, deflated |
//! | `{<rollout>}:states` | hash | by number: the outcomes of the batch's devices, two a byte, and the hub's codes; once there is one |
//! | `{<rollout>}:open` | sorted set | `<hub>:<stage>:<place>-<number>` of the batches on which something is left to do |
//! | `{<rollout>}:tallies` | hash | `<stage>:<hub>:<outcome>`: devices; for outcome 0, pending, all of the stage and hub |
//! | `{<rollout>}:groups` | hash | by group that a budget is for: how many devices it has |
//! | `{<rollout>}:begun` | sorted set | `<group>`, a zero byte and the number of the batches that the group's budget counts |
//! | `{<rollout>}:roster` | hash | what was `announced` |
//! | `{group:<group>}:line` | hash | `line` (JSON): the rollouts of the group, in order; its `version` |
//! | `{hub:<hub>}:host` | string | the host name that the hub's alias is bound to |
//! | `{hub:<hub>}:permits` | hash | the hub's limiter, each rollout's share while it matters, and the id of the server's `run` that was asked last |
//! | `{hub:<hub>}:listeners` | hash | by listener to the hub's feedback: when it reported, until when it has heard, and its state (JSON) |
//! | `{hub:<hub>}:senders` | hash | by worker: when it reported, since when its sending link is in its state, and the state (JSON) |
//! | `{hub:<hub>}:links` | string | until when the hub's budget for links is spent |
//! | `rollouts` | sorted set | the names of all rollouts |
//! | `{roster}:active` | sorted set | the names of the active ones, each with the version last stored |
//! | `{roster}:claims` | hash | by rollout: until when it is driven, and by whom |
//! | `ping` | string | written by each process every two seconds, to see whether it can be |
//! | `{roster}:halt` | string | why and since when all are halted (JSON), if they are |
//!
//! A rollout has these nine keys however many batches it has, so a plan that is made anew is
//! dropped in the same step as its successor is begun: by name at once, its memory by a
//! thread of the server. There is nothing to sweep, and no crash to sweep after.
//!
//! No key has a time to live, so a server that may evict those that have (`volatile-…`) evicts
//! none of ours, and is taken; one that may evict any (`allkeys-…`) is refused.
//!
//! # Memory
//!
//! Per device: half a byte for the outcome, and its id's share of the manifest: 14 bytes for 20
//! random letters and digits (more than 13 is in them), 3 for ids that count up. Memory comes in
//! steps, which adds up to a fifth. Per batch: some 300 bytes. That is 17 to 21 bytes a device
//! with random ids, the fewer the larger the batches, and 170 MB for ten million. A refused device takes 8 bytes more for
//! its code. All of it stays after the rollout has ended.
//!
//! While the server rewrites its file it may need as much again. Leave room: set `maxmemory` well
//! above the sum, for a server that is full takes no outcomes (nor anything else: it tells at a
//! script's first write, so that nothing is ever half-done).
//!
//! # Commands
//!
//! A batch is changed by one script, which compares the batch's stamp and writes what was made of it; what that is, whoever
//! changes it decides ([`Batch`](twincast_core::batch::Batch)). A window of outcomes is one script of some five commands, a
//! block of permits one of four, whatever their size: with windows of 128 that is less than a tenth of a command a device.
//!
//! # Durability
//!
//! A call is answered when the server has it in memory. What becomes of it is the server's
//! setting; a start without an append-only file is warned of.
//!
//! With `appendonly yes` and `appendfsync everysec`, the default, a server that dies loses up to
//! two seconds of acknowledged writes. A failover to a replica loses the writes that had not reached the
//! replica, which is of the same order. The server comes back in an older state, never in a mixture:
//!
//! * A plan is complete only if the server holds every batch of it: the step that completes the plan compares the
//!   checksum of the stored batches with the planner's. A plan that lost a batch is made again.
//! * No batch is listed or leased before the batch and the completion of its plan are two seconds old. So no message was
//!   sent of a plan that is lost. (`appendfsync always` without a replica needs no such wait.)
//! * A rollout ends only if no device of it is open in the server.
//! * A lost transition is noticed by the record's lineage, also when the same version was given to another
//!   transition since; the rollout's driver makes the transition again. Its announcement is repeated.
//! * Devices whose outcomes were lost are sent to again, with the same message ids. (Under `at_most_once` too; set
//!   `appendfsync always` where that matters.) Feedback is completed at the hub when its records are durable.
//! * Holders of lost leases are fenced at the next record: epochs follow the clock, so no epoch is given twice.
//! * Permits of the lost time are used, and unknown: the first request after a crash or a failover (the server's `run_id`
//!   is another) passes over as much time.
//!
//! Without an append-only file it is all of this for all since the last snapshot.
//!
//! # Time
//!
//! Leases, claims and permits go by the server's clock. When another server takes over whose
//! clock is ahead by d, leases lapse early by d; one that is behind holds them, and reserved
//! permits, for d longer. Keep the servers' clocks together to within a second.

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
