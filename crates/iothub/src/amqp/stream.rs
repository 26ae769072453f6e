//! The byte stream under an AMQP connection: TLS with repaired frames, gathered writes and a kill
//! switch.
//!
//! *Gathered writes.* The protocol library flushes after every frame, which would make every
//! transfer a TLS record and a system call of its own. Here a flush is only noted. The bytes leave
//! when the connection's task has no more to write (it polls for reading twice with no write in
//! between), or when [`GATHER`] bytes have accumulated. This is safe because the library always
//! reads after writing: it never waits without polling the read side.
//!
//! *Kill switch.* The library's own ways to end a connection wait for the peer, some of them while
//! burning a core. [`KillSwitch::now`] ends the stream in both directions, so the library's tasks
//! stop at once, whatever the peer does.
//!
//! *Automatic end.* The stream ends in both directions when the peer has closed its side, failed,
//! or sent bytes other than AMQP; when the library has ended the session or the connection and the
//! peer does not follow within [`CLOSE_TIMEOUT`]; and when the peer accepts no bytes for so long
//! that it counts as silent. The library would wait without a bound in each of these cases.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::filter::FrameFilter;
use super::frames::Malformed;

/// Time allowed for an orderly close before the connection is cut.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes waiting to be written. Two TLS records; more would only add latency.
const GATHER: usize = 32 * 1024;

/// Bytes read from TLS at once: one record.
const READ: usize = 16 * 1024;

/// Time allowed for the library to report why a connection has ended.
const REPORT_GRACE: Duration = Duration::from_millis(250);

/// Ends a stream from outside, and signals the stream's end.
#[derive(Default)]
pub(crate) struct KillSwitch {
    killed: OnceLock<Instant>,
    reader: AtomicWaker,
    ended: Notify,
    fault: OnceLock<String>,
}

impl KillSwitch {
    /// Ends the stream: reads return end-of-file and writes fail from now on.
    pub(crate) fn now(&self) {
        self.killed.get_or_init(Instant::now);
        self.reader.wake();
        self.ended.notify_waiters();
    }

    /// Returns [`REPORT_GRACE`] after the end of the stream. In the meantime the library may report
    /// a cause; some of its calls never return after the end.
    ///
    /// Cancel safe.
    pub(crate) async fn ended(&self) {
        let at = loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            match self.killed.get() {
                Some(at) => break *at,
                None => ended.await,
            }
        };
        sleep_until(at + REPORT_GRACE).await;
    }

    /// The peer's fault, if the stream ended because of one. The library does not pass the fault
    /// on.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Ends the stream and records the fault.
    fn fail(&self, fault: &dyn fmt::Display) {
        _ = self.fault.set(fault.to_string());
        self.now();
    }

    fn is_killed(&self) -> bool {
        self.killed.get().is_some()
    }
}

/// See the module's documentation.
pub(crate) struct HubStream<S> {
    inner: S,
    kill: Arc<KillSwitch>,
    filter: FrameFilter,
    scratch: Box<[u8]>,
    /// Repaired bytes for the library, from `ready_from` on.
    ready: Vec<u8>,
    ready_from: usize,
    /// The malformed input after the bytes in `ready`.
    malformed: Option<Malformed>,
    /// Unwritten bytes from the library, from `gathered_from` on.
    gathered: Vec<u8>,
    gathered_from: usize,
    /// Set by a write, cleared by a poll of the read side.
    wrote: bool,
    /// The inner stream holds bytes not yet flushed.
    unflushed: bool,
    /// Longest time without a byte accepted by the peer.
    write_timeout: Duration,
    /// Ends the stream: set while the peer accepts no bytes, and during an orderly close.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> HubStream<S> {
    /// Wraps `inner` into a stream that ends when the peer accepts no bytes for `write_timeout`.
    pub(crate) fn new(inner: S, write_timeout: Duration) -> (Self, Arc<KillSwitch>) {
        let kill = Arc::new(KillSwitch::default());
        let stream = Self {
            inner,
            kill: Arc::clone(&kill),
            filter: FrameFilter::default(),
            scratch: vec![0; READ].into_boxed_slice(),
            ready: Vec::with_capacity(READ),
            ready_from: 0,
            malformed: None,
            gathered: Vec::with_capacity(GATHER),
            gathered_from: 0,
            wrote: false,
            unflushed: false,
            write_timeout,
            deadline: None,
        };
        (stream, kill)
    }

