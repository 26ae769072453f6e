//! Twincast's own tokens, and the tokens file.
//!
//! A token is 32 random bytes, so a plain SHA-256 reveals nothing about the token. Only the hash is
//! kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use twincast_core::error::describe;
use twincast_core::spec::{MAX_ACTOR_CHARS, length_problem};
use twincast_secret::{NotText, text_of};

use super::caller::{Caller, Role};

/// The interval between two readings of the file. The whole file is read each time: a mounted
/// secret changes by a link to another folder, so the times of files show nothing.
const REREAD_INTERVAL: Duration = Duration::from_secs(5);
/// The largest tokens file, in bytes: thousands of tokens.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A tokens file, and the last valid content.
#[derive(Debug)]
pub struct TokensFile {
    path: PathBuf,
    tokens: RwLock<Tokens>,
}

/// Why a tokens file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensFileError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] std::io::Error),
    /// The file is larger than any list of tokens.
    #[error("the file is larger than 1 MiB")]
    TooLarge,
    /// The file is in another encoding.
    #[error(transparent)]
    NotText(#[from] NotText),
    /// A line of the file cannot be used.
    #[error(transparent)]
    Bad(#[from] BadTokens),
}

impl TokensFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokensFileError`].
    pub async fn open(path: PathBuf) -> Result<Self, TokensFileError> {
        let tokens = RwLock::new(read(&path).await?);
        Ok(Self { path, tokens })
    }

    /// Returns whether the file has no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.0.is_empty()
    }

    /// Returns the bearer of a token.
    pub(super) fn bearer(&self, token: &str) -> Option<Caller> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.bearer(token).cloned()
    }

    /// Reads the file regularly, until dropped. While the file is invalid, the last valid content
    /// applies; an empty file revokes all tokens.
    pub(super) async fn follow(&self) {
        let mut last_error = None;
        loop {
            tokio::time::sleep(REREAD_INTERVAL).await;
            let file = self.path.display();
            match read(&self.path).await {
                Ok(tokens) => {
                    last_error = None;
                    self.replace(tokens);
                }
                Err(error) => {
                    let error = describe(&error);
                    if last_error.as_ref() != Some(&error) {
                        tracing::error!(%file, error, "cannot use the tokens file, keeping the previous tokens");
                        last_error = Some(error);
                    }
                }
            }
        }
    }

    fn replace(&self, tokens: Tokens) {
        let mut held = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        if *held != tokens {
            let file = self.path.display();
            tracing::info!(%file, tokens = tokens.0.len(), "the tokens file has changed");
            *held = tokens;
        }
    }
}

async fn read(path: &Path) -> Result<Tokens, TokensFileError> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await;
    let mut file = file
        .map_err(TokensFileError::Read)?
        .take(MAX_FILE_BYTES + 1);
    let size = file.read_to_end(&mut bytes).await;
    if size.map_err(TokensFileError::Read)? as u64 > MAX_FILE_BYTES {
        return Err(TokensFileError::TooLarge);
    }
    Ok(Tokens::read(text_of(&bytes)?)?)
}

/// Tokens by their hashes.
#[derive(Debug, Default, PartialEq)]
struct Tokens(HashMap<[u8; 32], Caller>);

/// An unusable line of a tokens file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadTokens {
    line: usize,
    problem: String,
}

impl Tokens {
    /// Parses a tokens file: one token per line, as `NAME ROLE SHA256`. Empty lines and lines
    /// beginning with `#` are skipped. A name may have several tokens of one role, so that a new
    /// token and the token to be replaced overlap.
    ///
    /// # Errors
    /// The first line with another form, a repeated token, or a second role for a name.
    fn read(text: &str) -> Result<Self, BadTokens> {
        let mut tokens = HashMap::new();
        let mut roles = HashMap::new();
        for (line, row) in (1..).zip(text.lines()) {
            let row = row.trim();
            if row.is_empty() || row.starts_with('#') {
                continue;
            }
            let bad = |problem: String| BadTokens { line, problem };
            let words: Vec<_> = row.split_whitespace().collect();
            let [name, role, hash] = words[..] else {
                return Err(bad("must be NAME ROLE SHA256".to_owned()));
            };
            let role = Role::named(role).ok_or_else(|| {
                bad(format!(
                    "{role:?} is not a role; allowed: viewer, operator, approver, admin"
                ))
            })?;
            let mut known = [0; 32];
            hex::decode_to_slice(hash, &mut known)
                .map_err(|_| bad("the hash must be 64 hexadecimal digits".to_owned()))?;
            if let Some(problem) = length_problem(name, MAX_ACTOR_CHARS) {
                return Err(bad(format!("the name {problem}")));
            }
            if let Some(other) = roles.insert(name, role).filter(|other| *other != role) {
                let (role, other) = (role.as_str(), other.as_str());
                return Err(bad(format!(
                    "{name} already has a token with the role {other}, and cannot have the role \
                     {role} as well"
                )));
            }
            let caller = Caller::new(name.to_owned(), role);
            if tokens.insert(known, caller).is_some() {
                return Err(bad("duplicate token".to_owned()));
            }
        }
        Ok(Self(tokens))
    }

    /// Returns the bearer of a token. The lookup compares hashes, so its duration reveals nothing.
    fn bearer(&self, token: &str) -> Option<&Caller> {
        self.0.get(&hash(token))
    }
}

