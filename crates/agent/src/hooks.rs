//! Runs the device's own commands, each only once as far as possible. After a restart, the agent
//! waits for a hook still running, or reads the exit code of a hook ended in the meantime.
//!
//! A small shell script runs between agent and command. The script holds a lock (through standard
//! input) while the command runs, and writes the exit code beside the command's output at the end.
//! After a `kill -9` of the agent, the next agent finds the lock held and waits, or finds the exit
//! code. If both are missing (the machine lost power during the command), the hook runs again with
//! `TWINCAST_AGAIN=1`.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::config::{self, to_std};
use crate::slots;
use crate::store;
use crate::update::{Hook, HookResult};

/// The time before the deadline reserved for the last run of a health check.
const LAST_CHECK: Duration = Duration::from_secs(1);

/// The script around a command. `$0` is the path of the results; the other arguments are the
/// command. Standard input is the lock file, and contains the process id of the script.
const SCRIPT: &str = r#"echo $$ >&0; : >"$0.pid"; "$@" </dev/null >>"$0.out" 2>&1; code=$?; echo $code >"$0.new" && mv "$0.new" "$0.code""#;

/// The exit code of `activate` for an announced restart.
const EXIT_RESTART: i32 = 3;
/// The exit code of `install` for a requested further attempt (EX_TEMPFAIL of sysexits.h).
const EXIT_RETRY: i32 = 75;

/// The largest kept output of a command, in bytes. A report quotes the end of the output; the rest
/// is for manual inspection.
const OUTPUT_MAX: u64 = 64 << 10;
/// The number of bytes at the end of the output used for a report.
const REPORTED_OUTPUT: u64 = 2 << 10;
/// The time between SIGTERM and SIGKILL for a command beyond the time limit.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// The polling interval for the end of a command.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The description of an update for hooks, passed as environment variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) previous: Option<String>,
    pub(crate) artifact: PathBuf,
    /// The code of the reason, during a rollback.
    pub(crate) reason: Option<String>,
}

/// Runs hooks.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    pub(crate) hooks: config::Hooks,
    pub(crate) slots: Option<config::Slots>,
    pub(crate) health: Option<config::Health>,
    pub(crate) folder: PathBuf,
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Code(i32),
    TimedOut,
}

impl Runner {
    /// Runs a hook, or returns the result of an earlier run. Cancel safe: the command continues,
    /// and the next call finds the command.
    pub(crate) async fn run(&self, hook: Hook, attempt: u32, context: &Context) -> HookResult {
        let results = self.folder.join(key(hook, attempt, &context.id));
        // The command starts after the slots' part; an existing `pid` file means the slots' part is
        // done.
        if let Some(slots) = self
            .slots
            .clone()
            .filter(|_| !result_file(&results, "pid").exists())
        {
            let context = context.clone();
            let done =
                tokio::task::spawn_blocking(move || slots::run(hook, &slots, &context)).await;
            if let Err(error) = done.unwrap_or_else(|error| Err(io::Error::other(error))) {
                return HookResult::Failed(format!("slots: {error}"));
            }
        }
        let command = match hook {
            Hook::Install => &self.hooks.install,
            Hook::Activate => &self.hooks.activate,
            Hook::Confirm => &self.hooks.confirm,
            Hook::Rollback => &self.hooks.rollback,
        };
        let Some(command) = command else {
            return HookResult::Done;
        };
        let environment = self.environment(hook.name(), attempt, context);
        let timeout = to_std(self.hooks.timeout);
        match self
            .run_once(&results, command, &environment, timeout)
            .await
        {
            Ok(exit) => result_of(hook, exit, timeout, &output_end(&results)),
            Err(error) => HookResult::Failed(format!("cannot run {}: {error}", command[0])),
        }
    }

