//! Ports, connections and tasks: starts and stops a hub.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificate::{self, Identity, IdentityError};
use crate::config::HubConfig;
use crate::control::{self, MessageReport};
use crate::dps::Enrollments;
use crate::entra::{Directory, Issuer, Role};
use crate::faults::Faults;
use crate::hub::{ClientCertificate, Cut, DeviceAuthorities, Hub, SessionReport, Summary};
use crate::rest::{self, Prefixed};
use crate::{amqp, mqtt};

/// The time for a client's TLS handshake and first bytes.
const HANDSHAKE_TIME_OUT: Duration = Duration::from_secs(30);
/// The time for connections to end when the hub stops.
const DRAIN_TIME_OUT: Duration = Duration::from_secs(5);

/// The reason why a hub could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be bound.
    #[error("cannot bind {address} for {purpose}")]
    Bind {
        /// The purpose of the port.
        purpose: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The hub's TLS identity could not be made.
    #[error("cannot create the hub's TLS identity")]
    Identity(#[from] IdentityError),
    /// The certificates of device authorities are invalid.
    #[error("cannot use the certificates of the device certificate authorities: {0}")]
    DeviceAuthorities(String),
}

/// Starts a hub. On return, all ports are bound.
///
/// # Errors
///
/// An error names the port that could not be bound, the unusable host name, or an invalid
/// certificate authority.
pub async fn start(config: HubConfig) -> Result<RunningHub, StartError> {
    let identity = certificate::make(&config.names(), config.seed)?;
    let authorities = authorities(&config.device_ca_pem).map_err(StartError::DeviceAuthorities)?;
    let bind = async |purpose, port| {
        let address = SocketAddr::new(config.bind, port);
        TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Bind {
                purpose,
                address,
                source,
            })
    };
    let amqp = bind("AMQP", config.amqp_port).await?;
    let https = bind("HTTPS", config.https_port).await?;
    let mqtt = bind("MQTT", config.mqtt_port).await?;
    let control = match config.control_port {
        Some(port) => Some(bind("the control interface", port).await?),
        None => None,
    };
    let address = |purpose, listener: &TcpListener, port| {
        let requested = SocketAddr::new(config.bind, port);
        listener.local_addr().map_err(|source| StartError::Bind {
            purpose,
            address: requested,
            source,
        })
    };
    let amqp_addr = address("AMQP", &amqp, config.amqp_port)?;
    let https_addr = address("HTTPS", &https, config.https_port)?;
    let mqtt_addr = address("MQTT", &mqtt, config.mqtt_port)?;
    let control_addr = match &control {
        Some(listener) => Some(address(
            "the control interface",
            listener,
            config.control_port.unwrap_or(0),
        )?),
        None => None,
    };
    let hub = Arc::new(Hub::new(config, authorities));
    let running = RunningHub {
        handle: HubHandle {
            hub: Arc::clone(&hub),
        },
        ca_pem: identity.ca_pem.clone(),
        amqp_addr,
        https_addr,
        mqtt_addr,
        control_addr,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    };
    let listeners = [
        (amqp, Speaks::AmqpAndHttp),
        (https, Speaks::AmqpAndHttp),
        (mqtt, Speaks::Mqtt),
    ];
    running.spawn_all(&hub, &identity, listeners, control);
    tracing::info!(%amqp_addr, %https_addr, %mqtt_addr, ?control_addr, "hub emulator started");
    Ok(running)
}

/// Reads the authorities in PEM texts.
fn authorities(texts: &[String]) -> Result<DeviceAuthorities, String> {
    let mut certificates = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let found =
            certificate::read_pem(text).map_err(|error| format!("text {}: {error}", at + 1))?;
        certificates.extend(found);
    }
    DeviceAuthorities::new(&certificates)
}

