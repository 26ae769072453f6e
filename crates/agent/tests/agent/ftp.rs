//! An FTP server with a single file. The first transfer is cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct FtpServer {
    pub(crate) address: SocketAddr,
    /// The offsets of resumed transfers.
    pub(crate) rests: Arc<Mutex<Vec<usize>>>,
}

impl FtpServer {
    pub(crate) async fn start(file: Vec<u8>, cut: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            rests: Arc::default(),
        };
        let (file, rests, cut) = (
            Arc::new(file),
            Arc::clone(&server.rests),
            Arc::new(Mutex::new(Some(cut))),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (file, rests, cut) = (Arc::clone(&file), Arc::clone(&rests), Arc::clone(&cut));
                tokio::spawn(async move {
                    _ = serve(stream, &file, &rests, &cut).await;
                });
            }
        });
        server
    }
}

async fn serve(
    stream: TcpStream,
    file: &[u8],
    rests: &Mutex<Vec<usize>>,
    cut: &Mutex<Option<usize>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut rest, mut data) = (0, None);
    stream.write_all(b"220 ready\r\n").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let (command, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let answer = match command {
            "USER" => "331 password".to_owned(),
            "PASS" => "230 in".to_owned(),
            "TYPE" => "200 binary".to_owned(),
            "SIZE" => format!("213 {}", file.len()),
            "REST" => {
                rest = argument.parse().unwrap();
                rests.lock().unwrap().push(rest);
                "350 go on".to_owned()
            }
            "PASV" => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let port = listener.local_addr()?.port();
                data = Some(listener);
                format!(
                    "227 Entering Passive Mode (127,0,0,1,{},{})",
                    port >> 8,
                    port & 255
                )
            }
            "RETR" => {
                stream.write_all(b"150 here it comes\r\n").await?;
                let (mut to, _) = data.take().unwrap().accept().await?;
                let end = cut.lock().unwrap().take().unwrap_or(file.len());
                to.write_all(&file[rest..end]).await?;
                to.shutdown().await?;
                rest = 0;
                "226 done".to_owned()
            }
            _ => "502 no".to_owned(),
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
