//! Reads files of text: specs, settings, secrets, certificates.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use twincast_core::spec::MAX_DOCUMENT_BYTES;
use twincast_secret::text_of;

/// Reads the text of a file, or of standard input for `-`. `what` names the file in messages: `the
/// rollout's spec`.
///
/// # Errors
/// The file cannot be read, is not UTF-8, or exceeds [`MAX_DOCUMENT_BYTES`].
pub(crate) fn read(what: &str, path: &Path) -> anyhow::Result<String> {
    let doing = || format!("cannot read {what} {}", path.display());
    let mut bytes = Vec::new();
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.with_context(doing)?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        bail!(
            "{}: the file is larger than {MAX_DOCUMENT_BYTES} bytes",
            doing()
        );
    }
    let text = text_of(&bytes).with_context(doing)?;
    Ok(text.to_owned())
}
