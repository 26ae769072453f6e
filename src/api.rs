//! The listener of the HTTP API, and access to the API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use twincast_orchestrator::http::auth::tokens::TokensFile;
use twincast_orchestrator::http::auth::{Access, KnownTokens};

use crate::config::{ApiSettings, Settings};
use crate::failure::{ExitCode, Failure};
use crate::http::tls::Tls;
use crate::http::{ConnectionLimits, Server};
use crate::oidc;
use crate::output::Output;

/// Time limit for running requests once the process is asked to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits on connections. An ingress is one peer that carries the connections of all clients.
const CONNECTION_LIMITS: ConnectionLimits = ConnectionLimits {
    total: 512,
    per_peer: 384,
};

/// A listener of the API.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    access: Arc<Access>,
}

impl Listener {
    /// Binds the listener, if configured. Answers no request yet.
    pub(crate) async fn bind(settings: &Settings) -> Result<Option<Self>, Failure> {
        let Some(listen) = settings.api.listen else {
            return Ok(None);
        };
        let access = access(&settings.api, listen, &settings.base).await?;
        let tls = tls(&settings.api, &settings.base)?;
        if tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!("the API has no TLS (api.tls_cert_file): tokens can be read in transit");
        }
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen} (api.listen)"))
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        let address = listener.local_addr()?;
        Ok(Some(Self {
            listener,
            address,
            tls: tls.map(Arc::new),
            access: Arc::new(access),
        }))
    }

    /// Returns the access rules of the API.
    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// Prints the URL of the API.
    pub(crate) fn announce(&self, output: &Output) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        output.note(&format!("API: {scheme}://{}/api/v1", self.address));
    }

    /// Serves until `stop`, then lets running requests finish.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let server = Server {
            router,
            tls: self.tls.clone(),
            limits: CONNECTION_LIMITS,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
        };
        let renewing = async {
            if let Some(tls) = &self.tls {
                tls.follow().await;
            }
        };
        let following = async {
            tokio::join!(self.access.follow(), renewing);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = server.serve(self.listener, stop) => {}
            () = following => unreachable!("it waits for ever"),
        }
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::message(ExitCode::Refused, message.into())
}

async fn access(
    settings: &ApiSettings,
    listen: SocketAddr,
    base: &Path,
) -> Result<Access, Failure> {
    if settings.tokens_file.is_none() && settings.oidc.is_none() {
        if listen.ip().is_loopback() {
            return Ok(Access::Anonymous);
        }
        let message = format!(
            "api.listen {listen} is reachable for other machines, but neither api.tokens_file nor \
             api.oidc is set: without tokens the API listens on 127.0.0.1 only"
        );
        return Err(refused(message)
            .hint("`twincast token NAME` creates a token and its line for the file"));
    }
    let oidc = match &settings.oidc {
        Some(configured) => Some(oidc::issuer(configured, base).await?),
        None => None,
    };
    let tokens = match &settings.tokens_file {
        Some(file) => Some(tokens(base.join(file), oidc.is_some()).await?),
        None => None,
    };
    Ok(Access::Tokens(KnownTokens { tokens, oidc }))
}

async fn tokens(path: PathBuf, may_be_empty: bool) -> Result<TokensFile, Failure> {
    let doing = format!("cannot use api.tokens_file {}", path.display());
    let tokens = TokensFile::open(path)
        .await
        .with_context(|| doing.clone())
        .map_err(|error| Failure::new(ExitCode::Refused, error))?;
    if tokens.is_empty() && !may_be_empty {
        return Err(refused(format!("{doing}: the file has no token")));
    }
    Ok(tokens)
}

fn tls(settings: &ApiSettings, base: &Path) -> Result<Option<Tls>, Failure> {
    match (&settings.tls_cert_file, &settings.tls_key_file) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let tls = Tls::open(base.join(certificate), base.join(key));
            let tls = tls.context("cannot use api.tls_cert_file with api.tls_key_file");
            let tls = tls.map_err(|error| Failure::new(ExitCode::Refused, error))?;
            Ok(Some(tls))
        }
        _ => Err(refused(
            "api.tls_cert_file and api.tls_key_file must be given together",
        )),
    }
}