    /// Ends the stream if the deadline has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) {
        let is_over = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(cx).is_ready();
        if self.deadline.as_mut().is_some_and(is_over) {
            self.deadline = None;
            self.kill
                .fail(&"hub did not accept data, or did not answer the close, in time");
        }
    }

    /// Writes and flushes the gathered bytes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_drain(cx);
        if sent.is_ready() {
            if !self.filter.has_ended() {
                self.deadline = None;
            }
            return sent;
        }
        let write_timeout = self.write_timeout;
        self.deadline
            .get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        self.poll_deadline(cx);
        match self.kill.is_killed() {
            true => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            false => Poll::Pending,
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gathered_from < self.gathered.len() {
            let rest = &self.gathered[self.gathered_from..];
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered_from += written;
            self.unflushed = true;
            if !self.filter.has_ended() {
                self.deadline = None;
            }
        }
        self.gathered.clear();
        self.gathered_from = 0;
        if self.unflushed {
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends gathered bytes if the library has no more to write for now.
    fn send_when_idle(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.gathered.is_empty() && !self.unflushed {
            return Ok(());
        }
        if std::mem::take(&mut self.wrote) {
            // The library may be about to write more. Poll again after the library's turn.
            cx.waker().wake_by_ref();
            return Ok(());
        }
        match self.poll_send(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for HubStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.kill.reader.register(cx.waker());
        this.poll_deadline(cx);
        if this.kill.is_killed() {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = this.send_when_idle(cx) {
            this.kill.now();
            return Poll::Ready(Err(error));
        }
        loop {
            let waiting = &this.ready[this.ready_from..];
            if !waiting.is_empty() {
                let count = waiting.len().min(buf.remaining());
                buf.put_slice(&waiting[..count]);
                this.ready_from += count;
                return Poll::Ready(Ok(()));
            }
            if let Some(malformed) = this.malformed.take() {
                this.kill.fail(&malformed);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, malformed)));
            }
            this.ready.clear();
            this.ready_from = 0;
            let mut scratch = ReadBuf::new(&mut this.scratch);
            let read = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut scratch));
            if read.is_err() || scratch.filled().is_empty() {
                this.kill.now();
                return Poll::Ready(read);
            }
            let before = this.filter.repaired_flows();
            // Bytes before a malformed frame are still good.
            let repaired = this.filter.incoming(scratch.filled(), &mut this.ready);
            this.malformed = repaired.err();
            if before == 0 && this.filter.repaired_flows() > 0 {
                tracing::debug!("hub sends flow frames without next-incoming-id; repairing them");
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HubStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.kill.is_killed() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.gathered.len() >= GATHER {
            ready!(this.poll_send(cx))?;
        }
        this.gathered.extend_from_slice(buf);
        let had_ended = this.filter.has_ended();
        this.filter.outgoing(buf);
        if this.filter.has_ended() && !had_ended {
            this.deadline = Some(Box::pin(sleep(CLOSE_TIMEOUT)));
        }
        this.wrote = true;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.gathered.len() >= GATHER {
            return this.poll_send(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.kill.is_killed() {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<S> Drop for HubStream<S> {
    fn drop(&mut self) {
        self.kill.now();
    }
}

impl<S> fmt::Debug for HubStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubStream")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn writes_are_gathered_and_leave_when_the_reader_is_idle() {
        let (near, mut far) = duplex(1 << 20);
        let (mut stream, _kill) = HubStream::new(near, WRITE_TIMEOUT);
        stream.write_all(b"AMQP\x00\x01\x00\x00").await.unwrap();
        stream.flush().await.unwrap();
        let mut buffer = [0; 8];
        let early = tokio::time::timeout(Duration::from_secs(1), far.read_exact(&mut buffer)).await;
        assert!(early.is_err(), "bytes left before the reader was polled");
        let reader = tokio::spawn(async move { stream.read_u8().await });
        far.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"AMQP\x00\x01\x00\x00");
        drop(far);
        assert!(reader.await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_buffer_is_written_without_a_reader() {
        let (near, mut far) = duplex(1 << 20);
        let (mut stream, _kill) = HubStream::new(near, WRITE_TIMEOUT);
        let mut frame = vec![0; GATHER];
        frame[..8].copy_from_slice(&[0, 0, 0x80, 0, 2, 1, 0, 0]);
        stream.write_all(&frame).await.unwrap();
        stream.flush().await.unwrap();
        far.read_exact(&mut vec![0; GATHER]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_stream_ends_in_both_directions() {
        let (near, _far) = duplex(64);
        let (mut stream, kill) = HubStream::new(near, WRITE_TIMEOUT);
        let waiting = tokio::spawn(async move {
            let end = stream.read(&mut [0; 8]).await;
            (end.unwrap(), stream.write(b"x").await.is_err())
        });
        tokio::task::yield_now().await;
        kill.now();
        assert_eq!(waiting.await.unwrap(), (0, true));
    }

    /// The hub announces an idle time-out of 90 s; the test counts the frames of the ten minutes
    /// after.
    #[tokio::test(start_paused = true)]
    async fn empty_frames_arrive_within_half_the_peers_idle_time_out() {
        let (near, mut far) = duplex(1 << 16);
        let (stream, _kill) = HubStream::new(near, WRITE_TIMEOUT);
        let client = tokio::spawn(async move {
            let builder = fe2o3_amqp::Connection::builder()
                .container_id("c")
                .scheme("amqp");
            let connection = builder.open_with_stream(stream).await.unwrap();
            std::future::pending::<()>().await;
            drop(connection);
        });
        let mut header = [0; 8];
        far.read_exact(&mut header).await.unwrap();
        far.write_all(&header).await.unwrap();
        let mut open = vec![0, 0, 0, 0, 2, 0, 0, 0, 0x00, 0x53, 0x10, 0xc0, 14, 5];
        open.extend([0xa1, 1, b'h', 0x40, 0x70, 0, 1, 0, 0, 0x40, 0x70]);
        open.extend(90_000_u32.to_be_bytes());
        open[12] = u8::try_from(open.len() - 13).unwrap();
        open[3] = u8::try_from(open.len()).unwrap();
        far.write_all(&open).await.unwrap();
        let start = tokio::time::Instant::now();
        let (mut last, mut frames) = (start, 0);
        while start.elapsed() < Duration::from_secs(600) {
            let size = far.read_u32().await.unwrap() as usize;
            far.read_exact(&mut vec![0; size - 4]).await.unwrap();
            assert!(
                last.elapsed() < Duration::from_secs(45),
                "{:?}",
                last.elapsed()
            );
            last = tokio::time::Instant::now();
            frames += 1;
        }
        assert!((13..=25).contains(&frames), "{frames}");
        client.abort();
    }

    /// A hub opens and then stays silent: the client's own idle time-out ends the connection.
    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_disconnected_after_the_idle_time_out() {
        let (near, mut far) = duplex(1 << 16);
        let (stream, _kill) = HubStream::new(near, WRITE_TIMEOUT);
        let client = tokio::spawn(async move {
            let builder = fe2o3_amqp::Connection::builder()
                .container_id("c")
                .scheme("amqp");
            let builder = builder.idle_time_out(5_000_u32);
            let mut connection = builder.open_with_stream(stream).await.unwrap();
            connection.on_close().await
        });
        let mut header = [0; 8];
        far.read_exact(&mut header).await.unwrap();
        far.write_all(&header).await.unwrap();
        let open = [
            0, 0, 0, 17, 2, 0, 0, 0, 0x00, 0x53, 0x10, 0xc0, 4, 1, 0xa1, 1, b'h',
        ];
        far.write_all(&open).await.unwrap();
        let start = tokio::time::Instant::now();
        let closed = tokio::time::timeout(Duration::from_secs(60), client).await;
        assert!(closed.expect("an end in time").unwrap().is_err());
        assert!(
            start.elapsed() <= Duration::from_secs(11),
            "{:?}",
            start.elapsed()
        );
    }
}
