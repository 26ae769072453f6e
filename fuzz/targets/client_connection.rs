//! A hub's bytes to a client's whole connection: the gate, and behind it the protocol library with its tasks.

#![no_main]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use twincast_fuzz::amqp::{AMQP, SASL, bodies, frame};
use twincast_fuzz::mode;
use twincast_iothub::fuzzing::converse;

/// The hub hangs up when it has said everything.
const HANGS_UP: u8 = 1;
/// The frames stand instead of those that begin a session, not after them.
const FROM_THE_START: u8 = 2;

twincast_fuzz::bytes!(|input| {
    let (mode, rest) = mode(input);
    let mut stream = SASL.to_vec();
    // PLAIN and ANONYMOUS are offered, and what is chosen is good.
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
    for (channel, body) in bodies(rest) {
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
        tokio::join!(hub, converse(near));
    });
});
