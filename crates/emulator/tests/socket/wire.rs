//! Hand-made frames that no client library would send.

use anyhow::{Result, bail};
use bytes::BytesMut;
use fe2o3_amqp_types::messaging::{Data, Message};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use twincast_emulator::RunningHub;

use crate::client::dial;

/// A connection for raw bytes.
pub(crate) struct Wire {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
}

impl Wire {
    pub(crate) async fn dial(hub: &RunningHub) -> Result<Self> {
        Ok(Self {
            stream: dial(hub).await?,
            input: BytesMut::new(),
        })
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends a performative with a payload.
    pub(crate) async fn frame<T: Serialize>(
        &mut self,
        kind: u8,
        performative: &T,
        payload: &[u8],
    ) -> Result<()> {
        let body = serde_amqp::to_vec(performative)?;
        let size = u32::try_from(8 + body.len() + payload.len())?;
        let mut frame = size.to_be_bytes().to_vec();
        frame.extend([2, kind, 0, 0]);
        frame.extend(body);
        frame.extend(payload);
        self.bytes(&frame).await
    }

    async fn fill(&mut self, len: usize) -> Result<()> {
        while self.input.len() < len {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                bail!("the hub closed the connection");
            }
        }
        Ok(())
    }

    /// Receives eight bytes.
    pub(crate) async fn header(&mut self) -> Result<[u8; 8]> {
        self.fill(8).await?;
        Ok(self.input.split_to(8)[..].try_into()?)
    }

    /// Receives a frame. Returns the code of the performative (`None` for an empty frame) and the
    /// body.
    pub(crate) async fn receive(&mut self) -> Result<(Option<u8>, Vec<u8>)> {
        self.fill(4).await?;
        let size = u32::from_be_bytes(self.input[..4].try_into()?) as usize;
        self.fill(size).await?;
        let frame = self.input.split_to(size);
        Ok((frame.get(10).copied(), frame[8..].to_vec()))
    }

    /// Receives frames until a frame with this code.
    pub(crate) async fn receive_until(&mut self, code: u8) -> Result<Vec<u8>> {
        loop {
            let (found, body) = self.receive().await?;
            if found == Some(code) {
                return Ok(body);
            }
        }
    }
}

/// Encodes a message in the form for transfers.
pub(crate) fn encoded(message: Message<Data>) -> Vec<u8> {
    serde_amqp::to_vec(&fe2o3_amqp_types::messaging::message::__private::Serializable(message))
        .unwrap()
}
