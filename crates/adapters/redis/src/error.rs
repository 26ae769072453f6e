//! What goes wrong, in the words of the port.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use twincast_core::ports::StoreError;
use twincast_secret::SourceError;
use twincast_tls::RootsError;

/// Why there is no store on this Redis.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings cannot be right.
    #[error("the settings for Redis are wrong: {what}")]
    Settings {
        /// What is wrong with them.
        what: String,
    },
    /// The file with the URL cannot be used.
    #[error("cannot read how Redis is reached")]
    Source(#[source] SourceError),
    /// The provider has no user and password.
    #[error("cannot get user and password for Redis")]
    Credentials(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The CA file cannot be used.
    #[error("no certificate authorities for Redis")]
    Authorities(#[from] RootsError),
    /// It does not let us in: user or password are wrong.
    #[error("Redis at {servers} refuses user or password")]
    Refused {
        /// Host and port, of all that were given.
        servers: String,
        /// What it says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not answer.
    #[error("cannot connect to Redis at {servers}")]
    Unreachable {
        /// Host and port, of all that were given.
        servers: String,
        /// What the client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is older than what we use.
    #[error("Redis at {server} is version {found}; it must be {needed} or later")]
    TooOld {
        /// Host and port.
        server: String,
        /// Its version.
        found: String,
        /// The oldest that will do.
        needed: &'static str,
    },
    /// It may throw rollouts away.
    #[error(
        "Redis at {server} may evict rollouts when its memory is full: \
         its maxmemory-policy is {policy}; set it to noeviction"
    )]
    Evicts {
        /// Host and port.
        server: String,
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// It runs no scripts for us.
    #[error("Redis at {servers} runs no Lua scripts for this user")]
    NoScripts {
        /// Host and port, of all that were given.
        servers: String,
        /// What it says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Nothing that can be what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misfit(pub(crate) String);

/// Whether the connection is dropped after this error. A connection that timed out may lead to a server that is gone.
pub(crate) fn is_spent(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || is_refusal(error) || is_left(error)
}

/// Whether the server is no longer the master: the server is a replica, or has lost contact to its replicas or its master.
pub(crate) fn is_left(error: &RedisError) -> bool {
    let codes = ["READONLY", "NOREPLICAS", "MASTERDOWN"];
    codes.iter().any(|code| says(error, code))
}

/// Whether the server refuses user and password.
pub(crate) fn is_refusal(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

/// The error of a call for which no connection was made.
pub(crate) fn no_connection(
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> RedisError {
    std::io::Error::other(error).into()
}

/// The error of a call that was given up.
pub(crate) fn timed_out(after: Duration) -> RedisError {
    let what = format!("no answer within {after:?}");
    std::io::Error::new(std::io::ErrorKind::TimedOut, what).into()
}

/// What an error means for `doing`, which is what was to be done, in words.
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
    /// What is not known to be for good is taken for passing. `READONLY` is: it is what a server
    /// says that lost its place in a failover, and the next call finds the new one.
    fn of(error: &RedisError) -> Self {
        // The second is how version 7 says NOPERM of a command in a script.
        let is_denied = error
            .detail()
            .is_some_and(|detail| detail.contains("user executing the script can't run"));
        if is_denied || ["OOM", "MISCONF", "NOPERM"].iter().any(|c| says(error, c)) {
            return Self::NotWritable;
        }
        let of_a_script = error.detail().is_some_and(|d| d.contains("user_script"));
        match error.kind() {
            ErrorKind::UnexpectedReturnType => Self::Corrupt,
            // A key of another type, or a script that could make nothing of what it found.
            ErrorKind::Extension if says(error, "WRONGTYPE") => Self::Corrupt,
            ErrorKind::Server(ServerErrorKind::ResponseError) if of_a_script => Self::Corrupt,
            _ => Self::Unavailable,
        }
    }
}

/// Whether an error has this code. Before version 7, one that a script met is told in the text of
/// the script's own: `ERR Error running script …: -OOM command not allowed …`.
fn says(error: &RedisError, code: &str) -> bool {
    let within = |detail: &str| {
        detail.starts_with("Error running script") && detail.contains(&format!(" -{code} "))
    };
    error.code() == Some(code) || error.detail().is_some_and(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.into(), Some(detail.into()))
    }

    #[test]
    fn errors_are_told_apart() {
        let old = "Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command \
                   not allowed when used memory > 'maxmemory'.";
        for (error, meaning) in [
            (told("OOM", "command not allowed"), Meaning::NotWritable),
            (told("ERR", old), Meaning::NotWritable),
            (told("MISCONF", "disk is full"), Meaning::NotWritable),
            (told("READONLY", "a replica"), Meaning::Unavailable),
            (told("CLUSTERDOWN", "no"), Meaning::Unavailable),
            (told("LOADING", "a moment"), Meaning::Unavailable),
            (told("NOREPLICAS", "too few"), Meaning::Unavailable),
            (told("WRONGTYPE", "another kind"), Meaning::Corrupt),
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
    fn a_connection_to_a_replica_or_to_nobody_is_spent() {
        assert!(is_spent(&timed_out(Duration::from_secs(1))));
        for code in [
            "READONLY",
            "NOREPLICAS",
            "MASTERDOWN",
            "NOAUTH",
            "WRONGPASS",
        ] {
            assert!(is_spent(&told(code, "")), "{code}");
        }
        assert!(!is_spent(&told("OOM", "command not allowed")));
    }
}
