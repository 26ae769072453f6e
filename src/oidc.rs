//! The OpenID Connect issuer whose tokens the HTTP API takes, as it is configured.

use std::path::Path;
use std::time::Duration;

use twincast_oidc::{Issuer, IssuerConfig, KeysAt};
use twincast_orchestrator::http::auth::oidc::Oidc;

use crate::config::OidcSettings;
use crate::exit::{ExitCode, Failure};
use crate::peer;

/// How long one document may take. There are two, and a request that waits for both is itself limited.
const TIME: Duration = Duration::from_secs(5);

/// The issuer, whose keys were asked for.
///
/// # Errors
/// When it cannot be used as it is configured. An issuer that does not answer may do so later.
pub(crate) async fn issuer(configured: &OidcSettings, base: &Path) -> Result<Oidc, Failure> {
    let http = || {
        let http = peer::builder("api.oidc", configured.ca_file.as_deref(), base)?;
        peer::built(http.no_proxy().timeout(TIME))
    };
    let keys = match (&configured.keys_file, &configured.keys_url) {
        (Some(file), _) => KeysAt::File(base.join(file)),
        (None, Some(url)) => KeysAt::Url(url.clone(), http()?),
        (None, None) => KeysAt::Discovery(http()?),
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
