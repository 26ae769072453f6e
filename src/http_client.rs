//! HTTP clients of configured servers: trusted authorities and credentials.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::ClientBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use twincast_secret::Secret;
use twincast_tls::Roots;

use crate::config::{RemoteServerSettings, SecretText, source_of};
use crate::failure::{ExitCode, Failure};

/// Returns a builder of clients for the server of a section. The clients trust the system's
/// authorities and the authorities in `ca_file`. The clients follow no redirect, because the
/// credentials are for the configured server alone.
///
/// # Errors
/// The file cannot be used.
pub(crate) fn builder(
    section: &str,
    ca_file: Option<&Path>,
    base: &Path,
) -> Result<ClientBuilder, Failure> {
    // The TLS library needs a provider for the whole process; a provider may be installed already.
    _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("twincast/", env!("CARGO_PKG_VERSION")));
    let Some(file) = ca_file else {
        return Ok(builder);
    };
    let tls = twincast_tls::client_config(&Roots::SystemAndFile(base.join(file)));
    let tls = tls.with_context(|| format!("cannot use {section}.ca_file"));
    let tls = tls.map_err(refused)?;
    Ok(builder.tls_backend_preconfigured(rustls::ClientConfig::clone(&tls)))
}

/// Builds the client.
///
/// # Errors
/// TLS cannot be set up.
pub(crate) fn build(builder: ClientBuilder) -> Result<reqwest::Client, Failure> {
    builder
        .build()
        .context("cannot set up TLS")
        .map_err(refused)
}

/// Returns the headers with the credentials for a server, from the present content of the section's
/// files. An error message never contains a credential.
///
/// # Errors
/// A file cannot be read, or the content is no valid header.
pub(crate) fn credential_headers(
    section: &str,
    server: &RemoteServerSettings,
    base: &Path,
) -> anyhow::Result<HeaderMap> {
    let read = |key, text: &Option<SecretText>, file: &Option<PathBuf>| {
        let setting = format!("{section}.{key}");
        let source = source_of(&setting, text.as_ref(), file.as_deref(), base);
        source.map(|source| source.read()).transpose()
    };
    let mut headers = HeaderMap::new();
    let listed = read("headers", &server.headers, &server.headers_file)?.unwrap_or_default();
    for part in listed.expose().split(',') {
        if part.trim().is_empty() {
            continue;
        }
        let pair = part.split_once('=').and_then(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            Some((name, secret(value.trim())?))
        });
        let (name, value) = pair.with_context(|| {
            format!("{section}.headers must be comma-separated name=value pairs")
        })?;
        headers.append(name, value);
    }
    let password = read("password", &server.password, &server.password_file)?;
    if let (Some(user), Some(password)) = (&server.user, password) {
        let both = Secret::new(format!("{user}:{}", password.expose()));
        let value = secret(&format!("Basic {}", STANDARD.encode(both.expose())));
        headers.insert(
            AUTHORIZATION,
            value.context("base64 is letters and digits")?,
        );
    }
    if let Some(token) = read("token", &server.token, &server.token_file)? {
        let value = secret(&format!("Bearer {}", token.expose()));
        let value = value.with_context(|| {
            format!(
                "the token ({section}.token, or {section}.token_file) has characters not allowed \
                 in a token"
            )
        })?;
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// Returns a header value excluded from the Debug output of the HTTP libraries.
pub(crate) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn refused(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Refused, error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn peer(what: &serde_json::Value) -> RemoteServerSettings {
        let mut peer = json!({ "allow_http": true, "timeout": "1s" });
        for (key, value) in what.as_object().unwrap() {
            peer[key] = value.clone();
        }
        serde_json::from_value(peer).unwrap()
    }

    #[test]
    fn credentials_are_read_from_settings_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let says = |what: serde_json::Value| {
            let headers = credential_headers("peer", &peer(&what), folder.path());
            let headers = headers.map_err(|error| format!("{error:#}"))?;
            assert!(!format!("{headers:?}").contains("s3cr3t"), "{headers:?}");
            let text = |(name, value): (&HeaderName, &HeaderValue)| {
                format!("{name}: {}", value.to_str().unwrap())
            };
            Ok::<_, String>(headers.iter().map(text).collect::<Vec<_>>())
        };
        let listed = json!({ "headers": "authorization=Bearer a=b, tenant = x,\n" });
        assert_eq!(
            says(listed).unwrap(),
            ["authorization: Bearer a=b", "tenant: x"]
        );
        assert!(says(json!({})).unwrap().is_empty());
        let bearer = ["authorization: Bearer s3cr3t"];
        assert_eq!(says(json!({ "token": "s3cr3t\n" })).unwrap(), bearer);
        let file = || json!({ "token_file": "token" });
        assert!(
            says(file())
                .unwrap_err()
                .contains("peer.token_file is not available: cannot read")
        );
        // Some editors write a byte order mark and CR LF.
        std::fs::write(folder.path().join("token"), "\u{feff}s3cr3t\r\n").unwrap();
        assert_eq!(says(file()).unwrap(), bearer);
        let wide: Vec<u8> = "s3cr3t\n"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        std::fs::write(folder.path().join("token"), wide).unwrap();
        assert!(
            says(file())
                .unwrap_err()
                .contains("the text is UTF-16; save it as UTF-8")
        );
        // The header equals the header of `curl --user`.
        let basic = ["authorization: Basic YW5uOnMzY3IzdDrDtg=="];
        let password = json!({ "user": "ann", "password": "s3cr3t:\u{f6}" });
        assert_eq!(says(password).unwrap(), basic);
        std::fs::write(folder.path().join("password"), "s3cr3t:\u{f6}\n").unwrap();
        let both =
            json!({ "user": "ann", "password_file": "password", "headers": "X-Scope-OrgID=fleet" });
        assert_eq!(says(both).unwrap(), ["x-scope-orgid: fleet", basic[0]]);
        std::fs::write(folder.path().join("password"), "").unwrap();
        let empty = json!({ "user": "ann", "password_file": "password" });
        assert!(says(empty).unwrap_err().contains("is empty"));
        for what in [
            json!({ "headers": "Bearer-s3cr3t" }),
            json!({ "token": "s3cr3t\u{1}" }),
        ] {
            let error = says(what).unwrap_err();
            assert!(
                error.contains("peer.") && !error.contains("s3cr3t"),
                "{error}"
            );
        }
    }
}
