//! Errors of Redis, and the conversion into errors of the port.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use twincast_core::ports::StoreError;
use twincast_secret::SourceError;
use twincast_tls::RootsError;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings are wrong.
    #[error("the settings for Redis are wrong: {what}")]
    Settings {
        /// The mistake.
        what: String,
    },
    /// The file with the URL cannot be used.
    #[error("cannot read the URL of Redis")]
    Source(#[source] SourceError),
    /// The provider has no user and password.
    #[error("cannot get user and password for Redis")]
    Credentials(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The CA file cannot be used.
    #[error("cannot load the certificate authorities for Redis")]
    Authorities(#[from] RootsError),
    /// The server refuses user or password.
    #[error("Redis at {servers} refuses user or password")]
    Refused {
        /// Host and port of all given servers.
        servers: String,
        /// The error of the server.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No server answers.
    #[error("cannot connect to Redis at {servers}")]
    Unreachable {
        /// Host and port of all given servers.
        servers: String,
        /// The error of the client library.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server is older than the oldest supported version.
    #[error("Redis at {server} is version {found}; it must be {needed} or later")]
    TooOld {
        /// Host and port.
        server: String,
        /// The version of the server.
        found: String,
        /// The oldest supported version.
        needed: &'static str,
    },
    /// The server may evict rollouts.
    #[error(
        "Redis at {server} may evict rollouts when its memory is full: \
         its maxmemory-policy is {policy}; set it to noeviction"
    )]
    Evicts {
        /// Host and port.
        server: String,
        /// The server's `maxmemory-policy`.
        policy: String,
    },
    /// The server runs no scripts for this user.
    #[error("Redis at {servers} runs no Lua scripts for this user")]
    NoScripts {
        /// Host and port of all given servers.
        servers: String,
        /// The error of the server.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A value that this store cannot have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidData(pub(crate) String);

/// Returns whether the connection is dropped after this error. After a timeout, the connection may
/// lead to a lost server.
pub(crate) fn needs_reconnect(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || is_refusal(error) || is_demoted(error)
}

/// Returns whether the server is no longer the master: the server is a replica, or has lost contact
/// to the replicas or the master.
pub(crate) fn is_demoted(error: &RedisError) -> bool {
    let codes = ["READONLY", "NOREPLICAS", "MASTERDOWN"];
    codes.iter().any(|code| has_code(error, code))
}

/// Returns whether the server refuses user and password.
pub(crate) fn is_refusal(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

/// Creates the error of a call for which no connection was made.
pub(crate) fn no_connection(
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RedisError {
    std::io::Error::other(error).into()
}

/// Creates the error of a timed out call.
pub(crate) fn timed_out(after: Duration) -> RedisError {
    let what = format!("no answer within {after:?}");
    std::io::Error::new(std::io::ErrorKind::TimedOut, what).into()
}

/// Converts an error during the operation `doing` (a description) to an error of the port.
pub(crate) fn store_error(doing: String, error: RedisError) -> StoreError {
    let meaning = Meaning::of(&error);
    let source = Box::new(error);
    match meaning {
        Meaning::NotWritable => StoreError::NotWritable { doing, source },
        Meaning::Unavailable => StoreError::Unavailable { doing, source },
        Meaning::Corrupt => StoreError::Corrupt { doing, source },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    NotWritable,
    Unavailable,
    Corrupt,
}

impl Meaning {
    /// Unknown errors count as transient. `READONLY` is transient: a server demoted in a failover
    /// answers `READONLY`, and the next call finds the new master.
    fn of(error: &RedisError) -> Self {
        // Version 7 reports NOPERM for a command in a script with this text.
        let is_denied = error
            .detail()
            .is_some_and(|detail| detail.contains("user executing the script can't run"));
        if is_denied
            || ["OOM", "MISCONF", "NOPERM"]
                .iter()
                .any(|c| has_code(error, c))
        {
            return Self::NotWritable;
        }
        let of_a_script = error.detail().is_some_and(|d| d.contains("user_script"));
        match error.kind() {
            ErrorKind::UnexpectedReturnType => Self::Corrupt,
            // A key of another type, or a script that could not interpret stored data.
            ErrorKind::Extension if has_code(error, "WRONGTYPE") => Self::Corrupt,
            ErrorKind::Server(ServerErrorKind::ResponseError) if of_a_script => Self::Corrupt,
            _ => Self::Unavailable,
        }
    }
}

/// Returns whether an error has this code. Before version 7, an error inside a script is part of
/// the text of the script's error: `ERR Error running script …: -OOM command not allowed …`.
fn has_code(error: &RedisError, code: &str) -> bool {
    let within = |detail: &str| {
        detail.starts_with("Error running script") && detail.contains(&format!(" -{code} "))
    };
    error.code() == Some(code) || error.detail().is_some_and(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.into(), Some(detail.into()))
    }

    #[test]
    fn errors_are_classified() {
        let old = "Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command \
                   not allowed when used memory > 'maxmemory'.";
        for (error, meaning) in [
            (error("OOM", "command not allowed"), Meaning::NotWritable),
            (error("ERR", old), Meaning::NotWritable),
            (error("MISCONF", "disk is full"), Meaning::NotWritable),
            (error("READONLY", "a replica"), Meaning::Unavailable),
            (error("CLUSTERDOWN", "no"), Meaning::Unavailable),
            (error("LOADING", "a moment"), Meaning::Unavailable),
            (error("NOREPLICAS", "too few"), Meaning::Unavailable),
            (error("WRONGTYPE", "another kind"), Meaning::Corrupt),
            (timed_out(Duration::from_secs(1)), Meaning::Unavailable),
            (
                (
                    ErrorKind::Server(ServerErrorKind::ResponseError),
                    "",
                    "user_script:3: nil".into(),
                )
                    .into(),
                Meaning::Corrupt,
            ),
        ] {
            assert_eq!(Meaning::of(&error), meaning, "{error}");
        }
    }

    #[test]
    fn unusable_connections_are_replaced() {
        assert!(needs_reconnect(&timed_out(Duration::from_secs(1))));
        for code in [
            "READONLY",
            "NOREPLICAS",
            "MASTERDOWN",
            "NOAUTH",
            "WRONGPASS",
        ] {
            assert!(needs_reconnect(&error(code, "")), "{code}");
        }
        assert!(!needs_reconnect(&error("OOM", "command not allowed")));
    }
}
