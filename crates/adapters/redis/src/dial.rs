//! Connections to a single server, to a cluster, or to the master named by sentinels.
//!
//! URLs, passwords and certificates may change while the process runs, and are read again for each
//! connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClientBuilder, NodeAddress};
use redis::cluster_async::ClusterConnection;
use redis::io::AsyncDNSResolver;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError,
    RedisFuture, RedisResult, TlsCertificates, Value, from_redis_value,
};

use crate::check::is_permanent;
use crate::error::{ConnectError, is_refusal, no_connection};
use crate::settings::{Addresses, Settings, Topology};

/// A connection, as calls use it; clones are the same connection.
#[derive(Clone)]
pub(crate) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Makes a connection. Returns the remaining life of the password, if the password expires.
///
/// Each attempt at a server ends after `connect_timeout`; a sentinel and its master are two
/// attempts, one after the other. Cancel safe.
pub(crate) async fn connect(settings: &Settings) -> RedisResult<(Connection, Option<Duration>)> {
    let dial = Dial::new(settings).map_err(no_connection)?;
    let Addresses {
        mut servers,
        sentinels,
    } = settings.addresses().map_err(no_connection)?;
    let mut life = None;
    if let Some(provider) = &settings.credentials {
        let reply = tokio::time::timeout(settings.connect_timeout, provider.credentials()).await;
        let credentials = reply.unwrap_or_else(|_| {
            let limit = settings.connect_timeout;
            Err(format!("no answer within {limit:?}").into())
        });
        let credentials =
            credentials.map_err(|error| no_connection(ConnectError::Credentials(error)))?;
        for server in &mut servers {
            let with = server.redis_settings().clone();
            let with = with.set_username(&credentials.user);
            let with = with.set_password(credentials.password.expose());
            *server = server.clone().set_redis_settings(with);
        }
        let left = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
        life = credentials.expires_at.map(left);
    }
    let connection = match settings.topology {
        Topology::Cluster => Connection::Cluster(dial.cluster(servers).await?),
        Topology::Single => {
            Connection::Single(dial.open(&servers[0], settings.tls_name.as_deref()).await?)
        }
        Topology::Sentinels(_) => Connection::Single(dial.master(&servers[0], &sentinels).await?),
    };
    Ok((connection, life))
}

/// Checks the files of certificates without connecting.
pub(crate) fn check(settings: &Settings) -> Result<(), ConnectError> {
    Dial::new(settings).map(drop)
}

/// The common part of all connections of an attempt.
struct Dial<'a> {
    settings: &'a Settings,
    certificates: Option<TlsCertificates>,
}

