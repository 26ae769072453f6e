//! How the program ends: exit codes, and failures that tell the user what to do.

use std::fmt;

use twincast_core::error::without_codes;
use twincast_core::ports::{Disposition, StoreError};

/// The exit codes. They are documented in the README and in `--help`, and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Everything was done. Of a rollout: all was sent, and no device is known to have failed.
    Success = 0,
    /// Something that should not happen.
    Unexpected = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The input is refused: spec, configuration, device list, connection string, token, role, or a
    /// rollout's name that is taken; a target without devices.
    Refused = 3,
    /// The rollout is finished, but some devices were not sent the message, did not take it, or failed.
    FinishedWithFailures = 4,
    /// A hub cannot be reached, or its certificate is not trusted.
    HubUnreachable = 5,
    /// A hub refuses our key, or takes nothing.
    HubRefused = 6,
    /// The state folder cannot be used: in use, damaged, full, not writable.
    State = 7,
    /// The rollout was aborted, is paused or halted, or nobody works on it.
    NotRolledOut = 8,
    /// RabbitMQ, Redis or the server cannot be used, or no orchestrator answers.
    Services = 9,
    /// Interrupted. The same command goes on where this one left off.
    Interrupted = 130,
}

impl ExitCode {
    /// What a rollout's phase, by its name, comes to for whoever waited for its end.
    pub(crate) fn of(phase: &str) -> Self {
        match phase {
            "succeeded" => Self::Success,
            "finished_with_failures" => Self::FinishedWithFailures,
            "failed" => Self::Refused,
            "aborting" | "aborted" | "paused" | "halted" => Self::NotRolledOut,
            _ => Self::Unexpected,
        }
    }

    /// All of them, with their meaning, for `--help`.
    pub(crate) const HELP: &'static str = "\
Exit codes:
  0    done; of a rollout: all sent, and none known to have failed
  1    something unexpected
  2    wrong command line
  3    refused input: spec, configuration, device list, key, token, role, name taken, empty target
  4    finished, but some devices were not sent the message, did not take it, or failed
  5    hub cannot be reached, or its certificate is not trusted
  6    hub refuses the key, or takes nothing
  7    state folder in use, damaged, full or not writable
  8    the rollout was aborted, is paused or halted, or nobody works on it
  9    RabbitMQ, Redis or the server cannot be used, or no orchestrator answers
  130  interrupted; the same command goes on from there";
}

/// A failure: what went wrong, why, what to do about it, and the code to end with.
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

    /// Who waits may go on waiting: what does not answer now may do so later.
    pub(crate) fn may_pass(&self) -> bool {
        let mut causes = self.error.chain();
        let may_pass = causes.any(|it| {
            let error = it.downcast_ref::<StoreError>();
            error.is_some_and(|error| error.disposition() == Disposition::Retry)
        });
        may_pass || self.code == ExitCode::Services
    }

    /// The error and its causes, one a line. A cause that only repeats what was said is left out.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for cause in self.error.chain() {
            let text = scrub(&without_codes(&cause.to_string()));
            if !lines.iter().any(|line| line.contains(&text)) {
                lines.push(text);
            }
        }
        lines
    }
}

/// `text` without keys, signatures, and users and passwords of URLs. A secret can be in a text of ours only when it was put
/// into a place where none belongs, and the complaint about that place, or the configuration, shows what was found.
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

/// The beginning of a text, up to a space, a quotation mark, or one of these.
fn word<'a>(text: &'a str, ends: &str) -> &'a str {
    let is_end = |c: char| c.is_whitespace() || "\"'`".contains(c) || ends.contains(c);
    &text[..text.find(is_end).unwrap_or(text.len())]
}

/// User and password of a URL, by what comes after its `://`. A password may have characters that it must not have, so
/// they are all up to the last `@`, unless what stands before the path is just a host with its port.
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