    /// Waits for a successful health check of the new version.
    ///
    /// # Errors
    /// The last output of the command, if no check succeeds within the time limit.
    pub(crate) async fn wait_until_healthy(&self, context: &Context) -> Result<(), String> {
        let Some(health) = &self.health else {
            return Ok(());
        };
        let (started_at, within) = (Instant::now(), to_std(health.within));
        let results = self.folder.join("health");
        let environment = self.environment("health", 1, context);
        let mut last_output = None;
        loop {
            let left = within.saturating_sub(started_at.elapsed());
            let exit = self
                .run_again(&results, &health.command, &environment, left)
                .await;
            let output = match exit {
                Ok(Exit::Code(0)) => return Ok(()),
                Ok(Exit::Code(code)) => output_or_code(&output_end(&results), code),
                // A check cut short by the deadline does not replace the output of the check
                // before.
                Ok(Exit::TimedOut) => last_output.take().unwrap_or_else(|| {
                    format!("timed out after {left:?} {}", output_end(&results))
                }),
                Err(error) => format!("cannot run {}: {error}", health.command[0]),
            };
            let (pause, left) = (
                to_std(health.every),
                within.saturating_sub(started_at.elapsed()),
            );
            let last = LAST_CHECK.min(pause);
            if left <= last {
                return Err(output);
            }
            // Reserve time for the last check.
            let pause = pause.min(left - last);
            tracing::info!(output, "health check failed; retrying");
            last_output = Some(output);
            tokio::time::sleep(pause).await;
        }
    }

    /// Removes the results of hooks after the end of an update. Does nothing while a command runs.
    pub(crate) fn clear(&self) {
        let is_idle = self.lock().is_ok_and(|lock| lock.is_some());
        if is_idle && let Err(error) = store::clear(&self.folder) {
            tracing::warn!(%error, "failed to remove the hook results");
        }
    }