/// Creates a new token and its line in a tokens file.
#[must_use]
pub fn new_token(name: &str, role: Role) -> (String, String) {
    let random: [u8; 32] = rand::random();
    let token = format!("twc_{}", hex::encode(random));
    let line = format!("{name} {} {}", role.as_str(), hex::encode(hash(&token)));
    (token, line)
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_new_token_identifies_the_bearer() {
        let (token, line) = new_token("ann", Role::Approver);
        let tokens = Tokens::read(&format!("# people\n\n{line}\n")).unwrap();
        let caller = tokens.bearer(&token).unwrap();
        assert_eq!((caller.name(), caller.role()), ("ann", Role::Approver));
        assert_eq!(tokens.bearer("twc_other"), None);
        assert!(!line.contains(&token));
        assert_ne!(new_token("ann", Role::Approver).0, token);
    }

    #[test]
    fn old_and_new_token_of_a_bearer_are_both_valid() {
        let (old, old_line) = new_token("ann", Role::Operator);
        let (new, new_line) = new_token("ann", Role::Operator);
        let tokens = Tokens::read(&format!("{old_line}\n{new_line}")).unwrap();
        let ann = Caller::new("ann".to_owned(), Role::Operator);
        assert_eq!(tokens.bearer(&old), Some(&ann));
        assert_eq!(tokens.bearer(&new), Some(&ann));
    }

    #[test]
    fn errors_are_reported_with_the_line_number() {
        let hash = "0".repeat(64);
        let table = [
            ("ann viewer".to_owned(), "line 1: must be NAME ROLE SHA256"),
            (
                format!("\nann chief {hash}"),
                "line 2: \"chief\" is not a role",
            ),
            ("ann viewer xyz".to_owned(), "64 hexadecimal digits"),
            (
                format!("ann viewer {hash}\nann admin {}", "1".repeat(64)),
                "line 2: ann already has a token with the role viewer, and cannot have the role \
                 admin as well",
            ),
            (
                format!("ann viewer {hash}\nbob admin {hash}"),
                "line 2: duplicate token",
            ),
        ];
        let long = format!("{} viewer {hash}", "x".repeat(129));
        let table = table
            .into_iter()
            .chain([(long, "the name has 129 characters")]);
        for (text, says) in table {
            let error = Tokens::read(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_reread_and_an_invalid_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let ((ann, ann_line), (bob, bob_line)) = (
            new_token("ann", Role::Admin),
            new_token("bob", Role::Viewer),
        );
        std::fs::write(&path, &ann_line).unwrap();
        let file = TokensFile::open(path.clone()).await.unwrap();
        let known = || [&ann, &bob].map(|token| file.bearer(token).is_some());
        let steps = async {
            assert_eq!(known(), [true, false]);
            let soon = || tokio::time::sleep(2 * REREAD_INTERVAL);
            // Another thread reads files, and the paused time does not wait for that thread.
            let become_known = async |expected: [bool; 2]| {
                for _ in 0..1_000 {
                    if known() == expected {
                        break;
                    }
                    soon().await;
                }
                assert_eq!(known(), expected);
            };
            // Replaces the file in one step, so that no reader sees a part.
            let put = |text: &str| {
                let whole = folder.path().join("whole");
                std::fs::write(&whole, text).unwrap();
                std::fs::rename(&whole, &path).unwrap();
            };
            // With a byte order mark, as some editors write files.
            put(&format!("\u{feff}{ann_line}\r\n{bob_line}"));
            become_known([true, true]).await;
            for bad in ["ann chief", "\u{1}\u{2}", &"#".repeat(1024 * 1024 + 1)] {
                put(bad);
                soon().await;
                assert_eq!(known(), [true, true]);
            }
            std::fs::remove_file(&path).unwrap();
            soon().await;
            assert_eq!(known(), [true, true]);
            // As a mounted secret changes.
            let next = folder.path().join("next");
            std::fs::write(&next, &bob_line).unwrap();
            std::os::unix::fs::symlink(&next, &path).unwrap();
            become_known([false, true]).await;
            std::fs::write(&next, "# nobody\n").unwrap();
            become_known([false, false]).await;
            assert!(file.is_empty());
        };
        tokio::select! {
            () = file.follow() => unreachable!("follow never returns"),
            () = steps => {}
        }
    }
}