impl<'a> Dial<'a> {
    fn new(settings: &'a Settings) -> Result<Self, ConnectError> {
        // The library uses the crypto provider of the process. The call fails only if a provider is
        // installed already.
        _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            settings,
            certificates: certificates(settings)?,
        })
    }

    /// Opens a connection to a single server. The server's certificate must be for `tls_name` or,
    /// without `tls_name`, for the host.
    async fn open(
        &self,
        server: &ConnectionInfo,
        tls_name: Option<&str>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut server = server.clone().set_tcp_settings(tcp_settings(self.settings));
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout))
            .set_response_timeout(Some(self.settings.response_timeout));
        let is_tls = matches!(server.addr(), ConnectionAddr::TcpTls { .. });
        if let Some(name) = tls_name {
            let (host, port) = host_and_port(&server)?;
            config = config.set_dns_resolver(Nodes(HashMap::from([(port, (host, port))])));
            server = at(server, name.to_owned(), port);
        }
        let client = match &self.certificates {
            Some(certificates) if is_tls => Client::build_with_tls(server, certificates.clone()),
            _ => Client::open(server),
        };
        let client = client?;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Opens the connection to a cluster. The first node to answer lists the nodes. A listed node
    /// is tried before the library's client is built, because the client's own errors hide a wrong
    /// password or certificate. If all certificates have the same name, the list provides the
    /// address of each node.
    async fn cluster(&self, servers: Vec<ConnectionInfo>) -> RedisResult<ClusterConnection> {
        let announced = first(servers.iter().map(|server| self.announced(server))).await?;
        let name = self.settings.tls_name.as_deref();
        let nodes = announced.iter();
        let nodes = nodes.map(|(host, port)| at(servers[0].clone(), host.clone(), *port));
        first(nodes.map(async |node| self.open(&node, name).await)).await?;
        let settings = self.settings;
        let mut builder = ClusterClientBuilder::new(servers.clone())
            .tcp_settings(tcp_settings(settings))
            .connection_timeout(settings.connect_timeout)
            .response_timeout(settings.response_timeout)
            // A second or two in all. The caller decides about more tries.
            .retries(5)
            .min_retry_wait(50)
            .max_retry_wait(500);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        if let Some(name) = name {
            let given = servers.iter().map(host_and_port);
            let given: Vec<_> = given.collect::<RedisResult<_>>()?;
            let all = given.into_iter().chain(announced);
            // A number stands for the port of each node, because several nodes may have the same
            // port.
            let numbered: HashMap<_, _> = (1..).zip(all).collect();
            let names = numbered.iter().map(|(number, (host, port))| {
                let node = NodeAddress::new(host.as_str(), *port);
                (node, NodeAddress::new(name, *number))
            });
            builder = builder
                .node_address_map(names.collect())
                .async_dns_resolver(Nodes(numbered));
        }
        builder.build()?.get_async_connection().await
    }

    /// Returns the nodes of a cluster, as announced by a server.
    async fn announced(&self, server: &ConnectionInfo) -> RedisResult<Vec<(String, u16)>> {
        let mut connection = self.open(server, self.settings.tls_name.as_deref()).await?;
        let slots = redis::cmd("CLUSTER").arg("SLOTS").to_owned();
        let slots = slots.query_async(&mut connection).await?;
        Ok(nodes(slots, &host_and_port(server)?.0))
    }

    /// Opens the connection to the present master, by way of the first sentinel that leads to the
    /// master. The host of `master` is the master's name.
    async fn master(
        &self,
        master: &ConnectionInfo,
        sentinels: &[ConnectionInfo],
    ) -> RedisResult<MultiplexedConnection> {
        first(sentinels.iter().map(|it| self.master_by(it, master))).await
    }

    async fn master_by(
        &self,
        sentinel: &ConnectionInfo,
        master: &ConnectionInfo,
    ) -> RedisResult<MultiplexedConnection> {
        let (name, _) = host_and_port(master)?;
        let query = async {
            let mut connection = self.open(sentinel, None).await?;
            let ask = redis::cmd("SENTINEL")
                .arg("GET-MASTER-ADDR-BY-NAME")
                .arg(&name)
                .to_owned();
            ask.query_async(&mut connection).await
        };
        // The text distinguishes a sentinel's refusal from the master's refusal.
        let address = query
            .await
            .map_err(|error: RedisError| match is_refusal(&error) {
                true => (
                    ErrorKind::AuthenticationFailed,
                    "the sentinel refuses user or password",
                    error.to_string(),
                )
                    .into(),
                false => error,
            })?;
        let Some((host, port)) = address else {
            let sentinel = sentinel.addr();
            let error = format!("the sentinel at {sentinel} knows no master {name:?}");
            return Err(no_connection(error));
        };
        let server = at(master.clone(), host, port);
        let mut connection = self
            .open(&server, self.settings.tls_name.as_deref())
            .await?;
        // After an absence, a sentinel may lead to the former master.
        let role = redis::cmd("ROLE").query_async(&mut connection).await;
        match role.map(is_master) {
            Ok(true) => Ok(connection),
            Ok(false) => {
                let (server, sentinel) = (server.addr(), sentinel.addr());
                let error = format!(
                    "{server} is a replica, but sentinel {sentinel} names it as the master"
                );
                Err(no_connection(error))
            }
            // The user may not ask for the role. A replica refuses the first write.
            Err(error) if is_permanent(&error) => Ok(connection),
            Err(error) => Err(error),
        }
    }
}

/// Returns the first success. Without a success, returns an error: preferably a refusal of user and
/// password, because a server with another error may merely be unavailable.
async fn first<T>(
    attempts: impl Iterator<Item = impl Future<Output = RedisResult<T>>>,
) -> RedisResult<T> {
    let mut attempts: FuturesUnordered<_> = attempts.collect();
    let mut reported: Option<RedisError> = None;
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(done) => return Ok(done),
            Err(error) if reported.as_ref().is_none_or(|it| !is_refusal(it)) => {
                reported = Some(error);
            }
            Err(_) => {}
        }
    }
    reported.map_or_else(|| Err(no_connection("no address is known")), Err)
}

