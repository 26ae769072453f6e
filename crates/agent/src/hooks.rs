//! The device's own commands. Each runs once, as far as that can be known: a hook that outlives the agent is waited for, and one
//! that ended while the agent was away has left its exit code.
//!
//! A small shell script stands between agent and command. It holds a lock (as its standard input) as long as the command runs,
//! and writes the exit code beside the command's output at the end. After a `kill -9` of the agent, the next one finds the lock
//! held and waits, or finds the code. Only where both are gone (the machine lost its power in the middle) is the hook
//! run again, with `TWINCAST_AGAIN=1`.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::config::{self, span};
use crate::slots;
use crate::store;
use crate::update::{Hook, HookEnd};

/// How long before the end of its time a health check is run for the last time.
const LAST_CHECK: Duration = Duration::from_secs(1);

/// `$0` is where the results go, and the rest is the command. Standard input is the lock, which names the one that holds it.
const SCRIPT: &str = r#"echo $$ >&0; : >"$0.pid"; "$@" </dev/null >>"$0.out" 2>&1; code=$?; echo $code >"$0.new" && mv "$0.new" "$0.code""#;

/// The exit code of `activate` that announces a restart.
const RESTART: i32 = 3;
/// The exit code of `install` that asks for another try (EX_TEMPFAIL of sysexits.h).
const LATER: i32 = 75;

/// What is kept of a command's output, in bytes. Its last words fit into a report; the rest is for whoever looks.
const OUTPUT_MAX: u64 = 64 << 10;
/// How much of that a report is made of.
const LAST_WORDS: u64 = 2 << 10;
/// How long a command has between being asked to end and being ended.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether a command has ended.
const POLL: Duration = Duration::from_millis(50);

/// What hooks are told of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) previous: Option<String>,
    pub(crate) artifact: PathBuf,
    /// Why it is rolled back: the code of the reason.
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

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Code(i32),
    TimedOut,
}

impl Runner {
    /// Runs a hook, or finds out how it ended. Cancel safe: a command goes on, and the next call finds it.
    pub(crate) async fn run(&self, hook: Hook, attempt: u32, context: &Context) -> HookEnd {
        let results = self.folder.join(key(hook, attempt, &context.id));
        // The command begins when the slots are done.
        if let Some(slots) = self
            .slots
            .clone()
            .filter(|_| !beside(&results, "pid").exists())
        {
            let context = context.clone();
            let done =
                tokio::task::spawn_blocking(move || slots::run(hook, &slots, &context)).await;
            if let Err(error) = done.unwrap_or_else(|error| Err(io::Error::other(error))) {
                return HookEnd::Failed(format!("slots: {error}"));
            }
        }
        let command = match hook {
            Hook::Install => &self.hooks.install,
            Hook::Activate => &self.hooks.activate,
            Hook::Confirm => &self.hooks.confirm,
            Hook::Rollback => &self.hooks.rollback,
        };
        let Some(command) = command else {
            return HookEnd::Done;
        };
        let environment = self.environment(hook.name(), attempt, context);
        let timeout = span(self.hooks.timeout);
        match self.once(&results, command, &environment, timeout).await {
            Ok(exit) => end(hook, exit, timeout, &last_words(&results)),
            Err(error) => HookEnd::Failed(format!("cannot run {}: {error}", command[0])),
        }
    }

    /// Waits until the new version says that it works.
    ///
    /// # Errors
    /// What the command said last, if it does not within its time.
    pub(crate) async fn healthy(&self, context: &Context) -> Result<(), String> {
        let Some(health) = &self.health else {
            return Ok(());
        };
        let (begun, within) = (Instant::now(), span(health.within));
        let results = self.folder.join("health");
        let environment = self.environment("health", 1, context);
        let mut said = None;
        loop {
            let left = within.saturating_sub(begun.elapsed());
            let exit = self
                .anew(&results, &health.command, &environment, left)
                .await;
            let words = match exit {
                Ok(Exit::Code(0)) => return Ok(()),
                Ok(Exit::Code(code)) => or_code(&last_words(&results), code),
                // One that is cut short by the end of the time does not take the words of the one before.
                Ok(Exit::TimedOut) => said.take().unwrap_or_else(|| {
                    format!("no answer within {left:?} {}", last_words(&results))
                }),
                Err(error) => format!("cannot run {}: {error}", health.command[0]),
            };
            let (pause, left) = (span(health.every), within.saturating_sub(begun.elapsed()));
            let last = LAST_CHECK.min(pause);
            if left <= last {
                return Err(words);
            }
            // The last check has a little time of its own.
            let pause = pause.min(left - last);
            tracing::info!(words, "new version does not work yet");
            said = Some(words);
            tokio::time::sleep(pause).await;
        }
    }

