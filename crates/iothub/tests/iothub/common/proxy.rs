//! A proxy between a client and the emulator that tampers with the hub's bytes, to simulate hostile
//! or odd hubs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use twincast_emulator::RunningHub;
use twincast_iothub::{Client, ClientOptions, ConnectionString, Endpoint, Roots};
use twincast_tls::client_config;

/// Maps a frame or protocol header of the hub to the bytes sent in its place.
pub(crate) type Tamper = Box<dyn FnMut(Vec<u8>) -> Vec<u8> + Send>;

/// A proxy on a loopback socket.
pub(crate) struct Proxy {
    port: u16,
    ca: String,
    /// The number of connections made through the proxy.
    connections: Arc<AtomicU64>,
    /// All bytes from clients.
    pub(crate) said: Arc<Mutex<Vec<u8>>>,
}

/// Starts a proxy to `hub`; `tamper` receives the number of each connection, counted from one.
pub(crate) async fn proxy(
    hub: &RunningHub,
    tamper: impl Fn(u64) -> Tamper + Send + 'static,
) -> Proxy {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let connector =
        TlsConnector::from(client_config(&Roots::Only(hub.ca_pem().to_owned())).unwrap());
    let upstream = hub.amqp_addr();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicU64::new(0));
    let said = Arc::<Mutex<Vec<u8>>>::default();
    let (count, received) = (Arc::clone(&connections), Arc::clone(&said));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            let (received, tamper) = (Arc::clone(&received), tamper(number));
            tokio::spawn(async move {
                // The end of a connection is no error of the proxy.
                _ = relay(client, upstream, &acceptor, &connector, &received, tamper).await;
            });
        }
    });
    Proxy {
        port,
        ca: made.cert.pem(),
        connections,
        said,
    }
}

async fn relay(
    client: TcpStream,
    upstream: std::net::SocketAddr,
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    said: &Mutex<Vec<u8>>,
    mut tamper: Tamper,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(acceptor.accept(client).await?);
    let hub = TcpStream::connect(upstream).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let (mut from_hub, mut to_hub) = tokio::io::split(connector.connect(name, hub).await?);
    let up = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match from_client.read(&mut buffer).await? {
                0 => return to_hub.shutdown().await,
                read => {
                    said.lock().unwrap().extend(&buffer[..read]);
                    to_hub.write_all(&buffer[..read]).await?;
                    to_hub.flush().await?;
                }
            }
        }
    };
    let down = async {
        loop {
            let mut piece = vec![0; 8];
            from_hub.read_exact(&mut piece).await?;
            if !piece.starts_with(b"AMQP") {
                let size = u32::from_be_bytes(*piece.first_chunk().unwrap()) as usize;
                piece.resize(size, 0);
                from_hub.read_exact(&mut piece[8..]).await?;
            }
            let instead = tamper(piece);
            to_client.write_all(&instead).await?;
            to_client.flush().await?;
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

impl Proxy {
    /// A client connecting through the proxy.
    pub(crate) fn client(&self, hub: &RunningHub, mut options: ClientOptions) -> Client {
        options.roots = Roots::Only(format!("{}{}", hub.ca_pem(), self.ca));
        options.amqp = Endpoint {
            host: Some("127.0.0.1".to_owned()),
            port: Some(self.port),
        };
        let connection: ConnectionString = hub.connection_string().parse().unwrap();
        Client::new(&connection, options).unwrap()
    }

    pub(crate) fn count(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Passes frames unchanged.
pub(crate) fn honest() -> Tamper {
    Box::new(|piece| piece)
}

/// Returns the code of an AMQP frame's performative; `None` for other input.
pub(crate) fn code(piece: &[u8]) -> Option<u8> {
    match piece {
        [b'A', b'M', b'Q', b'P', ..] => None,
        [_, _, _, _, _, 0, _, _, 0x00, 0x53, code, ..]
        | [
            _,
            _,
            _,
            _,
            _,
            0,
            _,
            _,
            0x00,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            code,
            ..,
        ] => Some(*code),
        _ => None,
    }
}

/// Builds an AMQP frame with this body on the channel of `like`.
pub(crate) fn frame(like: &[u8], body: &[u8]) -> Vec<u8> {
    let mut frame = (8 + body.len() as u32).to_be_bytes().to_vec();
    frame.extend([2, 0, like[6], like[7]]);
    frame.extend(body);
    frame
}
