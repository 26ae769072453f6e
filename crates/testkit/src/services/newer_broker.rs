//! A proxy that makes RabbitMQ 3.10 look like version 4.3 in two respects: the counts in the
//! headers of deliveries, and the cancelling of a consumer after `consumer_timeout`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::AbortHandle;

/// The number of the method `basic.reject` in the protocol.
pub const REJECT: u16 = 90;
/// The number of the method `basic.nack` in the protocol.
pub const NACK: u16 = 120;
const BASIC: u16 = 60;
const CONSUME_OK: u16 = 21;
const CANCEL: u16 = 30;
const DELIVER: u16 = 60;

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const FRAME_END: u8 = 0xce;

/// The header in which 3.10 counts failed deliveries.
const DELIVERY_COUNT: &[u8; 16] = b"x-delivery-count";

/// The counts in the headers of deliveries.
#[derive(Debug, Clone, Copy)]
pub enum DeliveryCounts {
    /// Without counts.
    Hidden,
    /// Named `x-acquired-count`, as 4.3 counts hand-outs without failures, and higher than the
    /// broker's count by `more`.
    Acquired {
        /// The number added to the broker's count.
        more: u64,
    },
}

/// A proxy in front of RabbitMQ 3.10 that behaves like version 4.3. The proxy ends on drop.
#[derive(Debug)]
pub struct NewerBroker {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    counts: DeliveryCounts,
    /// The methods of the class `basic` sent by clients.
    sent: Mutex<Vec<u16>>,
    cancel: broadcast::Sender<()>,
}

impl NewerBroker {
    /// Starts a proxy in front of the broker at `target`, on a free port.
    ///
    /// # Panics
    /// If no port can be bound.
    pub async fn start(target: SocketAddr, counts: DeliveryCounts) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port for a proxy");
        let address = listener.local_addr().expect("a bound port");
        let shared = Arc::new(Shared {
            target,
            counts,
            sent: Mutex::default(),
            cancel: broadcast::Sender::new(1),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                tokio::spawn(async move { shared.serve(client).await.ok() });
            }
        });
        Self {
            address,
            shared,
            task: task.abort_handle(),
        }
    }

    /// Returns the broker's URL by way of the proxy.
    #[must_use]
    pub fn url(&self) -> String {
        super::rabbitmq::url(self.address)
    }

    /// Returns how often clients have sent a method of the class `basic`.
    ///
    /// # Panics
    /// If a connection has panicked.
    #[must_use]
    pub fn sent(&self, method: u16) -> usize {
        let sent = self.shared.sent.lock().unwrap();
        sent.iter().filter(|sent| **sent == method).count()
    }

    /// Cancels all consumers, as 4.3 cancels a consumer after holding a delivery for longer than
    /// `consumer_timeout`: the channel stays open, and the broker expects no answer.
    ///
    /// # Panics
    /// If no client is connected.
    pub fn cancel_consumers(&self) {
        self.shared.cancel.send(()).expect("a client is connected");
    }
}

impl Drop for NewerBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn serve(&self, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(self.target).await?;
        let (mut from_client, to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        let mut greeting = [0; 8];
        from_client.read_exact(&mut greeting).await?;
        to_server.write_all(&greeting).await?;
        tokio::try_join!(
            self.forward_to_broker(from_client, to_server),
            self.forward_to_client(from_server, to_client)
        )?;
        Ok(())
    }

    /// Passes frames to the broker, and notes their methods.
    async fn forward_to_broker(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        loop {
            let frame = Frame::read(&mut from).await?;
            if let Some((BASIC, method)) = frame.method() {
                self.sent.lock().unwrap().push(method);
            }
            frame.write(&mut to).await?;
        }
    }

    /// Passes modified frames to the client.
    async fn forward_to_client(
        &self,
        from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut cancelled = self.cancel.subscribe();
        // Reads are in a task, since half a frame must not be dropped.
        let (out, mut frames) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut from = from;
            while let Ok(frame) = Frame::read(&mut from).await {
                if out.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let mut consumers = Vec::new();
        // Outstanding bytes of a delivery's body. No other frame may come before on the same
        // channel.
        let mut due = 0;
        loop {
            let mut frame = tokio::select! {
                frame = frames.recv() => frame.ok_or(io::ErrorKind::UnexpectedEof)?,
                Ok(()) = cancelled.recv(), if due == 0 => {
                    for (channel, tag) in consumers.drain(..) {
                        Frame::cancel(channel, tag).write(&mut to).await?;
                    }
                    continue;
                }
            };
            match frame.method() {
                Some((BASIC, CONSUME_OK)) => {
                    consumers.push((frame.channel, frame.payload[4..].to_vec()));
                }
                // The header follows.
                Some((BASIC, DELIVER)) => due = u64::MAX,
                _ => {}
            }
            match frame.kind {
                HEADER_FRAME => {
                    let size = frame.payload[4..12].try_into().unwrap();
                    due = u64::from_be_bytes(size);
                    frame.recount(self.counts);
                }
                BODY_FRAME => due = due.saturating_sub(frame.payload.len() as u64),
                _ => {}
            }
            frame.write(&mut to).await?;
        }
    }
}

struct Frame {
    kind: u8,
    channel: u16,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut OwnedReadHalf) -> io::Result<Self> {
        let kind = from.read_u8().await?;
        let channel = from.read_u16().await?;
        let mut payload = vec![0; from.read_u32().await? as usize];
        from.read_exact(&mut payload).await?;
        assert_eq!(
            from.read_u8().await?,
            FRAME_END,
            "the frame has an end mark"
        );
        Ok(Self {
            kind,
            channel,
            payload,
        })
    }

    async fn write(&self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut bytes = vec![self.kind];
        bytes.extend(self.channel.to_be_bytes());
        bytes.extend((self.payload.len() as u32).to_be_bytes());
        bytes.extend(&self.payload);
        bytes.push(FRAME_END);
        to.write_all(&bytes).await
    }

    /// Creates the `basic.cancel` of a consumer. The tag is prefixed with its length.
    fn cancel(channel: u16, tag: Vec<u8>) -> Self {
        let mut payload = [BASIC.to_be_bytes(), CANCEL.to_be_bytes()].concat();
        payload.extend(tag);
        // The broker expects no answer.
        payload.push(1);
        Self {
            kind: METHOD_FRAME,
            channel,
            payload,
        }
    }

    /// Returns the class and the method of a method frame.
    fn method(&self) -> Option<(u16, u16)> {
        let number = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (self.kind == METHOD_FRAME).then(|| (number(0), number(2)))
    }

    /// Renames and changes the count in a delivery's header. All names have the same length, so the
    /// sizes stay the same.
    fn recount(&mut self, counts: DeliveryCounts) {
        let length = DELIVERY_COUNT.len();
        let mut windows = self.payload.windows(length);
        let Some(at) = windows.position(|window| window == DELIVERY_COUNT) else {
            return;
        };
        let (name, more) = match counts {
            DeliveryCounts::Hidden => (b"x-hidden-as-well", 0),
            DeliveryCounts::Acquired { more } => (b"x-acquired-count", more),
        };
        self.payload[at..at + length].copy_from_slice(name);
        // The type of the value: `l`, a number of eight bytes.
        let value = at + length + 1;
        assert_eq!(self.payload[value - 1], b'l', "the broker counts in longs");
        let count: [u8; 8] = self.payload[value..value + 8].try_into().unwrap();
        let count = u64::from_be_bytes(count) + more;
        self.payload[value..value + 8].copy_from_slice(&count.to_be_bytes());
    }
}
