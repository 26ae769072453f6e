//! FTP (RFC 959) with `REST` (RFC 3659), for servers without HTTP. The SHA-256 verifies the
//! content.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use percent_encoding::percent_decode_str;
use suppaftp::tokio::{AsyncFtpStream, AsyncNoTlsStream, TransferStream};
use suppaftp::types::FileType;
use suppaftp::{FtpError, Status};
use tokio::io::AsyncReadExt as _;
use url::Url;

use super::{Failed, wrong_size};
use crate::report::Reason;

/// The time limit of the server's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A transfer from a server.
pub(super) struct Transfer {
    data: TransferStream<AsyncNoTlsStream>,
    /// The control connection. The server ends the transfer when this connection closes.
    _control: AsyncFtpStream,
}

impl Transfer {
    /// Logs in, checks the size, and requests the bytes after the first `offset` bytes.
    pub(super) async fn begin(url: &Url, size: u64, offset: u64) -> Result<Self, Failed> {
        match tokio::time::timeout(ANSWER_TIMEOUT, Self::ask(url, size, offset)).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(classify(&error)),
            Err(_) => Err(Failed::Transient(format!(
                "the server does not answer within {ANSWER_TIMEOUT:?}"
            ))),
        }
    }

    async fn ask(url: &Url, size: u64, offset: u64) -> Result<Result<Self, Failed>, FtpError> {
        let host = url.host_str().unwrap_or_default();
        let text = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let mut control = AsyncFtpStream::connect((host, url.port().unwrap_or(21))).await?;
        let (user, password) = match url.username() {
            "" => ("anonymous".to_owned(), "twincast".to_owned()),
            user => (text(user), text(url.password().unwrap_or_default())),
        };
        control.login(user, password).await?;
        control.transfer_type(FileType::Binary).await?;
        let path = text(url.path());
        if let Ok(found) = control.size(&path).await
            && found as u64 != size
        {
            return Ok(Err(Failed::Permanent(wrong_size(found as u64, size))));
        }
        if let Ok(offset) = usize::try_from(offset)
            && offset > 0
        {
            control.resume_transfer(offset).await?;
        }
        let data = control.retr_as_stream(&path).await?;
        Ok(Ok(Self {
            data,
            _control: control,
        }))
    }

    /// Returns the next bytes, or none at the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        let mut buffer = BytesMut::with_capacity(1 << 16);
        match self.data.read_buf(&mut buffer).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(buffer.freeze())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Classifies an error. Replies of 500 and more are permanent (RFC 959 §4.2), except 503 (bad
/// sequence).
fn classify(error: &FtpError) -> Failed {
    match error {
        FtpError::UnexpectedResponse(response)
            if response.status.code() >= 500 && response.status != Status::BadSequence =>
        {
            Failed::Permanent(Reason::new(
                "download",
                format!("the FTP server refuses the transfer: {error}"),
            ))
        }
        _ => Failed::Transient(error.to_string()),
    }
}
