//! Where the HTTP API listens, and who may ask.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio_util::sync::CancellationToken;
use twincast_orchestrator::http::auth::{Door, Tokens};

use crate::config::{ApiSettings, Settings};
use crate::exit::{ExitCode, Failure};
use crate::output::Output;

/// How long requests under way may take when the process is to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// A listener of the API.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<RustlsConfig>,
    handle: Handle<SocketAddr>,
}

impl Listener {
    /// Listens, if that is configured, and says who may ask. Nothing is answered yet.
    pub(crate) async fn bind(settings: &Settings) -> Result<Option<(Self, Door)>, Failure> {
        let Some(wanted) = settings.api.listen else {
            return Ok(None);
        };
        let door = door(&settings.api, wanted, &settings.base)?;
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
        let listener = Self {
            listener,
            address,
            tls,
            handle: Handle::new(),
        };
        Ok(Some((listener, door)))
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
        }
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::message(ExitCode::Refused, message.into())
}

fn door(settings: &ApiSettings, wanted: SocketAddr, base: &Path) -> Result<Door, Failure> {
    let Some(file) = &settings.tokens_file else {
        if wanted.ip().is_loopback() {
            return Ok(Door::Open);
        }
        let message = format!(
            "api.listen is {wanted}, which others can reach, and api.tokens_file is not set: without tokens the API listens on 127.0.0.1 only"
        );
        return Err(
            refused(message).hint("`twincast token NAME` makes a token and its line in the file")
        );
    };
    let path = base.join(file);
    let doing = || format!("cannot use api.tokens_file {}", path.display());
    let text = std::fs::read_to_string(&path)
        .with_context(doing)
        .map_err(|error| Failure::new(ExitCode::Refused, error))?;
    let tokens = Tokens::read(&text)
        .with_context(doing)
        .map_err(|error| Failure::new(ExitCode::Refused, error))?;
    if tokens.is_empty() {
        return Err(refused(format!("{}: it has no token", doing())));
    }
    Ok(Door::Tokens(tokens))
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