    /// Removes what hooks have left, once no update is on its way.
    pub(crate) fn clear(&self) {
        let is_idle = self.lock().is_ok_and(|lock| lock.is_some());
        if is_idle && let Err(error) = store::clear(&self.folder) {
            tracing::warn!(%error, "results of hooks cannot be removed");
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

    /// Runs a command, unless it has run.
    async fn once(
        &self,
        results: &Path,
        command: &[String],
        environment: &[(&str, String)],
        timeout: Duration,
    ) -> io::Result<Exit> {
        let lock = match self
            .wait(results, timeout.saturating_sub(age(results)))
            .await?
        {
            (_, Some(exit)) => return Ok(exit),
            (lock, None) => lock,
        };
        let is_again = beside(results, "pid").exists();
        if is_again {
            tracing::warn!(
                command = command[0],
                "hook was interrupted; it is run again"
            );
        }
        spawn(results, command, environment, is_again, lock)?;
        match self.wait(results, timeout).await? {
            (_, Some(exit)) => Ok(exit),
            (_, None) => Err(io::Error::other(
                "it was ended from outside, without an exit code",
            )),
        }
    }

    /// Runs a command, also if it has run.
    async fn anew(
        &self,
        results: &Path,
        command: &[String],
        environment: &[(&str, String)],
        timeout: Duration,
    ) -> io::Result<Exit> {
        let (lock, _) = self.wait(results, timeout).await?;
        for kind in ["pid", "out", "code"] {
            match fs::remove_file(beside(results, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        spawn(results, command, environment, false, lock)?;
        match self.wait(results, timeout).await? {
            (_, Some(exit)) => Ok(exit),
            (_, None) => Err(io::Error::other(
                "it was ended from outside, without an exit code",
            )),
        }
    }

    /// Waits until no command runs, and ends one that runs too long. Gives the lock, and how the command with these results ended.
    async fn wait(&self, results: &Path, timeout: Duration) -> io::Result<(File, Option<Exit>)> {
        let begun = Instant::now();
        let mut signal = rustix::process::Signal::TERM;
        let mut next_signal = timeout;
        let output = beside(results, "out");
        loop {
            if let Some(lock) = self.lock()? {
                let is_ended = signal == rustix::process::Signal::KILL;
                let exit = read_exit(results).or(is_ended.then_some(Exit::TimedOut));
                return Ok((lock, exit));
            }
            if begun.elapsed() >= next_signal {
                self.signal_group(signal);
                (signal, next_signal) = (rustix::process::Signal::KILL, begun.elapsed() + GRACE);
            }
            // The script appends: what comes after goes to the new end.
            if fs::metadata(&output).is_ok_and(|it| it.len() > OUTPUT_MAX) {
                File::options().write(true).open(&output)?.set_len(0)?;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends a signal to the command that holds the lock, and to all that it has started.
    fn signal_group(&self, signal: rustix::process::Signal) {
        let holder = fs::read_to_string(self.folder.with_extension("lock")).ok();
        let pid = holder.and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            tracing::warn!(
                pid = pid.as_raw_nonzero().get(),
                ?signal,
                "hook takes too long and is ended"
            );
            // One that has just ended is what is wanted.
            _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// The lock, if no command holds it.
    fn lock(&self) -> io::Result<Option<File>> {
        // Not among the results: those are removed.
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

/// Starts a command that holds the lock until it ends. It is in a process group of its own: what stops the agent does not stop it.
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
    // Dropped, it is collected by the runtime once it ends.
    let _child = tokio::process::Command::from(shell).spawn()?;
    Ok(())
}

fn beside(results: &Path, kind: &str) -> PathBuf {
    results.with_extension(kind)
}

fn read_exit(results: &Path) -> Option<Exit> {
    let code = fs::read_to_string(beside(results, "code")).ok()?;
    code.trim().parse().ok().map(Exit::Code)
}

/// How long ago a command was started; nothing if it was not, or by another clock.
fn age(results: &Path) -> Duration {
    let started = fs::metadata(beside(results, "pid")).and_then(|it| it.modified());
    started
        .ok()
        .and_then(|started| started.elapsed().ok())
        .unwrap_or_default()
}

/// The file name of a hook's results: ids may have any characters.
fn key(hook: Hook, attempt: u32, id: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, id.as_bytes());
    format!(
        "{}-{attempt}-{}",
        hook.name(),
        hex::encode(&digest.as_ref()[..8])
    )
}

/// What a command said last.
fn last_words(results: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(beside(results, "out"))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default())
        .trim()
        .to_owned()
}

fn or_code(words: &str, code: i32) -> String {
    if words.is_empty() {
        format!("exit code {code}")
    } else {
        words.to_owned()
    }
}

/// The contract of exit codes.
fn end(hook: Hook, exit: Exit, timeout: Duration, words: &str) -> HookEnd {
    match (exit, hook) {
        (Exit::Code(0), _) => HookEnd::Done,
        (Exit::Code(RESTART), Hook::Activate) => HookEnd::Restart,
        (Exit::Code(LATER), Hook::Install) => HookEnd::Later(or_code(words, LATER)),
        (Exit::Code(code), _) => HookEnd::Failed(or_code(words, code)),
        (Exit::TimedOut, _) => HookEnd::Failed(format!("ended after {timeout:?} {words}")),
    }
}

#[cfg(test)]
mod tests;