/// A hub that runs until it is shut down or dropped.
#[derive(Debug)]
pub struct RunningHub {
    handle: HubHandle,
    ca_pem: String,
    amqp_addr: SocketAddr,
    https_addr: SocketAddr,
    mqtt_addr: SocketAddr,
    control_addr: Option<SocketAddr>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl RunningHub {
    /// Returns the connection string of the policy `iothubowner`, or of the first policy if
    /// `iothubowner` does not exist. The host name carries the AMQP port, unless both ports are
    /// standard ports; the AMQP port answers HTTPS too.
    #[must_use]
    pub fn connection_string(&self) -> String {
        let policies = self.handle.hub.policies();
        let owner = policies
            .iter()
            .find(|policy| policy.name == "iothubowner")
            .or(policies.first());
        owner
            .and_then(|policy| self.connection_string_for(&policy.name))
            .unwrap_or_default()
    }

    /// Returns the connection string of a policy, if the policy exists.
    #[must_use]
    pub fn connection_string_for(&self, policy: &str) -> Option<String> {
        let hub = &self.handle.hub;
        let policies = hub.policies();
        let policy = policies.iter().find(|known| known.name == policy)?;
        let host = &hub.config.host_name;
        let standard = self.amqp_addr.port() == 5671 && self.https_addr.port() == 443;
        let port = if standard {
            String::new()
        } else {
            format!(":{}", self.amqp_addr.port())
        };
        let (name, key) = (&policy.name, policy.primary_key_base64());
        Some(format!(
            "HostName={host}{port};SharedAccessKeyName={name};SharedAccessKey={key}"
        ))
    }

    /// Returns the principals of Microsoft Entra ID, if the hub accepts their tokens.
    #[must_use]
    pub fn directory(&self) -> Option<&Directory> {
        self.handle.hub.issuer.as_ref().map(Issuer::directory)
    }

    /// Returns the enrolments of the Device Provisioning Service, which answers on the hub's ports.
    #[must_use]
    pub fn enrollments(&self) -> &Enrollments {
        self.handle.hub.provisioning.enrollments()
    }

    /// Returns the certificate for clients to trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Returns the address of the AMQP port, which also answers HTTPS.
    #[must_use]
    pub fn amqp_addr(&self) -> SocketAddr {
        self.amqp_addr
    }

    /// Returns the address of the HTTPS port, which also answers AMQP.
    #[must_use]
    pub fn https_addr(&self) -> SocketAddr {
        self.https_addr
    }

    /// Returns the address of the MQTT port.
    #[must_use]
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.mqtt_addr
    }

    /// Returns the connection string of a device with symmetric keys. Returns `None` if the device
    /// does not exist, or authenticates by other means.
    #[must_use]
    pub fn device_connection_string(&self, device_id: &str) -> Option<String> {
        self.handle.device_connection_string(device_id)
    }

    /// Returns the address of the control interface, if enabled.
    #[must_use]
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.control_addr
    }

    /// Returns a handle to the hub.
    #[must_use]
    pub fn hub(&self) -> &HubHandle {
        &self.handle
    }

    /// Closes all connections, and waits until all tasks have ended, for at most five seconds.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIME_OUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                tasks = self.tasks.len(),
                "some connections did not close in time"
            );
        }
    }

    fn spawn_all(
        &self,
        hub: &Arc<Hub>,
        identity: &Identity,
        listeners: [(TcpListener, Speaks); 3],
        control: Option<TcpListener>,
    ) {
        let permits = Arc::new(Semaphore::new(hub.config.connections_max));
        for (listener, speaks) in listeners {
            let acceptor = Acceptor {
                speaks,
                hub: Arc::clone(hub),
                tls: TlsAcceptor::from(Arc::clone(&identity.server)),
                permits: Arc::clone(&permits),
                tasks: self.tasks.clone(),
                stop: self.stop.clone(),
            };
            self.tasks.spawn(acceptor.run(listener));
        }
        self.tasks
            .spawn(Arc::clone(hub).run_devices(self.stop.clone()));
        if let Some(listener) = control {
            self.tasks.spawn(control::serve(
                listener,
                self.handle.clone(),
                self.stop.clone(),
            ));
        }
    }
}

impl Drop for RunningHub {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The protocols of a port, inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// The first bytes decide the protocol.
    AmqpAndHttp,
    Mqtt,
}

struct Acceptor {
    speaks: Speaks,
    hub: Arc<Hub>,
    tls: TlsAcceptor,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // File descriptors are probably exhausted; an immediate retry would only burn a
                    // core.
                    tracing::warn!(error = %error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if self.hub.faults.refuses_connections() {
                self.hub.counters.cut_connections.one();
                continue;
            }
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                tracing::warn!("connection refused: the limit of open connections is reached");
                continue;
            };
            let (hub, tls, stop) = (Arc::clone(&self.hub), self.tls.clone(), self.stop.clone());
            let speaks = self.speaks;
            self.tasks.spawn(async move {
                // Boxed, so that a connection's task has the size of its own protocol, and not of
                // the largest protocol.
                let opened = Box::pin(open(stream, &tls, &stop)).await;
                if let Some(opened) = opened {
                    serve_connection(opened, speaks, hub, stop).await;
                }
                drop(permit);
            });
        }
    }
}

