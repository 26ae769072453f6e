//! Which proxy is used for which host.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

/// Which HTTP proxy connections go through. `Debug` does not show its password.
#[derive(Clone, Default)]
pub enum Proxy {
    /// The proxy that the environment variables `HTTPS_PROXY` and `ALL_PROXY` name (or `https_proxy`, `all_proxy`), but
    /// for the hosts in `NO_PROXY`: names, with all names below them, addresses, and networks such as `10.0.0.0/8`.
    #[default]
    Environment,
    /// No proxy, whatever the environment says.
    None,
    /// This proxy, for all hosts.
    Given(Given),
}

/// A proxy by its URL.
#[derive(Clone)]
pub struct Given {
    url: Url,
    matcher: Arc<Matcher>,
}

/// Why text does not name a proxy. Holds no part of the text, which may have a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUrlError {
    /// The text is not a URL of a server.
    #[error(
        "it is not the address of a proxy; write for example http://proxy.example:3128, or none"
    )]
    NotAUrl,
    /// The proxy is of another kind.
    #[error("its scheme is {0}; only http:// proxies are supported")]
    Scheme(String),
    /// The URL has more than an address.
    #[error("it has a path, a query or a fragment; write for example http://proxy.example:3128")]
    Extra,
}

/// The proxy for one connection.
pub(crate) struct Chosen {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) authorization: Option<HeaderValue>,
}

impl Proxy {
    /// Makes an HTTP client use this proxy.
    ///
    /// # Errors
    ///
    /// The HTTP library refuses the proxy.
    pub fn apply(
        &self,
        builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, reqwest::Error> {
        Ok(match self {
            // The library's own default.
            Self::Environment => builder,
            Self::None => builder.no_proxy(),
            Self::Given(given) => builder.proxy(reqwest::Proxy::all(given.url.clone())?),
        })
    }

    /// Whether a TLS connection to `host` and `port` goes through a proxy.
    #[must_use]
    pub fn is_for(&self, host: &str, port: u16) -> bool {
        !matches!(self.of(host, port), Ok(None))
    }

    /// The proxy for a TLS connection to `host`, if there is one; `Err` with the scheme of a proxy that is not HTTP.
    pub(crate) fn of(&self, host: &str, port: u16) -> Result<Option<Chosen>, String> {
        let matcher = match self {
            Self::None => return Ok(None),
            Self::Environment => Arc::new(Matcher::from_env()),
            Self::Given(given) => Arc::clone(&given.matcher),
        };
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let Ok(uri) = format!("https://{host}:{port}/").parse::<Uri>() else {
            return Ok(None);
        };
        let Some(intercept) = matcher.intercept(&uri) else {
            return Ok(None);
        };
        let proxy = intercept.uri();
        match proxy.scheme_str() {
            Some("http") => {}
            other => return Err(other.unwrap_or("unknown").to_owned()),
        }
        Ok(Some(Chosen {
            host: proxy.host().unwrap_or_default().to_owned(),
            port: proxy.port_u16().unwrap_or(80),
            authorization: intercept.basic_auth().cloned(),
        }))
    }
}

impl FromStr for Proxy {
    type Err = ProxyUrlError;

    /// Reads `none`, or `http://USER:PASSWORD@HOST:PORT` with user and password percent-encoded.
    fn from_str(text: &str) -> Result<Self, ProxyUrlError> {
        let text = text.trim();
        if text == "none" {
            return Ok(Self::None);
        }
        let url = Url::parse(text).map_err(|_| ProxyUrlError::NotAUrl)?;
        if url.scheme() != "http" {
            return Err(match url.scheme() {
                scheme @ ("https" | "socks4" | "socks5" | "socks5h") => {
                    ProxyUrlError::Scheme(scheme.to_owned())
                }
                _ => ProxyUrlError::NotAUrl,
            });
        }
        if !url.has_host() {
            return Err(ProxyUrlError::NotAUrl);
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyUrlError::Extra);
        }
        let matcher = Matcher::builder().all(url.as_str()).build();
        Ok(Self::Given(Given {
            url,
            matcher: Arc::new(matcher),
        }))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("Environment"),
            Self::None => f.write_str("None"),
            Self::Given(given) => {
                let (host, port) = (given.url.host_str(), given.url.port_or_known_default());
                write!(f, "{}:{}", host.unwrap_or_default(), port.unwrap_or(80))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_proxy_is_for_all_hosts_and_shows_no_password() {
        let proxy: Proxy = "http://ann:p%40ss@proxy.example:3128".parse().unwrap();
        let chosen = proxy.of("hub.azure-devices.net", 443).unwrap().unwrap();
        assert_eq!((&*chosen.host, chosen.port), ("proxy.example", 3128));
        // base64 of ann:p@ss
        let authorization = chosen.authorization.unwrap();
        assert_eq!(authorization, "Basic YW5uOnBAc3M=");
        assert_eq!(format!("{proxy:?}"), "proxy.example:3128");
        assert!(proxy.of("::1", 5671).unwrap().is_some());
        let plain: Proxy = "http://proxy.example".parse().unwrap();
        let chosen = plain.of("h", 1).unwrap().unwrap();
        assert_eq!((chosen.port, chosen.authorization), (80, None));
    }

    #[test]
    fn none_is_none_and_other_text_is_refused_without_its_password() {
        let none: Proxy = " none ".parse().unwrap();
        assert!(none.of("hub", 443).unwrap().is_none());
        for (text, refused) in [
            ("", ProxyUrlError::NotAUrl),
            ("proxy.example:3128", ProxyUrlError::NotAUrl),
            ("http://", ProxyUrlError::NotAUrl),
            ("https://u:secret@p", ProxyUrlError::Scheme("https".into())),
            ("socks5://p:1080", ProxyUrlError::Scheme("socks5".into())),
            ("http://u:secret@p/path", ProxyUrlError::Extra),
        ] {
            let error = text.parse::<Proxy>().unwrap_err();
            assert_eq!(error, refused, "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