    fn environment(
        &self,
        hook: &str,
        attempt: u32,
        context: &Context,
    ) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("TWINCAST_HOOK", hook.to_owned()),
            ("TWINCAST_ID", context.id.clone()),
            ("TWINCAST_NAME", context.name.clone()),
            ("TWINCAST_VERSION", context.version.clone()),
            (
                "TWINCAST_PREVIOUS",
                context.previous.clone().unwrap_or_default(),
            ),
            ("TWINCAST_ARTIFACT", context.artifact.display().to_string()),
            ("TWINCAST_ATTEMPT", attempt.to_string()),
            (
                "TWINCAST_REASON",
                context.reason.clone().unwrap_or_default(),
            ),
        ];
        if let Some(slot) = self
            .slots
            .as_ref()
            .and_then(|slots| slots::slot_of(slots, &context.id))
        {
            environment.push(("TWINCAST_SLOT", slot.display().to_string()));
        }
        environment
    }

    /// Runs a command, or returns the result of an earlier run.
    async fn run_once(
        &self,
        results: &Path,
        command: &[String],
        environment: &[(&str, String)],
        timeout: Duration,
    ) -> io::Result<Exit> {
        let lock = match self
            .wait_for_lock(results, timeout.saturating_sub(age(results)))
            .await?
        {
            (_, Some(exit)) => return Ok(exit),
            (lock, None) => lock,
        };
        let is_again = result_file(results, "pid").exists();
        if is_again {
            tracing::warn!(
                command = command[0],
                "hook was interrupted; running the hook again"
            );
        }
        spawn(results, command, environment, is_again, lock)?;
        match self.wait_for_lock(results, timeout).await? {
            (_, Some(exit)) => Ok(exit),
            (_, None) => Err(io::Error::other(
                "the command was killed by another process and has no exit code",
            )),
        }
    }

    /// Runs a command again, discarding the result of an earlier run.
    async fn run_again(
        &self,
        results: &Path,
        command: &[String],
        environment: &[(&str, String)],
        timeout: Duration,
    ) -> io::Result<Exit> {
        let (lock, _) = self.wait_for_lock(results, timeout).await?;
        for kind in ["pid", "out", "code"] {
            match fs::remove_file(result_file(results, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        spawn(results, command, environment, false, lock)?;
        match self.wait_for_lock(results, timeout).await? {
            (_, Some(exit)) => Ok(exit),
            (_, None) => Err(io::Error::other(
                "the command was killed by another process and has no exit code",
            )),
        }
    }

    /// Waits until no command runs, and ends a command after `timeout`. Returns the lock, and the
    /// end of the command with these results.
    async fn wait_for_lock(
        &self,
        results: &Path,
        timeout: Duration,
    ) -> io::Result<(File, Option<Exit>)> {
        let started_at = Instant::now();
        let mut signal = rustix::process::Signal::TERM;
        let mut next_signal = timeout;
        let output = result_file(results, "out");
        loop {
            if let Some(lock) = self.lock()? {
                keep_output_end(results)?;
                let is_ended = signal == rustix::process::Signal::KILL;
                let exit = read_exit(results).or(is_ended.then_some(Exit::TimedOut));
                return Ok((lock, exit));
            }
            if started_at.elapsed() >= next_signal {
                self.signal_group(signal);
                (signal, next_signal) = (
                    rustix::process::Signal::KILL,
                    started_at.elapsed() + KILL_AFTER,
                );
            }
            // The script appends, so further output goes to the new end of the file.
            if fs::metadata(&output).is_ok_and(|it| it.len() > OUTPUT_MAX) {
                File::options().write(true).open(&output)?.set_len(0)?;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a signal to the process group of the command holding the lock.
    fn signal_group(&self, signal: rustix::process::Signal) {
        let holder = fs::read_to_string(self.folder.with_extension("lock")).ok();
        let pid = holder.and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            tracing::warn!(
                pid = pid.as_raw_nonzero().get(),
                ?signal,
                "hook exceeded the time limit; sending a signal"
            );
            // An error means an already ended command, as intended.
            _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Returns the lock, or none while a command holds the lock.
    fn lock(&self) -> io::Result<Option<File>> {
        // The lock file is outside of the results folder, because `clear` empties the folder.
        let path = self.folder.with_extension("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => file.set_len(0).map(|()| Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Starts a command holding the lock until the end of the command. The command has a process group
/// of its own, so signals to the agent's group do not reach it.
fn spawn(
    results: &Path,
    command: &[String],
    environment: &[(&str, String)],
    is_again: bool,
    lock: File,
) -> io::Result<()> {
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .args(["-c", SCRIPT])
        .arg(results)
        .args(command)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("TWINCAST_AGAIN", if is_again { "1" } else { "0" })
        .stdin(lock)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // The runtime reaps a dropped child process after the process ends.
    let _child = tokio::process::Command::from(shell).spawn()?;
    Ok(())
}

fn result_file(results: &Path, kind: &str) -> PathBuf {
    results.with_extension(kind)
}

fn read_exit(results: &Path) -> Option<Exit> {
    let code = fs::read_to_string(result_file(results, "code")).ok()?;
    code.trim().parse().ok().map(Exit::Code)
}

/// Returns the time since the start of a command; zero for a command not started, or started in the
/// future according to a changed clock.
fn age(results: &Path) -> Duration {
    let started = fs::metadata(result_file(results, "pid")).and_then(|it| it.modified());
    started
        .ok()
        .and_then(|started| started.elapsed().ok())
        .unwrap_or_default()
}

/// Returns the file name of a hook's results. The id is hashed, because ids may contain any
/// characters.
fn key(hook: Hook, attempt: u32, id: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, id.as_bytes());
    format!(
        "{}-{attempt}-{}",
        hook.name(),
        hex::encode(&digest.as_ref()[..8])
    )
}

/// Returns the end of a command's output.
fn output_end(results: &Path) -> String {
    let end = read_end(&result_file(results, "out"), REPORTED_OUTPUT);
    String::from_utf8_lossy(&end.unwrap_or_default())
        .trim()
        .to_owned()
}

/// Shortens the output of an ended command to the end: the output may have grown while no agent was
/// running.
fn keep_output_end(results: &Path) -> io::Result<()> {
    let output = result_file(results, "out");
    if fs::metadata(&output).is_ok_and(|it| it.len() > OUTPUT_MAX) {
        fs::write(&output, read_end(&output, OUTPUT_MAX)?)?;
    }
    Ok(())
}

/// Reads the last bytes of a file, at most `most`.
fn read_end(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn output_or_code(output: &str, code: i32) -> String {
    if output.is_empty() {
        format!("exit code {code}")
    } else {
        output.to_owned()
    }
}

/// Maps an exit code to the result of a hook.
fn result_of(hook: Hook, exit: Exit, timeout: Duration, output: &str) -> HookResult {
    match (exit, hook) {
        (Exit::Code(0), _) => HookResult::Done,
        (Exit::Code(EXIT_RESTART), Hook::Activate) => HookResult::Restart,
        (Exit::Code(EXIT_RETRY), Hook::Install) => {
            HookResult::Retry(output_or_code(output, EXIT_RETRY))
        }
        (Exit::Code(code), _) => HookResult::Failed(output_or_code(output, code)),
        (Exit::TimedOut, _) => HookResult::Failed(format!("timed out after {timeout:?} {output}")),
    }
}

#[cfg(test)]
mod tests;
