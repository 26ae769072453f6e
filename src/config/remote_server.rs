//! Configuration of servers reached over HTTP, with the same keys for each server.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use twincast_core::spec::HumanDuration;

use super::values::SecretText;

/// Bounds of the time limit. A slower server counts as unavailable.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// A server: the address, the connection settings, and the credentials sent with each request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoteServerSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) headers: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) headers_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) allow_http: bool,
    pub(crate) timeout: HumanDuration,
}

/// The error of an address unsuitable for a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadAddress {
    /// The text is no address of a server.
    #[error("{found:?} is not the address of a server; write for example https://server.example")]
    None { found: String },
    /// The address contains a user or a password. Addresses appear in output.
    #[error("the address must have no user and password in it; give a token")]
    User,
    /// The address contains more than a server and a path.
    #[error("the address may have only a server and a path")]
    Parts,
    /// Plain HTTP to another machine: others can read the requests.
    #[error(
        "plain http is for this machine only: others can read the token on the way; write https://, or set allow_http"
    )]
    Plain,
}

impl RemoteServerSettings {
    /// Returns the problems: the key below the server's key, and the rule.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut check = |is_right: bool, at, otherwise: &str| {
            if !is_right {
                problems.push((at, otherwise.to_owned()));
            }
        };
        let count = |one: bool, other: bool| u8::from(one) + u8::from(other);
        let tokens = count(self.token.is_some(), self.token_file.is_some());
        let passwords = count(self.password.is_some(), self.password_file.is_some());
        let headers = count(self.headers.is_some(), self.headers_file.is_some());
        check(tokens < 2, "", "must have only one of token and token_file");
        check(
            passwords < 2,
            "",
            "must have only one of password and password_file",
        );
        check(
            headers < 2,
            "",
            "must have only one of headers and headers_file",
        );
        check(
            tokens == 0 || (passwords == 0 && self.user.is_none()),
            "",
            "must have only one of a token, and user and password",
        );
        check(
            (passwords == 0) == self.user.is_none(),
            "",
            "must have both user and password (or password_file), or neither",
        );
        let user = self.user.as_deref().unwrap_or_default();
        check(
            !user.contains(':'),
            ".user",
            "must have no colon: a colon separates user and password",
        );
        if let Some(url) = &self.url
            && let Err(error) = address(url, self.allow_http)
        {
            problems.push((".url", error.to_string()));
        }
        if !TIMEOUTS.contains(&self.timeout.0) {
            problems.push((".timeout", "must be 100ms to 1m".to_owned()));
        }
        problems
    }
}

/// Parses the address of a server. Without `allow_http`, plain HTTP is limited to this machine.
///
/// # Errors
/// [`BadAddress`].
pub(crate) fn address(text: &str, allow_http: bool) -> Result<Url, BadAddress> {
    let url = endpoint(text, allow_http)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(BadAddress::Parts);
    }
    Ok(url)
}

/// Parses the address of a resource on a server. Without `allow_http`, plain HTTP is limited to
/// this machine.
///
/// # Errors
/// [`BadAddress`].
pub(crate) fn endpoint(text: &str, allow_http: bool) -> Result<Url, BadAddress> {
    let url = Url::parse(text.trim()).ok();
    let is_web = |url: &Url| matches!(url.scheme(), "https" | "http") && url.has_host();
    let url = url.filter(is_web).ok_or_else(|| BadAddress::None {
        found: text.chars().take(200).collect(),
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadAddress::User);
    }
    if url.scheme() == "http" && !allow_http && !is_loopback(&url) {
        return Err(BadAddress::Plain);
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let address = host.trim_start_matches('[').trim_end_matches(']');
            let address = address.parse::<IpAddr>();
            address.is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_server_addresses_are_accepted() {
        for good in [
            "https://a.example",
            "https://a.example/b/",
            "http://localhost:8081",
            "http://127.0.0.1:8081",
            "http://[::1]:8081",
        ] {
            assert!(address(good, false).is_ok(), "{good}");
        }
        let table = [
            ("a.example", "is not the address"),
            ("collector:4318", "is not the address"),
            ("http://", "is not the address"),
            ("", "is not the address"),
            ("ftp://a.example", "is not the address"),
            ("https://ann:secret@a.example", "no user and password"),
            ("https://a.example?x=1", "only a server and a path"),
            ("https://a.example#x", "only a server and a path"),
            ("http://a.example", "plain http is for this machine only"),
            ("http://localhost.a.example", "plain http"),
            ("http://10.0.0.1", "plain http"),
        ];
        for (given, says) in table {
            let said = address(given, false).unwrap_err().to_string();
            assert!(said.contains(says), "{given}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
        assert!(address("http://a.example", true).is_ok());
    }
}