/// A connection after the TLS handshake.
struct Opened {
    stream: TlsStream<TcpStream>,
    certificate: Option<ClientCertificate>,
    first: BytesMut,
}

/// Performs the TLS handshake and reads the first bytes.
async fn open(stream: TcpStream, tls: &TlsAcceptor, stop: &CancellationToken) -> Option<Opened> {
    // Dispositions are small, and must not wait for further data.
    let _ = stream.set_nodelay(true);
    let opening = async {
        let mut stream = tls.accept(stream).await?;
        let first = first_bytes(&mut stream).await?;
        let certificate = stream.get_ref().1.peer_certificates();
        let certificate = certificate.and_then(ClientCertificate::new);
        Ok::<_, std::io::Error>(Opened {
            stream,
            certificate,
            first,
        })
    };
    let opened = tokio::select! {
        () = stop.cancelled() => return None,
        opened = tokio::time::timeout(HANDSHAKE_TIME_OUT, opening) => opened,
    };
    match opened {
        Ok(Ok(opened)) => return Some(opened),
        Ok(Err(error)) => tracing::debug!(error = %error, "connection closed during the handshake"),
        Err(_) => tracing::debug!("connection closed: no data from the client in time"),
    }
    None
}

async fn serve_connection(opened: Opened, speaks: Speaks, hub: Arc<Hub>, stop: CancellationToken) {
    let Opened {
        stream,
        certificate,
        first,
    } = opened;
    if speaks == Speaks::Mqtt {
        Box::pin(mqtt::serve(stream, first, certificate, hub, stop)).await;
    } else if first.starts_with(b"AMQP") {
        Box::pin(amqp::serve(stream, first, hub, certificate, stop)).await;
    } else {
        let stream = Prefixed::new(stream, first);
        Box::pin(rest::serve(stream, certificate, hub, stop)).await;
    }
}

async fn first_bytes<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> std::io::Result<BytesMut> {
    let mut first = BytesMut::with_capacity(1024);
    while first.len() < 4 {
        if stream.read_buf(&mut first).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(first)
}

/// A handle for inspecting and disturbing a hub. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HubHandle {
    hub: Arc<Hub>,
}

impl HubHandle {
    /// Returns the hub's counters since the start.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.hub.summary()
    }

    /// Returns the faults in force; a chance's count shows the remaining times.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.hub.faults.get()
    }

    /// Replaces all faults.
    pub fn set_faults(&self, faults: Faults) {
        self.hub.faults.set(faults);
    }

    /// Replaces the keys of a shared access policy, like a regeneration of keys in Azure. Returns
    /// `false` if the policy does not exist.
    pub fn set_keys(&self, policy: &str, primary: Vec<u8>, secondary: Vec<u8>) -> bool {
        self.hub.set_keys(policy, primary, secondary)
    }

    /// Replaces the roles of a principal of Microsoft Entra ID. Returns `false` if the principal or
    /// a role does not exist.
    pub fn set_roles(&self, client_id: &str, roles: &[&str]) -> bool {
        let roles = roles.iter().map(|role| Role::try_from((*role).to_owned()));
        let principal = self.hub.issuer.as_ref();
        let principal = principal.and_then(|issuer| issuer.directory().principal(client_id));
        match (principal, roles.collect()) {
            (Some(principal), Ok(roles)) => {
                principal.set_roles(roles);
                true
            }
            _ => false,
        }
    }

    /// Cuts all AMQP connections now.
    pub fn cut_connections(&self, cut: Cut) {
        self.hub.cut(cut);
    }

    /// See [`RunningHub::device_connection_string`].
    #[must_use]
    pub fn device_connection_string(&self, device_id: &str) -> Option<String> {
        let key = self.hub.device_key(device_id)?;
        let host = &self.hub.config.host_name;
        Some(format!(
            "HostName={host};DeviceId={device_id};SharedAccessKey={key}"
        ))
    }

    /// Returns the connected devices, without simulated devices, in no particular order.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionReport> {
        self.hub.sessions()
    }

    /// Ends the connections of all devices now; devices may reconnect at once.
    pub fn disconnect_devices(&self) {
        self.hub.disconnect_all();
    }

    /// Returns all messages of a device, oldest first, or `None` if the device does not exist.
    #[must_use]
    pub fn messages(&self, device_id: &str) -> Option<Vec<MessageReport>> {
        control::messages_of(&self.hub, device_id)
    }

    pub(crate) fn inner(&self) -> &Arc<Hub> {
        &self.hub
    }
}
