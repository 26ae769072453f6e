//! The end of the program: exit codes, and failures with hints for the user.

use std::fmt;

use twincast_core::error::without_os_codes;
use twincast_core::ports::{Disposition, StoreError};

/// The exit codes: stable, and documented in the README and in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Everything was done. For a rollout: all devices were sent the message, and no device is
    /// known to have failed.
    Success = 0,
    /// An unexpected error.
    Unexpected = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The input is refused: spec, configuration, device list, connection string, token, role, a
    /// rollout's name already in use, or a target without devices.
    Refused = 3,
    /// The rollout is finished, but some devices were not sent the message, did not take the
    /// message, or failed.
    FinishedWithFailures = 4,
    /// A hub cannot be reached, or its certificate is not trusted.
    HubUnreachable = 5,
    /// A hub refuses the credentials, or accepts no message.
    HubRefused = 6,
    /// The state folder cannot be used: in use, damaged, full, not writable.
    State = 7,
    /// The rollout was aborted, is paused or halted, or no process works on the rollout.
    NotRolledOut = 8,
    /// RabbitMQ, Redis or the server cannot be used, or no orchestrator answers.
    Services = 9,
    /// Interrupted. The same command continues the work.
    Interrupted = 130,
}

impl ExitCode {
    /// Returns the exit code for the end of a wait, by the name of the rollout's phase.
    pub(crate) fn of(phase: &str) -> Self {
        match phase {
            "succeeded" => Self::Success,
            "finished_with_failures" => Self::FinishedWithFailures,
            "failed" => Self::Refused,
            "aborting" | "aborted" | "paused" | "halted" => Self::NotRolledOut,
            _ => Self::Unexpected,
        }
    }

    /// All exit codes with meanings, for `--help`.
    pub(crate) const HELP: &'static str = "\
Exit codes:
  0    success; for a rollout: every device was sent the message, and none is known to have failed
  1    unexpected error
  2    wrong command line
  3    refused input: spec, configuration, device list, key, token, role, used name, empty target
  4    rollout finished, but some devices were not sent the message, did not accept it, or failed
  5    the hub cannot be reached, or the certificate of the hub is not trusted
  6    the hub refuses the key or accepts no messages
  7    the state folder is in use, damaged, full or not writable
  8    the rollout was aborted, is paused or halted, or no process works on the rollout
  9    RabbitMQ, Redis or the server is unavailable, or no orchestrator answers
  130  interrupted; the same command continues";
}

/// A failure: the error with causes, a hint for the user, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: ExitCode,
    pub(crate) error: anyhow::Error,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code,
            error: error.into(),
            hint: None,
        }
    }

    pub(crate) fn message(code: ExitCode, message: impl fmt::Display) -> Self {
        Self::new(code, anyhow::anyhow!("{message}"))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns true if further waiting makes sense: the error is transient.
    pub(crate) fn is_transient(&self) -> bool {
        let mut causes = self.error.chain();
        let is_transient = causes.any(|it| {
            let error = it.downcast_ref::<StoreError>();
            error.is_some_and(|error| error.disposition() == Disposition::Retry)
        });
        is_transient || self.code == ExitCode::Services
    }

    /// Returns the error and the causes, a line each. Omits causes contained in earlier lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for cause in self.error.chain() {
            let text = scrub(&without_os_codes(&cause.to_string()));
            if !lines.iter().any(|line| line.contains(&text)) {
                lines.push(text);
            }
        }
        lines
    }
}

/// Returns `text` without keys, signatures, and users and passwords of URLs. The program's own
/// texts contain a secret only if a user has put the secret into a wrong setting: the error message
/// or the printed configuration then shows the value.
pub(crate) fn scrub(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let marks = ["SharedAccessKey=", "sharedaccesskey=", "sig=", "://"];
    while let Some((at, mark)) = marks
        .iter()
        .filter_map(|mark| Some((rest.find(mark)?, mark)))
        .min()
    {
        let (before, after) = rest.split_at(at + mark.len());
        let secret = match *mark {
            "://" => user_of(after),
            _ => Some(word(after, ";&")),
        };
        out.push_str(before);
        if let Some(secret) = secret {
            out.push_str("(secret)");
            rest = &after[secret.len()..];
        } else {
            rest = after;
        }
    }
    out + rest
}

/// Returns the start of a text, up to white space, a quotation mark, or a character of `ends`.
fn word<'a>(text: &'a str, ends: &str) -> &'a str {
    let is_end = |c: char| c.is_whitespace() || "\"'`".contains(c) || ends.contains(c);
    &text[..text.find(is_end).unwrap_or(text.len())]
}

/// Returns user and password of a URL, given the text after `://`. A password may contain forbidden
/// characters; therefore user and password extend to the last `@`, unless the text before the path
/// is a plain host with a port.
fn user_of(text: &str) -> Option<&str> {
    let url = word(text, "");
    let authority = word(text, "/?#");
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = match authority.rsplit_once(':') {
        Some((_, port)) => is_port(port) || authority.ends_with(']'),
        None => true,
    };
    let has_user = authority.contains('@') || !is_host;
    let end = url.rfind('@').filter(|_| has_user);
    end.map(|end| &text[..end])
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(ExitCode::Unexpected, error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(ExitCode::Unexpected, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_never_show() {
        let text = "invalid type: string \"HostName=h;SharedAccessKey=aGk=/+x==;X=1\", and sr=h&sig=abc%3D&se=1";
        assert_eq!(
            scrub(text),
            "invalid type: string \"HostName=h;SharedAccessKey=(secret);X=1\", and sr=h&sig=(secret)&se=1"
        );
        for nothing in [
            "nothing here",
            "https://twincast.example:8443/api/v1?at=a@b",
            "http://[::1]:80/a@b and http://[::1]/",
            "localhost:80",
        ] {
            assert_eq!(scrub(nothing), nothing);
        }
        let urls = [
            ("https://ann:pass@host:1/x", "https://(secret)@host:1/x"),
            (
                "\"url\": \"https://token@host\",",
                "\"url\": \"https://(secret)@host\",",
            ),
            (
                "'amqps://u:p@ss/w@rd@host/v' and http://a:b@c",
                "'amqps://(secret)@host/v' and http://(secret)@c",
            ),
            ("https://ann:pa/ss@host/", "https://(secret)@host/"),
        ];
        for (text, shown) in urls {
            assert_eq!(scrub(text), shown);
        }
    }
}
