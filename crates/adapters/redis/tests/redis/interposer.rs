//! A proxy that refuses commands of Redis, as managed services do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Commands to refuse, and the answer to a refused command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusals {
    /// Commands, or a command and its first argument, in capitals.
    pub(crate) commands: &'static [&'static str],
    /// Makes the answer to a refused command.
    pub(crate) answer: fn(&str) -> String,
}

/// Starts a proxy in front of a server, on a free port. The proxy ends with the runtime of the
/// test.
pub(crate) async fn start(server: SocketAddr, refusals: Refusals) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // The connection ends with either side, without an error of interest.
            tokio::spawn(serve(client, server, refusals));
        }
    });
    address
}

/// Starts a server that answers a command with `answer`, and every other command with OK.
pub(crate) async fn answering(command: &'static str, answer: String) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Ok(request) = next(&mut client, &mut held).await {
                    let is_it = words(&request)[0] == command;
                    let answer = if is_it { &answer } else { "+OK\r\n" };
                    client.write_all(answer.as_bytes()).await?;
                }
                io::Result::Ok(())
            });
        }
    });
    address
}

/// Passes on a single command and the answer at a time, so that answers keep their order.
async fn serve(mut client: TcpStream, server: SocketAddr, refusals: Refusals) -> io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    loop {
        let command = next(&mut client, &mut requests).await?;
        let words = words(&command);
        let name = words[..words.len().min(2)].join(" ");
        let mut refused = refusals.commands.iter();
        if refused.any(|refused| words[0] == *refused || name == *refused) {
            client
                .write_all((refusals.answer)(&name).as_bytes())
                .await?;
            continue;
        }
        server.write_all(&command).await?;
        client
            .write_all(&next(&mut server, &mut replies).await?)
            .await?;
    }
}

/// Returns the next whole value; `held` keeps further bytes.
async fn next(stream: &mut TcpStream, held: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(length) = length(held) {
            return Ok(held.drain(..length).collect());
        }
        if stream.read_buf(held).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Returns the length of the first value in `bytes`, if the value is complete.
fn length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || {
        std::str::from_utf8(&bytes[1..end - 2])
            .ok()?
            .parse::<i64>()
            .ok()
    };
    match bytes[0] {
        // -1 is nil.
        b'$' => {
            let all = number()?
                .try_into()
                .map_or(end, |data: usize| end + data + 2);
            (bytes.len() >= all).then_some(all)
        }
        b'*' => (0..number()?).try_fold(end, |at, _| Some(at + length(&bytes[at..])?)),
        _ => Some(end),
    }
}

/// Returns the parts of a command, in capitals.
fn words(command: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(command).to_uppercase();
    let parts = text.split("\r\n").skip(2).step_by(2);
    parts.map(str::to_owned).collect()
}

#[test]
fn resp_values_are_delimited() {
    let command = b"*2\r\n$6\r\nconfig\r\n$3\r\nget\r\n";
    assert_eq!(words(command)[..2], ["CONFIG", "GET"]);
    for value in [
        &command[..],
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":-1\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"$4\r\n\r\n\r\n\r\n",
        b"*3\r\n:1\r\n*1\r\n$-1\r\n$0\r\n\r\n",
    ] {
        assert_eq!(length(value), Some(value.len()), "{value:?}");
        let more = [value, b"+"].concat();
        assert_eq!(length(&more), Some(value.len()), "{value:?}");
        for cut in 0..value.len() {
            assert_eq!(length(&value[..cut]), None, "{value:?} {cut}");
        }
    }
}
