//! A process of the program under test, killed through the process handle at the end of the test.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;

use super::eventually;

/// A signal to send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    /// The signal of Ctrl-C.
    Interrupt,
    /// The signal of a service manager.
    Terminate,
}

/// A running process, with the output collected so far.
pub(crate) struct Running {
    child: Child,
    shown: String,
    stdout: Collected,
    stderr: Collected,
}

/// A stream, read to the end by a thread.
struct Collected {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let mut text = into.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self {
            text,
            reader: Some(reader),
        }
    }

    fn so_far(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.so_far()
    }
}

impl Running {
    /// Starts a command with empty standard input.
    pub(crate) fn start(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let stdout = Collected::from(child.stdout.take().expect("the stream is piped"));
        let stderr = Collected::from(child.stderr.take().expect("the stream is piped"));
        Self {
            child,
            shown,
            stdout,
            stderr,
        }
    }

    /// Returns the standard output so far, whole lines only.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    /// Returns the standard error so far, whole lines only.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Returns true if the process has ended.
    pub(crate) fn is_over(&mut self) -> bool {
        self.status().is_some()
    }

    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        let name = match signal {
            Signal::Interrupt => "INT",
            Signal::Terminate => "TERM",
        };
        // The shell's own `kill`: the standard library has no safe call to send a signal.
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name])
            .arg(self.id().to_string())
            .status()
            .expect("sh is installed");
        assert!(sent.success(), "{} did not get SIG{name}", self.shown);
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Limits the size of files written by the process from now on, in bytes.
    pub(crate) fn limit_file_size(&self, bytes: u64) {
        let limited = Command::new("prlimit")
            .args(["--pid", &self.id().to_string()])
            .arg(format!("--fsize={bytes}"))
            .status()
            .expect("prlimit (util-linux) is installed");
        assert!(limited.success(), "{} cannot be limited", self.shown);
    }

    /// Kills the process, as in a power cut (SIGKILL).
    pub(crate) fn kill(mut self) -> Ended {
        self.child.kill().expect("a child can be killed");
        self.wait()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        let what = format!("the end of {}", self.shown);
        let status = eventually(&what, || self.status());
        Ended {
            command: self.shown.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An ended process.
#[derive(Clone)]
pub(crate) struct Ended {
    command: String,
    /// The exit code, unless a signal ended the process.
    pub(crate) code: Option<i32>,
    /// The signal that ended the process.
    pub(crate) signal: Option<i32>,
    /// The standard output.
    pub(crate) stdout: String,
    /// The standard error.
    pub(crate) stderr: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\nended with code {:?}, signal {:?}\n-- stdout\n{}\n-- stderr\n{}",
            self.command,
            self.code,
            self.signal,
            shortened(&self.stdout),
            shortened(&self.stderr)
        )
    }
}

/// Returns the end of a text: failures are at the end.
fn shortened(text: &str) -> &str {
    let mut start = text.len().saturating_sub(8_000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

impl Ended {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Returns the result: standard output must be a single JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("standard output is not one JSON value: {error}\n{self}")
        })
    }

    /// Asserts that standard error contains all these words.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self}");
        }
        self
    }
}
