//! Selection of the proxy for a host.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

/// The HTTP proxy of connections. `Debug` does not show the proxy's password.
#[derive(Clone, Default)]
pub enum Proxy {
    /// The proxy named by the environment variables `HTTPS_PROXY` and `ALL_PROXY` (or
    /// `https_proxy`, `all_proxy`), except for the hosts in `NO_PROXY`: names including all
    /// subdomains, addresses, and networks such as `10.0.0.0/8`.
    #[default]
    Environment,
    /// No proxy, whatever the environment says.
    None,
    /// This proxy, for all hosts.
    Url(ProxyUrl),
}

/// A proxy given by URL.
#[derive(Clone)]
pub struct ProxyUrl {
    url: Url,
    matcher: Arc<Matcher>,
}

/// Why text does not name a proxy. Holds no part of the text, because the text may contain a
/// password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyUrlError {
    /// The text is not a URL of a server.
    #[error("not the address of a proxy; use for example http://proxy.example:3128, or none")]
    NotAUrl,
    /// The proxy is of an unsupported kind.
    #[error("the scheme {0} is not supported; only http:// proxies are")]
    Scheme(String),
    /// The URL has more parts than an address.
    #[error(
        "a path, a query or a fragment is not allowed; use for example http://proxy.example:3128"
    )]
    Extra,
}

/// The proxy for one connection.
pub(crate) struct SelectedProxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) authorization: Option<HeaderValue>,
}

impl Proxy {
    /// Configures an HTTP client to use this proxy.
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
            Self::Url(given) => builder.proxy(reqwest::Proxy::all(given.url.clone())?),
        })
    }

    /// Whether a TLS connection to `host` and `port` goes through a proxy.
    #[must_use]
    pub fn is_for(&self, host: &str, port: u16) -> bool {
        !matches!(self.for_target(host, port), Ok(None))
    }

    /// Returns the proxy for a TLS connection to `host`, if any; `Err` with the scheme of a
    /// non-HTTP proxy.
    pub(crate) fn for_target(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Option<SelectedProxy>, String> {
        let matcher = match self {
            Self::None => return Ok(None),
            Self::Environment => Arc::new(Matcher::from_env()),
            Self::Url(given) => Arc::clone(&given.matcher),
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
        Ok(Some(SelectedProxy {
            host: proxy.host().unwrap_or_default().to_owned(),
            port: proxy.port_u16().unwrap_or(80),
            authorization: intercept.basic_auth().cloned(),
        }))
    }
}

impl FromStr for Proxy {
    type Err = ProxyUrlError;

    /// Parses `none`, or `http://USER:PASSWORD@HOST:PORT` with user and password percent-encoded.
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
        Ok(Self::Url(ProxyUrl {
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
            Self::Url(given) => {
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
        let chosen = proxy
            .for_target("hub.azure-devices.net", 443)
            .unwrap()
            .unwrap();
        assert_eq!((&*chosen.host, chosen.port), ("proxy.example", 3128));
        // base64 of ann:p@ss
        let authorization = chosen.authorization.unwrap();
        assert_eq!(authorization, "Basic YW5uOnBAc3M=");
        assert_eq!(format!("{proxy:?}"), "proxy.example:3128");
        assert!(proxy.for_target("::1", 5671).unwrap().is_some());
        let plain: Proxy = "http://proxy.example".parse().unwrap();
        let chosen = plain.for_target("h", 1).unwrap().unwrap();
        assert_eq!((chosen.port, chosen.authorization), (80, None));
    }

    #[test]
    fn none_disables_the_proxy_and_errors_hide_the_password() {
        let none: Proxy = " none ".parse().unwrap();
        assert!(none.for_target("hub", 443).unwrap().is_none());
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
