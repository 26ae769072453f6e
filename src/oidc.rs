//! The configured OpenID Connect issuer of tokens for the HTTP API.

use std::path::Path;
use std::time::Duration;

use twincast_oidc::{Issuer, IssuerConfig, KeyLocation};
use twincast_orchestrator::http::auth::oidc::Oidc;

use crate::config::OidcSettings;
use crate::failure::{ExitCode, Failure};
use crate::http_client;

/// Time limit for a document. There are two documents; a request waiting for both has a limit of
/// its own.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the issuer, after the first request for the keys.
///
/// # Errors
/// The issuer cannot be used as configured. An unavailable issuer is no error: the issuer may
/// answer later.
pub(crate) async fn issuer(configured: &OidcSettings, base: &Path) -> Result<Oidc, Failure> {
    let http = || {
        let http = http_client::builder("api.oidc", configured.ca_file.as_deref(), base)?;
        http_client::build(http.no_proxy().timeout(DOCUMENT_TIMEOUT))
    };
    let keys = match (&configured.keys_file, &configured.keys_url) {
        (Some(file), _) => KeyLocation::File(base.join(file)),
        (None, Some(url)) => KeyLocation::Url(url.clone(), http()?),
        (None, None) => KeyLocation::Discovery(http()?),
    };
    let refused = |error: anyhow::Error| {
        let doing = "cannot use the issuer of tokens (api.oidc)";
        Failure::new(ExitCode::Refused, error.context(doing))
    };
    let issuer = Issuer::new(IssuerConfig {
        issuer: configured.issuer.clone(),
        audience: configured.audience.clone(),
        keys,
    });
    let issuer = issuer.map_err(|error| refused(error.into()))?;
    let loaded = issuer.load().await;
    loaded.map_err(|error| refused(error.into()))?;
    Ok(Oidc {
        issuer,
        name_claim: configured.name_claim.clone(),
        roles_claim: configured.roles_claim.clone(),
        roles: configured.roles.all(),
    })
}
