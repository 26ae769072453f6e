//! The connection, and how to get another one.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult,
    ServerErrorKind, TlsCertificates, Value,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::debug;

use crate::error::{ConnectError, is_spent, timed_out};
use crate::scripts::Run;
use crate::settings::Settings;
use twincast_secret::text_of;

/// One connection to a Redis, or one to each node of a cluster, shared by all calls.
///
/// A connection that turned out to be spent is not used again; the next call makes another. One
/// that was closed (by a restart, or for having been idle) costs the call that finds it a second
/// try, which is safe: all that we ask may be asked twice.
pub(crate) struct Link {
    target: Target,
    patience: Duration,
    held: Mutex<Held>,
}

enum Target {
    Plain(Box<Client>, AsyncConnectionConfig),
    Cluster(Box<ClusterClient>),
}

#[derive(Clone)]
enum Connection {
    Plain(MultiplexedConnection),
    Cluster(ClusterConnection),
}

#[derive(Default)]
struct Held {
    connection: Option<Connection>,
    /// How many there were before.
    number: u64,
}

impl Link {
    /// Prepares a connection; the first call makes it.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConnectError> {
        let target = Target::new(settings)?;
        Ok(Self {
            target,
            patience: settings.connect_timeout + settings.response_timeout,
            held: Mutex::default(),
        })
    }

    /// Runs a script.
    pub(crate) async fn run(&self, run: &Run) -> RedisResult<Value> {
        match self.query(&run.by_digest()).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.query(&run.in_full()).await
            }
            answered => answered,
        }
    }

    /// Asks one thing. Takes no longer than both timeouts together.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let answered = timeout(self.patience, self.ask(command)).await;
        answered.unwrap_or_else(|_| Err(timed_out(self.patience)))
    }

    async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        // A cluster's connection has its own second tries.
        let is_plain = matches!(self.target, Target::Plain(..));
        match self.ask_once(command).await {
            Err(error) if is_plain && error.is_connection_dropped() => {
                debug!(%error, "connection to redis lost, trying another");
                self.ask_once(command).await
            }
            answered => answered,
        }
    }

    async fn ask_once(&self, command: &Cmd) -> RedisResult<Value> {
        let (number, connection) = self.connection().await?;
        let answered = match connection {
            Connection::Plain(mut plain) => command.query_async(&mut plain).await,
            // It replaces its nodes' connections itself.
            Connection::Cluster(mut cluster) => return command.query_async(&mut cluster).await,
        };
        if answered.as_ref().is_err_and(is_spent) {
            let mut held = self.held.lock().await;
            if held.number == number {
                held.connection = None;
            }
        }
        answered
    }

    async fn connection(&self) -> RedisResult<(u64, Connection)> {
        // Held while connecting, so that one connects and the others wait for it.
        let mut held = self.held.lock().await;
        let connection = match &held.connection {
            Some(connection) => connection.clone(),
            None => {
                let connection = self.target.connect().await?;
                held.number += 1;
                held.connection = Some(connection.clone());
                connection
            }
        };
        Ok((held.number, connection))
    }
}

impl Target {
    fn new(settings: &Settings) -> Result<Self, ConnectError> {
        let servers = settings.servers()?;
        let tcp = tcp_settings(settings);
        let certificates = certificates(settings)?;
        let is_tls =
            |server: &ConnectionInfo| matches!(server.addr(), ConnectionAddr::TcpTls { .. });
        if servers.iter().any(is_tls) {
            // The library takes the process's. It fails only where there is one already.
            _ = rustls::crypto::ring::default_provider().install_default();
        }
        let wrong = |error: redis::RedisError| match &settings.ca {
            Some(path) => ConnectError::Ca {
                path: path.clone(),
                source: Box::new(error),
            },
            None => ConnectError::Settings {
                what: error.to_string(),
            },
        };
        if settings.cluster {
            let mut builder = ClusterClientBuilder::new(servers)
                .tcp_settings(tcp)
                .connection_timeout(settings.connect_timeout)
                .response_timeout(settings.response_timeout)
                // Together a second or two, after which it is for the caller to try again.
                .retries(5)
                .min_retry_wait(50)
                .max_retry_wait(500);
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            return builder
                .build()
                .map(|client| Self::Cluster(Box::new(client)))
                .map_err(wrong);
        }
        let [server] = <[_; 1]>::try_from(servers).expect("one that is no cluster has one URL");
        let server = server.set_tcp_settings(tcp);
        let client = match certificates {
            Some(certificates) => Client::build_with_tls(server, certificates),
            None => Client::open(server),
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let client = client.map_err(wrong)?;
        Ok(Self::Plain(Box::new(client), config))
    }

    async fn connect(&self) -> RedisResult<Connection> {
        match self {
            Self::Plain(client, config) => client
                .get_multiplexed_async_connection_with_config(config)
                .await
                .map(Connection::Plain),
            Self::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
        }
    }
}

/// Small writes at once, and an end to a connection whose packets nobody acknowledges: else it
/// would take the system a quarter of an hour to notice.
fn tcp_settings(settings: &Settings) -> TcpSettings {
    let tcp = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(settings.connect_timeout + settings.response_timeout);
    tcp
}

fn certificates(settings: &Settings) -> Result<Option<TlsCertificates>, ConnectError> {
    let Some(path) = &settings.ca else {
        return Ok(None);
    };
    let unusable = |source| ConnectError::Ca {
        path: path.clone(),
        source,
    };
    let read = std::fs::read(path).map_err(|error| unusable(error.into()))?;
    let read = text_of(&read).map_err(|error| unusable(error.into()))?;
    let read = read.as_bytes().to_vec();
    // The library would take a file without any, and trust nobody.
    CertificateDer::from_pem_slice(&read).map_err(|error| unusable(error.into()))?;
    Ok(Some(TlsCertificates {
        client_tls: None,
        root_cert: Some(read),
    }))
}
