//! A file server with range requests and interruptions.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The files of the server, and the recorded requests.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) files: HashMap<String, Vec<u8>>,
    pub(crate) etag: String,
    /// Cuts connections after this many bytes of a body, this many times.
    pub(crate) cut: Option<(usize, u32)>,
    /// Replaces a file at the next cut: path, content, and tag.
    pub(crate) swap: Option<(String, Vec<u8>, String)>,
    /// Stops sending after this many bytes, with the connection open.
    pub(crate) hold: Option<usize>,
    /// The requested ranges.
    pub(crate) ranges: Vec<Option<String>>,
}

#[derive(Clone)]
pub(crate) struct FileServer {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<Files>>,
}

impl FileServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        server.state.lock().unwrap().etag = "\"one\"".to_owned();
        let state = Arc::clone(&server.state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    _ = serve(stream, &state).await;
                });
            }
        });
        server
    }

    /// Adds a file and returns the URL.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> String {
        self.state
            .lock()
            .unwrap()
            .files
            .insert(format!("/{name}"), content.to_vec());
        format!("http://{}/{name}", self.address)
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Files)) {
        change(&mut self.state.lock().unwrap());
    }

    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().ranges.clone()
    }
}

async fn serve(mut stream: TcpStream, state: &Mutex<Files>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let (answer, body) = {
        let mut state = state.lock().unwrap();
        let range = header("range");
        state.ranges.push(range.clone());
        let is_same = header("if-range").is_none_or(|tag| tag == state.etag);
        let from = range.filter(|_| is_same).and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        });
        match state.files.get(&path) {
            None => (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
                Vec::new(),
            ),
            Some(file) => {
                let from: usize = from.unwrap_or(0);
                let (status, range) = match from {
                    0 => ("200 OK", String::new()),
                    from => (
                        "206 Partial Content",
                        format!(
                            "Content-Range: bytes {from}-{}/{}\r\n",
                            file.len() - 1,
                            file.len()
                        ),
                    ),
                };
                let (length, etag) = (file.len() - from, &state.etag);
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: {etag}\r\n{range}Connection: close\r\n\r\n"
                );
                (head, file[from..].to_vec())
            }
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    let (sent, is_held) = {
        let mut state = state.lock().unwrap();
        let state = &mut *state;
        match (&mut state.cut, state.hold) {
            (Some((after, times)), _) if *times > 0 => {
                *times -= 1;
                let sent = (*after).min(body.len());
                if let Some((path, content, etag)) = state.swap.take() {
                    state.files.insert(path, content);
                    state.etag = etag;
                }
                (sent, false)
            }
            (_, Some(after)) => (after.min(body.len()), true),
            _ => (body.len(), false),
        }
    };
    stream.write_all(&body[..sent]).await?;
    stream.flush().await?;
    if is_held {
        // Wait until the client closes the connection.
        _ = stream.read_u8().await;
    }
    Ok(())
}
