//! Where an issuer's keys come from.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use crate::keys::{BadKeys, Keys};

/// The largest document that is read, in bytes. Issuers' have a few KiB.
const LARGEST: usize = 256 * 1024;

/// Where an issuer's keys are. A client bounds how long each question may take, and follows no redirect.
#[derive(Debug, Clone)]
pub enum KeysAt {
    /// Where its discovery document says (OpenID Connect Discovery 1.0).
    Discovery(Client),
    /// At this address.
    Url(String, Client),
    /// In this file.
    File(PathBuf),
}

/// Why an issuer cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An address is none, or others could change what it says on the way.
    #[error(
        "{found:?} cannot be used: write https://..., without a user or a fragment; http:// is for this machine alone"
    )]
    Url {
        /// What was given.
        found: String,
    },
}

/// Why the keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The issuer does not answer.
    #[error("{url} does not answer")]
    Transit {
        /// Who was asked.
        url: Url,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The issuer answers something else.
    #[error("{url} answers {status}, not 200; redirects are not followed")]
    Status {
        /// Who was asked.
        url: Url,
        /// What it answers.
        status: u16,
    },
    /// There is more than any issuer has to say.
    #[error("{place} is larger than 256 KiB")]
    TooLarge {
        /// What.
        place: String,
    },
    /// The discovery document cannot be used.
    #[error("the discovery document at {url} {problem}")]
    Discovery {
        /// Where it is.
        url: Url,
        /// What is wrong with it.
        problem: String,
    },
    /// The keys cannot be used.
    #[error("the keys at {place} cannot be used")]
    Keys {
        /// Where they are.
        place: String,
        /// Why.
        #[source]
        source: BadKeys,
    },
}

/// Fetches the keys, once for each question.
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
    pub(crate) fn new(issuer: &str, keys: KeysAt) -> Result<Self, ConfigError> {
        Ok(match keys {
            KeysAt::File(path) => Self::File(path),
            KeysAt::Url(text, client) => Self::Url {
                at: safe_url(&text).ok_or(ConfigError::Url { found: text })?,
                client,
            },
            KeysAt::Discovery(client) => {
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

    /// Whether they are on this machine, so that there is no reason for them not to be there.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Asks for the keys. Bounded in time and size.
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

/// Where a discovery document says that the keys are.
fn keys_of(document: &[u8], issuer: &str) -> Result<Url, String> {
    let found: Discovered = serde_json::from_slice(document)
        .map_err(|_| "is not a JSON object with issuer and jwks_uri".to_owned())?;
    if found.issuer != issuer {
        return Err(format!(
            "is of the issuer {:?}, not {issuer:?}: both must be the same to the letter",
            found.issuer
        ));
    }
    let keys = safe_url(&found.jwks_uri);
    keys.ok_or_else(|| format!("has a jwks_uri that is not https: {:?}", found.jwks_uri))
}

/// An address whose answer nobody can change on the way.
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
    let mut file = file.take(LARGEST as u64 + 1);
    file.read_to_end(&mut document).await.map_err(failed)?;
    if document.len() > LARGEST {
        let place = path.display().to_string();
        return Err(KeysError::TooLarge { place });
    }
    // Some editors put a mark before the text.
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
        if document.len() > LARGEST {
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
    fn only_addresses_that_nobody_can_answer_for_are_asked() {
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
