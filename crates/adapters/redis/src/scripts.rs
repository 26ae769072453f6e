//! The Lua scripts, and how they run.
//!
//! The text of a script consists of three parts: constants shared with the rest of the engine
//! (defined once, in Rust), code shared by scripts of the same kind, and the script's own file in
//! `scripts/`.
//!
//! The server knows scripts by digest, until a restart or a flush of the script cache. A script
//! unknown to the server is sent in full, to the same server and with the same effect. (Loading the
//! script first, as the client library does, would need all servers of a cluster, including a
//! server that is down.)

use std::sync::LazyLock;

use redis::{Cmd, Script as Digested, ToRedisArgs};
use twincast_core::evidence;
use twincast_core::permits;
use twincast_core::time::Timestamp;

use crate::keys::FORMAT;

/// A script.
#[derive(Debug)]
pub(crate) struct Script {
    text: String,
    digest: String,
}

/// All scripts.
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) create: Script,
    pub(crate) save: Script,
    pub(crate) save_notes: Script,
    pub(crate) remove: Script,
    pub(crate) unlist: Script,
    pub(crate) add_batches: Script,
    pub(crate) batches: Script,
    pub(crate) open_batches: Script,
    pub(crate) batch: Script,
    pub(crate) commit: Script,
    pub(crate) tallies: Script,
    pub(crate) in_progress: Script,
    pub(crate) snapshot: Script,
    pub(crate) claim: Script,
    pub(crate) release_claim: Script,
    pub(crate) set_published: Script,
    pub(crate) deactivate: Script,
    pub(crate) save_group_queue: Script,
    pub(crate) take_permits: Script,
    pub(crate) throttled: Script,
    pub(crate) limiter: Script,
    pub(crate) open_link: Script,
    pub(crate) report: Script,
    pub(crate) reports: Script,
}

/// All scripts, assembled on first use.
pub(crate) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(Scripts::new);

impl Scripts {
    fn new() -> Self {
        let common = constants() + include_str!("scripts/common.lua");
        let shared = common.clone() + include_str!("scripts/rollout.lua");
        let rollout = shared.clone() + include_str!("scripts/of_rollout.lua");
        let hub = common.clone() + include_str!("scripts/hub.lua");
        Self {
            create: Script::new(&rollout, include_str!("scripts/create.lua")),
            save: Script::new(&rollout, include_str!("scripts/save.lua")),
            save_notes: Script::new(&rollout, include_str!("scripts/save_notes.lua")),
            remove: Script::new(&rollout, include_str!("scripts/remove.lua")),
            unlist: Script::new(&common, include_str!("scripts/unlist.lua")),
            add_batches: Script::new(&rollout, include_str!("scripts/add_batches.lua")),
            batches: Script::new(&rollout, include_str!("scripts/batches.lua")),
            open_batches: Script::new(&rollout, include_str!("scripts/open_batches.lua")),
            batch: Script::new(&shared, include_str!("scripts/batch.lua")),
            commit: Script::new(&shared, include_str!("scripts/commit.lua")),
            tallies: Script::new(&rollout, include_str!("scripts/tallies.lua")),
            in_progress: Script::new(&rollout, include_str!("scripts/in_progress.lua")),
            snapshot: Script::new(&common, include_str!("scripts/snapshot.lua")),
            claim: Script::new(&common, include_str!("scripts/claim.lua")),
            release_claim: Script::new(&common, include_str!("scripts/release_claim.lua")),
            set_published: Script::new(&common, include_str!("scripts/set_published.lua")),
            deactivate: Script::new(&common, include_str!("scripts/deactivate.lua")),
            save_group_queue: Script::new(&common, include_str!("scripts/save_group_queue.lua")),
            take_permits: Script::new(&hub, include_str!("scripts/take_permits.lua")),
            throttled: Script::new(&hub, include_str!("scripts/throttled.lua")),
            limiter: Script::new(&hub, include_str!("scripts/limiter.lua")),
            open_link: Script::new(&common, include_str!("scripts/open_link.lua")),
            report: Script::new(&common, include_str!("scripts/report.lua")),
            reports: Script::new(&common, include_str!("scripts/reports.lua")),
        }
    }
}

impl Script {
    fn new(shared: &str, own: &str) -> Self {
        let text = format!("{shared}\n{own}");
        let digest = Digested::new(&text).get_hash().to_owned();
        Self { text, digest }
    }

    /// Prepares a run of the script on these keys. The first argument is the time in milliseconds,
    /// or empty for the server's time.
    pub(crate) fn on(&'static self, keys: &[String], time: &str) -> Run {
        Run {
            script: self,
            keys: keys.to_vec(),
            arguments: time.to_redis_args(),
        }
    }
}

/// A script with its keys and arguments.
#[derive(Debug)]
pub(crate) struct Run {
    script: &'static Script,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl Run {
    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    /// Returns the command for a server that knows the script.
    pub(crate) fn by_digest(&self) -> Cmd {
        self.command("EVALSHA", &self.script.digest)
    }

    /// Returns the command for any server, after which the server knows the script.
    pub(crate) fn in_full(&self) -> Cmd {
        self.command("EVAL", &self.script.text)
    }

    fn command(&self, verb: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(verb);
        command
            .arg(script)
            .arg(self.keys.len())
            .arg(&self.keys)
            .arg(&self.arguments);
        command
    }
}

/// Returns the constants of the scripts, as Lua.
fn constants() -> String {
    /// Refusals of other sends in flight at the first refusal belong to the same throttle.
    const ONE_THROTTLE_MS: u64 = 2_000;

    let us = |duration: std::time::Duration| duration.as_micros().to_string();
    let constants = [
        ("FORMAT", FORMAT.to_string()),
        ("LATEST", Timestamp::MAX.0.to_string()),
        (
            "REPORT_RETENTION_MS",
            evidence::REPORT_RETENTION.as_millis().to_string(),
        ),
        ("HORIZON_US", us(permits::HORIZON)),
        ("BLOCK_US", us(permits::BLOCK)),
        ("DRY_BELOW_US", us(permits::DRY_BELOW)),
        ("TURN_GRACE_US", us(permits::TURN_GRACE)),
        ("MAKE_UP_US", us(permits::MAKE_UP)),
        ("CUT", permits::CUT.to_string()),
        ("FLOOR", permits::FLOOR.to_string()),
        ("CLIMB_PER_SECOND", permits::CLIMB_PER_SECOND.to_string()),
        ("ONE_THROTTLE_MS", ONE_THROTTLE_MS.to_string()),
        ("LINK_MS", permits::Links::EACH.as_millis().to_string()),
        ("LINK_BURST", permits::Links::BURST.to_string()),
    ];
    constants
        .iter()
        .map(|(name, value)| format!("local {name} = {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_lua() {
        let text = constants();
        for line in [
            "local CUT = 0.7",
            "local HORIZON_US = 1000000",
            "local LATEST = 253402207200000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}:\n{text}");
        }
    }
}
