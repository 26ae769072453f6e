//! Configuration of Redis.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twincast_core::spec::HumanDuration;
use twincast_secret::SecretSource;

use super::auth::AuthSettings;
use super::values::{SecretText, source_of};

/// Addresses and limits of Redis, for processes of the distributed engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RedisSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auth: Option<AuthSettings>,
    pub(crate) cluster: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel_url: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentinel_url_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) prefix: String,
    pub(crate) timeout: HumanDuration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) durable_after: Option<HumanDuration>,
}

impl RedisSettings {
    /// Returns true if rollouts are in Redis instead of a state folder.
    pub(crate) fn is_configured(&self) -> bool {
        self.url.is_some() || self.url_file.is_some()
    }

    /// Returns the source of the sentinels' URLs, if there are sentinels. A relative path is below
    /// `base`.
    pub(crate) fn sentinels(&self, base: &Path) -> Option<SecretSource> {
        let (url, file) = (&self.sentinel_url, &self.sentinel_url_file);
        source_of("redis.sentinel_url", url.as_ref(), file.as_deref(), base)
    }

    /// Returns the contradictions: the key, and the rule.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let (is_given, is_in_file) = (
            self.sentinel_url.is_some(),
            self.sentinel_url_file.is_some(),
        );
        let mut problems = Vec::new();
        if is_given && is_in_file {
            let otherwise = "must have only one of sentinel_url and sentinel_url_file";
            problems.push(("redis".to_owned(), otherwise.to_owned()));
        }
        if self.cluster && (is_given || is_in_file) {
            problems.push((
                "redis.cluster".to_owned(),
                "must not be true together with sentinels".to_owned(),
            ));
        }
        let of_auth = self.auth.iter().flat_map(AuthSettings::problems);
        problems.extend(of_auth.map(|(at, otherwise)| (format!("redis{at}"), otherwise)));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinels_are_given_once_and_are_no_cluster() {
        let settings = |more: serde_json::Value| {
            let mut value =
                serde_json::json!({ "cluster": false, "prefix": "p:", "timeout": "5s" });
            let fields = value.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            serde_json::from_value::<RedisSettings>(value).unwrap()
        };
        let both = settings(serde_json::json!({
            "cluster": true, "sentinel_url": "redis://s:1", "sentinel_url_file": "f",
        }));
        let at: Vec<_> = both.problems().into_iter().map(|(at, _)| at).collect();
        assert_eq!(at, ["redis", "redis.cluster"]);
        let file = settings(serde_json::json!({ "sentinel_url_file": "f" }));
        assert!(file.problems().is_empty());
        let source = file.sentinels(Path::new("/etc"));
        let expected = Path::new("/etc/f");
        assert!(matches!(source, Some(SecretSource::File { path, .. }) if path == expected));
        assert!(
            settings(serde_json::json!({}))
                .sentinels(Path::new(""))
                .is_none()
        );
    }
}
