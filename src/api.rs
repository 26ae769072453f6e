//! Where the HTTP API listens, and who may ask.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio_util::sync::CancellationToken;
use twincast_orchestrator::http::auth::tokens::TokensFile;
use twincast_orchestrator::http::auth::{Bearers, Door};

use crate::config::{ApiSettings, Settings};
use crate::exit::{ExitCode, Failure};
use crate::oidc;
use crate::output::Output;

/// How long requests under way may take when the process is to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// A listener of the API.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<RustlsConfig>,
    door: Arc<Door>,
    handle: Handle<SocketAddr>,
}

impl Listener {
    /// Listens, if that is configured. Nothing is answered yet.
    pub(crate) async fn bind(settings: &Settings) -> Result<Option<Self>, Failure> {
        let Some(wanted) = settings.api.listen else {
            return Ok(None);
        };
        let door = door(&settings.api, wanted, &settings.base).await?;
        let tls = tls(&settings.api, &settings.base).await?;
        if tls.is_none() && !wanted.ip().is_loopback() {
            tracing::warn!(
                "the API has no TLS (api.tls_cert_file): tokens can be read on the way to it"
            );
        }
        let listener = TcpListener::bind(wanted)
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .with_context(|| format!("cannot listen on {wanted} (api.listen)"))
            .map_err(|error| Failure::new(ExitCode::Refused, error))?;
        let address = listener.local_addr()?;
        Ok(Some(Self {
            listener,
            address,
            tls,
            door: Arc::new(door),
            handle: Handle::new(),
        }))
    }

    /// Who may ask.
    pub(crate) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// Says where it is.
    pub(crate) fn announce(&self, output: &Output) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        output.note(&format!("API: {scheme}://{}/api/v1", self.address));
    }

    /// Answers until `stop`, then lets requests under way end.
    pub(crate) async fn serve(
        self,
        router: Router,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let handle = self.handle.clone();
        let stopping = async {
            stop.cancelled().await;
            handle.graceful_shutdown(Some(LAST_REQUESTS));
            std::future::pending::<()>().await;
        };
        let following = async {
            self.door.follow().await;
            std::future::pending::<()>().await;
        };
        let service = router.into_make_service();
        let serving = async {
            match self.tls {
                Some(tls) => {
                    let server = axum_server::from_tcp_rustls(self.listener, tls)?;
                    server.handle(self.handle).serve(service).await
                }
                None => {
                    let server = axum_server::from_tcp(self.listener)?;
                    server.handle(self.handle).serve(service).await
                }
            }
        };
        tokio::select! {
            served = serving => served,
            () = stopping => unreachable!("it waits for ever"),
            () = following => unreachable!("it waits for ever"),
        }
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::message(ExitCode::Refused, message.into())
}

async fn door(settings: &ApiSettings, wanted: SocketAddr, base: &Path) -> Result<Door, Failure> {
    if settings.tokens_file.is_none() && settings.oidc.is_none() {
        if wanted.ip().is_loopback() {
            return Ok(Door::Open);
        }
        let message = format!(
            "api.listen is {wanted}, which others can reach, and neither api.tokens_file nor api.oidc is set: without tokens the API listens on 127.0.0.1 only"
        );
        return Err(
            refused(message).hint("`twincast token NAME` makes a token and its line in the file")
        );
    }
    let oidc = match &settings.oidc {
        Some(configured) => Some(oidc::issuer(configured, base).await?),
        None => None,
    };
    let tokens = match &settings.tokens_file {
        Some(file) => Some(tokens(base.join(file), oidc.is_some()).await?),
        None => None,
    };
    Ok(Door::Bearers(Bearers { tokens, oidc }))
}

async fn tokens(path: PathBuf, may_be_empty: bool) -> Result<TokensFile, Failure> {
    let doing = format!("cannot use api.tokens_file {}", path.display());
    let tokens = TokensFile::open(path)
        .await
        .with_context(|| doing.clone())
        .map_err(|error| Failure::new(ExitCode::Refused, error))?;
    if tokens.is_empty() && !may_be_empty {
        return Err(refused(format!("{doing}: it has no token")));
    }
    Ok(tokens)
}

async fn tls(settings: &ApiSettings, base: &Path) -> Result<Option<RustlsConfig>, Failure> {
    match (&settings.tls_cert_file, &settings.tls_key_file) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            // The library asks for one that the whole process uses; there may be one already.
            _ = rustls::crypto::ring::default_provider().install_default();
            let (certificate, key) = (base.join(certificate), base.join(key));
            let config = RustlsConfig::from_pem_file(&certificate, &key)
                .await
                .with_context(|| {
                    let (certificate, key) = (certificate.display(), key.display());
                    format!(
                        "cannot use api.tls_cert_file {certificate} with api.tls_key_file {key}"
                    )
                })
                .map_err(|error| Failure::new(ExitCode::Refused, error))?;
            Ok(Some(config))
        }
        _ => Err(refused(
            "api.tls_cert_file and api.tls_key_file must be given together",
        )),
    }
}
