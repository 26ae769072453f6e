//! A hub's bytes to a client's whole connection: the gate, and behind the gate the protocol library
//! with its tasks.

#![no_main]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use twincast_fuzz::amqp::{AMQP, SASL, frame, frame_bodies};
use twincast_fuzz::split_mode;
use twincast_iothub::fuzzing::run_client;

/// The hub closes the connection after sending everything.
const HANGS_UP: u8 = 1;
/// The input's frames replace the frames beginning a session, instead of following them.
const FROM_THE_START: u8 = 2;

twincast_fuzz::bytes!(|input| {
    let (mode, rest) = split_mode(input);
    let mut stream = SASL.to_vec();
    // The hub offers PLAIN and ANONYMOUS, and accepts the choice.
    stream.extend(frame(
        1,
        0,
        b"\0\x53\x40\xc0\x15\x01\xe0\x12\x02\xa3\x05PLAIN\x09ANONYMOUS",
    ));
    stream.extend(frame(1, 0, b"\0\x53\x44\xc0\x03\x01\x50\x00"));
    stream.extend(AMQP);
    if mode & FROM_THE_START == 0 {
        stream.extend(frame(0, 0, b"\0\x53\x10\xc0\x04\x01\xa1\x01h"));
        stream.extend(frame(
            0,
            0,
            b"\0\x53\x11\xc0\x0c\x04\x60\0\0\x43\x70\0\0\x08\0\x52\x40",
        ));
    }
    for (channel, body) in frame_bodies(rest) {
        stream.extend(frame(0, channel, body));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (near, mut far) = duplex(64 * 1024);
        let hub = async move {
            _ = far.write_all(&stream).await;
            if mode & HANGS_UP == 0 {
                _ = far.read_to_end(&mut Vec::new()).await;
            }
        };
        tokio::join!(hub, run_client(near));
    });
});
