//! The origins of secrets.

use std::path::PathBuf;

use crate::file::{FileError, read_text};
use crate::secret::Secret;

/// The origin of a secret.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// The secret in the configuration.
    Fixed(Secret),
    /// A file with the secret. The file may be replaced at any time.
    File {
        /// The name of the setting with the file's path, e.g. `redis.url_file`.
        setting: String,
        /// The file.
        path: PathBuf,
    },
}

/// Why a secret is not available.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file was not read.
    #[error("{setting} is not available")]
    File {
        /// The name of the setting with the file's path.
        setting: String,
        /// The error in reading the file.
        source: FileError,
    },
    /// The file is empty, perhaps only for a moment while being replaced.
    #[error("{setting} is not available: {} is empty", path.display())]
    Empty {
        /// The name of the setting with the file's path.
        setting: String,
        /// The file.
        path: PathBuf,
    },
}

impl SecretSource {
    /// A description of the secret's origin.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Fixed(_) => "the configuration".to_owned(),
            Self::File { setting, path } => format!("{setting}, file {}", path.display()),
        }
    }

    /// Returns the current secret, without surrounding white space. Blocks while reading the file,
    /// at each call anew.
    ///
    /// # Errors
    /// The file cannot be read, or is empty.
    ///
    /// # Example
    /// ```
    /// use twincast_secret::SecretSource;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("hub-key");
    /// std::fs::write(&path, "first\n")?;
    /// let setting = "hubs.eu.key_file".to_owned();
    /// let source = SecretSource::File { setting, path: path.clone() };
    /// assert_eq!(source.read()?.expose(), "first");
    /// // A platform rotates the secret.
    /// std::fs::write(&path, "second\n")?;
    /// let secret = source.read()?;
    /// assert_eq!(secret.expose(), "second");
    /// assert_eq!(format!("{secret:?}"), "[redacted]");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(&self) -> Result<Secret, SourceError> {
        match self {
            Self::Fixed(secret) => Ok(Secret::new(secret.expose().trim())),
            Self::File { setting, path } => {
                let text = read_text(path).map_err(|source| SourceError::File {
                    setting: setting.clone(),
                    source,
                })?;
                // Wraps the whole text, so that its memory is overwritten, too.
                let text = Secret::new(text);
                match text.expose().trim() {
                    "" => Err(SourceError::Empty {
                        setting: setting.clone(),
                        path: path.clone(),
                    }),
                    secret => Ok(Secret::new(secret)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_call_reads_the_file_also_after_a_folder_swap() {
        // Like the kubelet's mounted secrets: the file is a link into a folder that is itself a
        // link.
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (version, secret) in [("v1", " first\n"), ("v2", "second\n")] {
            std::fs::create_dir(path(version)).unwrap();
            std::fs::write(path(version).join("key"), secret).unwrap();
        }
        symlink("v1", path("..data")).unwrap();
        symlink("..data/key", path("key")).unwrap();
        let source = SecretSource::File {
            setting: "hubs.eu.key_file".to_owned(),
            path: path("key"),
        };
        assert_eq!(source.read().unwrap().expose(), "first");
        symlink("v2", path("..new")).unwrap();
        std::fs::rename(path("..new"), path("..data")).unwrap();
        assert_eq!(source.read().unwrap().expose(), "second");
        std::fs::write(path("v2").join("key"), "\n").unwrap();
        let error = source.read().unwrap_err().to_string();
        assert!(
            error.contains("hubs.eu.key_file") && error.contains("empty"),
            "{error}"
        );
        std::fs::remove_file(path("..data")).unwrap();
        assert!(matches!(source.read(), Err(SourceError::File { .. })));
    }

    #[test]
    fn no_format_shows_a_fixed_secret() {
        let source = SecretSource::Fixed(Secret::new(" hunter2 "));
        assert!(!format!("{source:?}").contains("hunter2"));
        assert_eq!(source.read().unwrap().expose(), "hunter2");
    }
}
