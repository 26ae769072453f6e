//! The source of an issuer's keys.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use crate::keys::{KeySetError, Keys};

/// The largest document read, in bytes. Issuers' documents have a few KiB.
const MAX_DOCUMENT_BYTES: usize = 256 * 1024;

/// The location of an issuer's keys. The HTTP client must limit the time of each request and follow
/// no redirects.
#[derive(Debug, Clone)]
pub enum KeyLocation {
    /// The location named by the discovery document (OpenID Connect Discovery 1.0).
    Discovery(Client),
    /// A fixed address.
    Url(String, Client),
    /// A file.
    File(PathBuf),
}

/// Why a configured issuer is unusable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a URL, has a user or a fragment, or is open to modification in transit.
    #[error(
        "{found:?} cannot be used: use an https:// address without a user or a fragment; http:// is allowed for this machine only"
    )]
    Url {
        /// The configured text.
        found: String,
    },
}

/// Why the keys could not be obtained.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file is unreadable.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The issuer did not answer.
    #[error("request to {url} failed")]
    Transit {
        /// The requested address.
        url: Url,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The issuer answered with another status than 200.
    #[error("{url} answers {status}, not 200; redirects are not followed")]
    Status {
        /// The requested address.
        url: Url,
        /// The answer's status.
        status: u16,
    },
    /// The document exceeds the size limit.
    #[error("{place} is larger than 256 KiB")]
    TooLarge {
        /// The document's location.
        place: String,
    },
    /// The discovery document is unusable.
    #[error("the discovery document at {url} {problem}")]
    Discovery {
        /// The document's address.
        url: Url,
        /// The problem.
        problem: String,
    },
    /// The keys are unusable.
    #[error("the keys at {place} cannot be used")]
    Keys {
        /// The keys' location.
        place: String,
        /// The cause.
        #[source]
        source: KeySetError,
    },
}

/// Fetches the keys anew at each call.
pub(crate) enum Source {
    Discovery {
        issuer: String,
        at: Url,
        client: Client,
    },
    Url {
        at: Url,
        client: Client,
    },
    File(PathBuf),
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    pub(crate) fn new(issuer: &str, keys: KeyLocation) -> Result<Self, ConfigError> {
        Ok(match keys {
            KeyLocation::File(path) => Self::File(path),
            KeyLocation::Url(text, client) => Self::Url {
                at: safe_url(&text).ok_or(ConfigError::Url { found: text })?,
                client,
            },
            KeyLocation::Discovery(client) => {
                let well_known = format!(
                    "{}/.well-known/openid-configuration",
                    issuer.trim_end_matches('/')
                );
                Self::Discovery {
                    at: safe_url(&well_known).ok_or_else(|| ConfigError::Url {
                        found: issuer.to_owned(),
                    })?,
                    issuer: issuer.to_owned(),
                    client,
                }
            }
        })
    }

    /// Whether the keys are on this machine, and therefore should always be available.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Fetches the keys. Bounded in size; the client bounds the time.
    pub(crate) async fn fetch(&self) -> Result<Keys, KeysError> {
        let (place, document) = match self {
            Self::File(path) => (path.display().to_string(), in_file(path).await?),
            Self::Url { at, client } => (at.to_string(), get(client, at).await?),
            Self::Discovery { issuer, at, client } => {
                let document = get(client, at).await?;
                let keys = keys_of(&document, issuer).map_err(|problem| KeysError::Discovery {
                    url: at.clone(),
                    problem,
                })?;
                (keys.to_string(), get(client, &keys).await?)
            }
        };
        Keys::read(&document).map_err(|source| KeysError::Keys { place, source })
    }
}

/// Returns the address of the keys in a discovery document.
fn keys_of(document: &[u8], issuer: &str) -> Result<Url, String> {
    let found: Discovered = serde_json::from_slice(document)
        .map_err(|_| "is not a JSON object with issuer and jwks_uri".to_owned())?;
    if found.issuer != issuer {
        return Err(format!(
            "is for the issuer {:?}, not {issuer:?}; both must match exactly",
            found.issuer
        ));
    }
    let keys = safe_url(&found.jwks_uri);
    keys.ok_or_else(|| format!("has a jwks_uri that is not https: {:?}", found.jwks_uri))
}

/// Parses an address safe from modification in transit.
fn safe_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let is_here = match url.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => IpAddr::from(address).is_loopback(),
        url::Host::Ipv6(address) => IpAddr::from(address).is_loopback(),
    };
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_here);
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (is_safe && is_plain).then_some(url)
}

async fn in_file(path: &Path) -> Result<Vec<u8>, KeysError> {
    let failed = |source| KeysError::File {
        path: path.to_owned(),
        source,
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut document = Vec::new();
    let mut file = file.take(MAX_DOCUMENT_BYTES as u64 + 1);
    file.read_to_end(&mut document).await.map_err(failed)?;
    if document.len() > MAX_DOCUMENT_BYTES {
        let place = path.display().to_string();
        return Err(KeysError::TooLarge { place });
    }
    // Some editors write a byte order mark first.
    let text = document.strip_prefix(b"\xef\xbb\xbf");
    Ok(text.unwrap_or(&document).to_vec())
}

async fn get(client: &Client, url: &Url) -> Result<Vec<u8>, KeysError> {
    let transit = |source: reqwest::Error| KeysError::Transit {
        url: url.clone(),
        source: source.without_url(),
    };
    let mut response = client.get(url.clone()).send().await.map_err(transit)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(KeysError::Status {
            url: url.clone(),
            status: response.status().as_u16(),
        });
    }
    let mut document = Vec::new();
    while let Some(part) = response.chunk().await.map_err(transit)? {
        document.extend_from_slice(&part);
        if document.len() > MAX_DOCUMENT_BYTES {
            let place = url.to_string();
            return Err(KeysError::TooLarge { place });
        }
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_loopback_urls_are_safe() {
        for good in [
            "https://login.example.com/keys?p=policy",
            "http://localhost:8080/realms/x",
            "http://127.0.0.1/",
            "http://[::1]:80/",
        ] {
            assert!(safe_url(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "login.example.com",
            "http://login.example.com/",
            "http://localhost.example.com/",
            "http://127.0.0.1.example.com/",
            "http://10.0.0.1/",
            "https://user:secret@example.com/",
            "https://example.com/#a",
            "file:///etc/passwd",
            "ftp://localhost/",
        ] {
            assert!(safe_url(bad).is_none(), "{bad}");
        }
    }
}