/// The addresses of servers with certificates for the same name, by the number that stands for the
/// port.
struct Nodes(HashMap<u16, (String, u16)>);

impl AsyncDNSResolver for Nodes {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        let of_node = self.0.get(&port);
        let (host, port) = of_node.map_or((host, port), |(host, port)| (host.as_str(), *port));
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
            let found: Box<dyn Iterator<Item = SocketAddr> + Send> = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

/// Extracts the nodes from the answer to `CLUSTER SLOTS`. A node without a host has the host of the
/// answering node.
fn nodes(slots: Value, answering: &str) -> Vec<(String, u16)> {
    let lists = |value: Value| match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let ranges = lists(slots).into_iter();
    let nodes = ranges.flat_map(|range| lists(range).into_iter().skip(2));
    let nodes = nodes.filter_map(|node| {
        let mut parts = lists(node).into_iter();
        let host: Option<String> = from_redis_value(parts.next()?).ok()?;
        let port = from_redis_value(parts.next()?).ok()?;
        let host = host.filter(|host| !host.is_empty());
        Some((host.unwrap_or_else(|| answering.to_owned()), port))
    });
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Returns whether an answer to `ROLE` comes from a master.
fn is_master(role: Vec<Value>) -> bool {
    let kind = role.into_iter().next();
    kind.is_some_and(|kind| from_redis_value::<String>(kind).is_ok_and(|it| it == "master"))
}

fn host_and_port(server: &ConnectionInfo) -> RedisResult<(String, u16)> {
    match server.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Ok((host.clone(), *port))
        }
        other => Err(no_connection(format!("{other} has no host"))),
    }
}

/// Returns a server with the same settings at another address.
fn at(server: ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let address = match server.addr() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    server.set_addr(address)
}

/// Returns TCP settings: small writes are sent at once, and a connection with unacknowledged
/// packets ends early (the system's own limit is a quarter of an hour).
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
    // The library would accept a file without certificates, and trust no server.
    let text = twincast_tls::authorities_in(path)?;
    Ok(Some(TlsCertificates {
        client_tls: None,
        root_cert: Some(text.into_bytes()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn nodes_are_each_listed_once_with_replicas() {
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id")]);
        let range =
            |nodes: Vec<Value>| Value::Array([vec![Value::Int(0), Value::Int(9)], nodes].concat());
        let slots = Value::Array(vec![
            range(vec![
                node(text("10.0.0.2"), 8500),
                node(text("10.0.0.1"), 8500),
            ]),
            range(vec![node(Value::Nil, 8501)]),
            range(vec![node(text(""), 8502)]),
            range(vec![node(text("10.0.0.2"), 8500)]),
            Value::Nil,
        ]);
        let expected = [
            ("10.0.0.1", 8500),
            ("10.0.0.2", 8500),
            ("me", 8501),
            ("me", 8502),
        ];
        let expected = expected.map(|(host, port)| (host.to_owned(), port));
        assert_eq!(nodes(slots, "me"), expected);
        assert!(nodes(Value::Okay, "me").is_empty());
    }

    #[test]
    fn only_the_master_role_counts_as_master() {
        for (role, expected) in [("master", true), ("slave", false), ("sentinel", false)] {
            assert_eq!(
                is_master(vec![text(role), Value::Int(0)]),
                expected,
                "{role}"
            );
        }
        assert!(!is_master(Vec::new()));
    }

    #[tokio::test]
    async fn refusal_precedes_other_errors_and_success_precedes_all() {
        let refusal = || Err((ErrorKind::AuthenticationFailed, "no").into());
        let attempts = [
            Err(no_connection("away")),
            refusal(),
            Err(no_connection("away")),
        ];
        let tried = first::<()>(attempts.into_iter().map(std::future::ready)).await;
        assert!(is_refusal(&tried.unwrap_err()));
        let attempts = [refusal(), Ok(())];
        assert_eq!(
            first(attempts.into_iter().map(std::future::ready)).await,
            Ok(())
        );
        let none = first::<()>(std::iter::empty::<std::future::Ready<_>>()).await;
        assert!(none.is_err());
    }
}
