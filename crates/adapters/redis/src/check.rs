//! Checks at the start whether a server is suitable.

use std::time::Duration;

use redis::{RedisError, Value, from_redis_value};
use tracing::warn;

use crate::error::{ConnectError, is_refusal};
use crate::link::Link;
use crate::settings::{Settings, Topology};

/// The version that introduced `ZADD … GT`.
const MIN_VERSION: &str = "6.2";

/// How long a server can lose an acknowledged write (`appendfsync everysec`): the server syncs the
/// file to disk once a second, and postpones the sync for another second when the disk is busy.
const DURABLE_AFTER: Duration = Duration::from_secs(2);

/// Queries the server, or each server of a cluster, and refuses a server that would lose data or
/// fail later. Returns the time after which an acknowledged write is durable.
pub(crate) async fn check(
    link: &Link,
    settings: &Settings,
    servers: &str,
) -> Result<Duration, ConnectError> {
    let unreachable = |error: RedisError| {
        let (servers, is_refused) = (servers.to_owned(), is_refusal(&error));
        let source = Box::new(error);
        if is_refused {
            ConnectError::Refused { servers, source }
        } else {
            ConnectError::Unreachable { servers, source }
        }
    };
    let mut is_alone = false;
    match link.query(&redis::cmd("INFO")).await {
        Ok(info) => {
            let all = info_by_server(info, servers);
            for (server, info) in &all {
                check_info(server, info)?;
            }
            is_alone = all.iter().all(|(_, info)| is_alone_on_disk(info));
        }
        Err(error) if is_permanent(&error) => {
            warn!(
                servers,
                "redis refuses access to its settings, so they are not checked"
            );
        }
        Err(error) => return Err(unreachable(error)),
    }
    let script = redis::cmd("EVAL").arg("return 1").arg(0).to_owned();
    match link.query(&script).await {
        Ok(_) => {}
        Err(error) if is_permanent(&error) => {
            return Err(ConnectError::NoScripts {
                servers: servers.to_owned(),
                source: Box::new(error),
            });
        }
        Err(error) => return Err(unreachable(error)),
    }
    Ok(match settings.topology {
        Topology::Single
            if is_alone && setting(link, "appendfsync").await.as_deref() == Some("always") =>
        {
            Duration::ZERO
        }
        // A replica may be added while the process runs.
        Topology::Single | Topology::Cluster => DURABLE_AFTER,
        Topology::Sentinels(_) => {
            let enough = setting(link, "min-replicas-to-write").await;
            let lag = setting(link, "min-replicas-max-lag").await;
            if enough.as_deref() == Some("0") || lag.as_deref() == Some("0") {
                warn!(
                    servers,
                    "an isolated master goes on accepting writes that are lost when its replica \
                     takes over: set min-replicas-to-write to 1, and min-replicas-max-lag to 2"
                );
            }
            durable_with_replicas(enough.as_deref(), lag.as_deref())
        }
    })
}

/// Returns the time after which a replica has every acknowledged write, by the settings
/// `min-replicas-to-write` and `min-replicas-max-lag` of the master.
///
/// A master without contact to the replicas stops accepting writes when no replica has acknowledged
/// anything for `min-replicas-max-lag` seconds. The master checks once a second.
fn durable_with_replicas(enough: Option<&str>, lag: Option<&str>) -> Duration {
    let number = |text: Option<&str>| text.and_then(|it| it.parse().ok()).unwrap_or(0);
    if number(enough) == 0 || number(lag) == 0 {
        return DURABLE_AFTER;
    }
    DURABLE_AFTER.max(Duration::from_secs(number(lag) + 1))
}

/// Returns whether a server writes an append-only file, and no replica may replace the server.
fn is_alone_on_disk(info: &str) -> bool {
    let has = |line: &str| info.lines().any(|it| it.trim() == line);
    has("aof_enabled:1") && has("role:master") && has("connected_slaves:0")
}

/// Returns a setting of the server. Managed services refuse the query.
async fn setting(link: &Link, name: &str) -> Option<String> {
    let get = redis::cmd("CONFIG").arg("GET").arg(name).to_owned();
    let found = link.query(&get).await.ok()?;
    let found: Vec<String> = from_redis_value(found).ok()?;
    found.into_iter().nth(1)
}

/// Returns whether a server that refuses a command will always refuse the command. A server that is
/// still loading the file, has lost the master, or is busy may accept the command later.
pub(crate) fn is_permanent(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOPERM" | "ERR"))
}

/// Splits the answer to `INFO`: a single server answers with text, a cluster with a text for each
/// master.
fn info_by_server(info: Value, servers: &str) -> Vec<(String, String)> {
    match info {
        Value::Map(entries) => entries
            .into_iter()
            .map(|(server, info)| (text(server), text(info)))
            .collect(),
        info => vec![(servers.to_owned(), text(info))],
    }
}

fn text(value: Value) -> String {
    from_redis_value(value).unwrap_or_default()
}

/// Decides by the answer to `INFO`. Missing information is not a reason for a refusal.
fn check_info(server: &str, info: &str) -> Result<(), ConnectError> {
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim())
    };
    if let Some(found) = field("redis_version")
        && version(found) < version(MIN_VERSION)
    {
        return Err(ConnectError::TooOld {
            server: server.to_owned(),
            found: found.to_owned(),
            needed: MIN_VERSION,
        });
    }
    // The volatile policies evict only keys with a time to live, and no key of the store has a time
    // to live.
    if let Some(policy) = field("maxmemory_policy")
        && policy.starts_with("allkeys")
    {
        return Err(ConnectError::Evicts {
            server: server.to_owned(),
            policy: policy.to_owned(),
        });
    }
    if field("aof_enabled") == Some("0") {
        warn!(
            server,
            "redis writes no append-only file: a restart loses the writes since its last snapshot"
        );
    }
    Ok(())
}

/// Returns the first two numbers of a version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_and_evicting_policies_are_refused() {
        let checked = |version: &str, policy: &str| {
            let info = format!(
                "# Server\r\nredis_version:{version}\r\n\r\n# Memory\r\nmaxmemory_policy:{policy}\r\n"
            );
            check_info("a:1", &info).map_err(|error| error.to_string())
        };
        for (version, policy) in [("6.2.0", "noeviction"), ("10.0.1", "volatile-lru")] {
            assert_eq!(checked(version, policy), Ok(()));
        }
        for (version, policy, named) in [
            ("6.0.16", "noeviction", "version 6.0.16"),
            ("7.0.15", "allkeys-lru", "allkeys-lru"),
        ] {
            let error = checked(version, policy).unwrap_err();
            assert!(error.contains(named) && error.contains("a:1"), "{error}");
        }
        assert!(check_info("a:1", "").is_ok(), "an empty reply is accepted");
    }

    #[test]
    fn durable_after_follows_the_required_replica_lag() {
        for (enough, lag, seconds) in [
            (None, None, 2),
            (Some("0"), Some("10"), 2),
            (Some("1"), Some("0"), 2),
            (Some("1"), Some("1"), 2),
            (Some("1"), Some("2"), 3),
            (Some("2"), Some("10"), 11),
        ] {
            let expected = Duration::from_secs(seconds);
            assert_eq!(
                durable_with_replicas(enough, lag),
                expected,
                "{enough:?} {lag:?}"
            );
        }
    }

    #[test]
    fn only_denied_scripts_are_a_permanent_error() {
        let error = |code: &str| redis::make_extension_error(code.into(), None);
        assert!(is_permanent(&error("NOPERM")));
        for transient in ["LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY"] {
            assert!(!is_permanent(&error(transient)), "{transient}");
        }
    }
}
