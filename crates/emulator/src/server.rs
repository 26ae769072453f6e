//! Ports, connections and tasks: what makes a hub run, and what stops it.

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

/// How long a client has for the TLS handshake and its first bytes.
const HANDSHAKE_TIME_OUT: Duration = Duration::from_secs(30);
/// How long connections have to end when the hub stops.
const DRAIN_TIME_OUT: Duration = Duration::from_secs(5);

/// Why a hub could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be bound.
    #[error("binding {address} for {purpose}")]
    Bind {
        /// What the port is for.
        purpose: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The hub's TLS identity could not be made.
    #[error("making the hub's TLS identity")]
    Identity(#[from] IdentityError),
    /// The certificates of devices' authorities cannot be used.
    #[error("reading the certificates of the authorities of devices: {0}")]
    DeviceAuthorities(String),
}

/// Starts a hub. All its ports are bound when this returns.
///
/// # Errors
///
/// Names the port that could not be bound, or what is wrong with the host name.
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
        let asked = SocketAddr::new(config.bind, port);
        listener.local_addr().map_err(|source| StartError::Bind {
            purpose,
            address: asked,
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

/// The authorities of texts in PEM.
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
    /// The connection string of the policy `iothubowner` (or of the first policy, if there is none of that
    /// name). Its host name carries the AMQP port unless both ports are the standard ones; that port
    /// answers HTTPS too.
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

    /// The connection string of one policy, if there is such a policy.
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

    /// The principals of Microsoft Entra ID, if the hub takes their tokens.
    #[must_use]
    pub fn directory(&self) -> Option<&Directory> {
        self.handle.hub.issuer.as_ref().map(Issuer::directory)
    }

    /// Who may register at the Device Provisioning Service, which is on the hub's own ports.
    #[must_use]
    pub fn enrollments(&self) -> &Enrollments {
        self.handle.hub.provisioning.enrollments()
    }

    /// The certificate that clients must trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Where AMQP is (and HTTPS as well).
    #[must_use]
    pub fn amqp_addr(&self) -> SocketAddr {
        self.amqp_addr
    }

    /// Where HTTPS is (and AMQP as well).
    #[must_use]
    pub fn https_addr(&self) -> SocketAddr {
        self.https_addr
    }

    /// Where MQTT is.
    #[must_use]
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.mqtt_addr
    }

    /// The connection string of a device that authenticates by a symmetric key; none if there is no such device, or
    /// it authenticates otherwise.
    #[must_use]
    pub fn device_connection_string(&self, device_id: &str) -> Option<String> {
        self.handle.device_connection_string(device_id)
    }

    /// Where the control interface is, if it is on.
    #[must_use]
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.control_addr
    }

    /// The hub behind the ports.
    #[must_use]
    pub fn hub(&self) -> &HubHandle {
        &self.handle
    }

    /// Closes all connections and waits until everything has ended.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIME_OUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                tasks = self.tasks.len(),
                "some connections did not end in time"
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

/// What a port speaks, inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// The first bytes tell which.
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
                    // Out of file descriptors, most likely; trying again at once would only burn a core.
                    tracing::warn!(error = %error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if self.hub.faults.refuses_connections() {
                self.hub.tallies.cut_connections.one();
                continue;
            }
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                tracing::warn!("connection refused: as many as allowed are open");
                continue;
            };
            let (hub, tls, stop) = (Arc::clone(&self.hub), self.tls.clone(), self.stop.clone());
            let speaks = self.speaks;
            self.tasks.spawn(async move {
                // Boxed, so that a connection's task has the size of what it comes to, and not of all it might.
                let opened = Box::pin(open(stream, &tls, &stop)).await;
                if let Some(opened) = opened {
                    serve_connection(opened, speaks, hub, stop).await;
                }
                drop(permit);
            });
        }
    }
}

/// A connection after its TLS handshake.
struct Opened {
    stream: TlsStream<TcpStream>,
    certificate: Option<ClientCertificate>,
    first: BytesMut,
}

/// Does the TLS handshake and reads the first bytes.
async fn open(stream: TcpStream, tls: &TlsAcceptor, stop: &CancellationToken) -> Option<Opened> {
    // Dispositions are small and must not wait for more to come.
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
        Ok(Err(error)) => tracing::debug!(error = %error, "connection ended before it began"),
        Err(_) => tracing::debug!("connection said nothing"),
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

/// A hub to look into and to disturb. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HubHandle {
    hub: Arc<Hub>,
}

impl HubHandle {
    /// What the hub has counted since it started.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.hub.summary()
    }

    /// The faults in force; counts show what is left of them.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.hub.faults.get()
    }

    /// Replaces all faults.
    pub fn set_faults(&self, faults: Faults) {
        self.hub.faults.set(faults);
    }

    /// Replaces the keys of a shared access policy, as a person regenerates them; `false` if there is no such policy.
    pub fn set_keys(&self, policy: &str, primary: Vec<u8>, secondary: Vec<u8>) -> bool {
        self.hub.set_keys(policy, primary, secondary)
    }

    /// Replaces the roles of a principal of Microsoft Entra ID; `false` if there is no such principal, or no such role.
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

    /// The devices that are connected, in no order; simulated ones are not among them.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionReport> {
        self.hub.sessions()
    }

    /// Ends the connections of all devices now; they may come back at once.
    pub fn disconnect_devices(&self) {
        self.hub.disconnect_all();
    }

    /// All messages of a device, oldest first; none if there is no such device.
    #[must_use]
    pub fn messages(&self, device_id: &str) -> Option<Vec<MessageReport>> {
        control::messages_of(&self.hub, device_id)
    }

    pub(crate) fn inner(&self) -> &Arc<Hub> {
        &self.hub
    }
}
