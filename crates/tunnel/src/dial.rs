//! TCP connections, directly or through an HTTP proxy.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::proxy::{Proxy, SelectedProxy};

/// The longest head of a proxy's response, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024;
/// The longest part of a response kept for the error message.
const ANSWER_CHARS: usize = 100;

/// Why no connection was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name of the server, or of the proxy, has no address.
    #[error("failed to resolve {host}")]
    Dns {
        /// The name.
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The address of the server, or of the proxy, does not answer.
    #[error("failed to connect to {address}")]
    Tcp {
        /// Host and port.
        address: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The proxy refused to open a tunnel.
    #[error("proxy {proxy} refused a tunnel to {target}: {answer}")]
    Refused {
        /// Host and port of the proxy.
        proxy: String,
        /// Host and port of the server.
        target: String,
        /// The status line of the proxy's response.
        answer: String,
    },
    /// The environment names a proxy of an unsupported kind.
    #[error("proxy in the environment is a {scheme} proxy; only http:// proxies are supported")]
    Scheme {
        /// The scheme of the proxy's URL.
        scheme: String,
    },
}

/// Opens a TCP connection to `host` and `port` for TLS, through the proxy configured for the host,
/// if any. A proxy also resolves the server's name. Small writes are sent at once (`TCP_NODELAY`).
///
/// Has no time-out of its own. Cancel safe: dropping the future closes an unfinished connection.
///
/// # Errors
///
/// [`DialError`].
pub async fn connect(host: &str, port: u16, proxy: &Proxy) -> Result<TcpStream, DialError> {
    let chosen = proxy
        .for_target(host, port)
        .map_err(|scheme| DialError::Scheme { scheme })?;
    match chosen {
        None => dial(host, port).await,
        Some(proxy) => tunnel(&proxy, host, port).await,
    }
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let address = || format!("{host}:{port}");
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses = found.map_err(|source| DialError::Dns {
        host: host.to_owned(),
        source,
    })?;
    let mut last = None;
    for found in addresses {
        match TcpStream::connect(found).await {
            Ok(stream) => {
                // Upper layers already gather frames; delaying small writes here would only add
                // latency.
                _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(DialError::Tcp {
        address: address(),
        source: last.unwrap_or_else(|| io::Error::other("name has no address")),
    })
}

async fn tunnel(proxy: &SelectedProxy, host: &str, port: u16) -> Result<TcpStream, DialError> {
    let mut stream = dial(&proxy.host, proxy.port).await?;
    let at = format!("{}:{}", proxy.host, proxy.port);
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let target = format!("{host}:{port}");
    let failed = |source| DialError::Tcp {
        address: at.clone(),
        source,
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(failed)?;
    let mut answer = Vec::new();
    // Reads one byte at a time: bytes after the head belong to the server.
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < ANSWER_BYTES_MAX {
        answer.push(stream.read_u8().await.map_err(failed)?);
    }
    let line = answer
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let is_open = line
        .split(' ')
        .nth(1)
        .is_some_and(|status| status.len() == 3 && status.starts_with('2'));
    if is_open && answer.ends_with(b"\r\n\r\n") {
        return Ok(stream);
    }
    Err(DialError::Refused {
        proxy: at,
        target,
        answer: line.chars().take(ANSWER_CHARS).collect(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Starts a proxy with this answer for its connection; returns the port and the request
    /// received.
    async fn proxy(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let request = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (port, request)
    }

    #[tokio::test]
    async fn a_tunnel_begins_after_the_head_of_the_answer() {
        let (port, request) =
            proxy("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nAMQP").await;
        let given: Proxy = format!("http://ann:s@127.0.0.1:{port}").parse().unwrap();
        let mut stream = connect("hub.example", 5671, &given).await.unwrap();
        let mut first = [0; 4];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"AMQP");
        let request = request.await.unwrap();
        assert!(
            request.starts_with("CONNECT hub.example:5671 HTTP/1.1\r\nHost: hub.example:5671\r\n"),
            "{request}"
        );
        assert!(
            request.contains("\r\nProxy-Authorization: Basic YW5uOnM=\r\n"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn a_refusal_contains_the_target_and_the_answer() {
        for (answer, shown) in [
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 403 Forbidden"),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "SSH-2.0"),
        ] {
            let (port, _) = proxy(answer).await;
            let given: Proxy = format!("http://127.0.0.1:{port}").parse().unwrap();
            let error = connect("::1", 5671, &given).await.unwrap_err();
            let DialError::Refused { target, answer, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(target, "[::1]:5671");
            assert!(answer.contains(shown), "{answer}");
        }
    }
}
