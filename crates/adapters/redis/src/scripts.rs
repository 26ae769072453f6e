//! The scripts, and how they are run.
//!
//! A script's text is made of the constants that it shares with the rest of Twincast (written
//! once, in Rust), of what scripts of its kind share, and of its own file in `scripts/`.
//!
//! The server knows scripts by their digests, until it restarts or is told to forget them. One
//! that it does not know is sent whole, to the same server and with the same effect. (To load it
//! first, as the client library does, would take all servers of a cluster, one that is down too.)

use std::sync::LazyLock;

use redis::{Cmd, Script as Digested, ToRedisArgs};
use twincast_core::evidence;
use twincast_core::permits;
use twincast_core::time::Timestamp;

use crate::keys::FORMAT;

/// One script.
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
    pub(crate) note: Script,
    pub(crate) remove: Script,
    pub(crate) strike: Script,
    pub(crate) add_batches: Script,
    pub(crate) batches: Script,
    pub(crate) open_batches: Script,
    pub(crate) batch: Script,
    pub(crate) commit: Script,
    pub(crate) tallies: Script,
    pub(crate) in_progress: Script,
    pub(crate) look: Script,
    pub(crate) claim: Script,
    pub(crate) disclaim: Script,
    pub(crate) set_announced: Script,
    pub(crate) retire: Script,
    pub(crate) save_line: Script,
    pub(crate) take_permits: Script,
    pub(crate) throttled: Script,
    pub(crate) limiter: Script,
    pub(crate) open_link: Script,
    pub(crate) report: Script,
    pub(crate) reports: Script,
}

/// All scripts, put together when the first is run.
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
            note: Script::new(&rollout, include_str!("scripts/note.lua")),
            remove: Script::new(&rollout, include_str!("scripts/remove.lua")),
            strike: Script::new(&common, include_str!("scripts/strike.lua")),
            add_batches: Script::new(&rollout, include_str!("scripts/add_batches.lua")),
            batches: Script::new(&rollout, include_str!("scripts/batches.lua")),
            open_batches: Script::new(&rollout, include_str!("scripts/open_batches.lua")),
            batch: Script::new(&shared, include_str!("scripts/batch.lua")),
            commit: Script::new(&shared, include_str!("scripts/commit.lua")),
            tallies: Script::new(&rollout, include_str!("scripts/tallies.lua")),
            in_progress: Script::new(&rollout, include_str!("scripts/in_progress.lua")),
            look: Script::new(&common, include_str!("scripts/look.lua")),
            claim: Script::new(&common, include_str!("scripts/claim.lua")),
            disclaim: Script::new(&common, include_str!("scripts/disclaim.lua")),
            set_announced: Script::new(&common, include_str!("scripts/set_announced.lua")),
            retire: Script::new(&common, include_str!("scripts/retire.lua")),
            save_line: Script::new(&common, include_str!("scripts/save_line.lua")),
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

    /// A run of it on these keys. The first argument is the time in milliseconds, or empty for
    /// the server's.
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

    /// The command for a server that knows the script.
    pub(crate) fn by_digest(&self) -> Cmd {
        self.command("EVALSHA", &self.script.digest)
    }

    /// The command for any server; it knows the script from then on.
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

/// The constants that scripts use, as Lua.
fn constants() -> String {
    /// Other refusals of what was in flight at the first one are the same throttle.
    const ONE_THROTTLE_MS: u64 = 2_000;

    let us = |duration: std::time::Duration| duration.as_micros().to_string();
    let constants = [
        ("FORMAT", FORMAT.to_string()),
        ("LATEST", Timestamp::MAX.0.to_string()),
        ("FORGOTTEN_MS", evidence::FORGOTTEN.as_millis().to_string()),
        ("HORIZON_US", us(permits::HORIZON)),
        ("BLOCK_US", us(permits::BLOCK)),
        ("DRY_US", us(permits::DRY)),
        ("KEEP_US", us(permits::KEEP)),
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
