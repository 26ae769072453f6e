//! Tokens of our own, and the file that they stand in.
//!
//! A token is 32 random bytes, so its plain SHA-256 tells nothing of it; only that is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use twincast_core::error::in_words;
use twincast_core::spec::{MAX_BY_CHARS, too_long};
use twincast_secret::{NotText, text_of};

use super::caller::{Caller, Role};

/// How often the file is looked at. The whole of it: a mounted secret changes by a link to another folder, and the
/// times of its files say nothing.
const EVERY: Duration = Duration::from_secs(5);
/// The largest file that is read, in bytes: thousands of tokens.
const LARGEST: u64 = 1024 * 1024;

/// A tokens file, and what it said when it was last good.
#[derive(Debug)]
pub struct TokensFile {
    path: PathBuf,
    tokens: RwLock<Tokens>,
}

/// Why a tokens file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensFileError {
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// It has more than there can be tokens.
    #[error("it is larger than 1 MiB")]
    TooLarge,
    /// It is in another encoding.
    #[error(transparent)]
    NotText(#[from] NotText),
    /// One of its lines cannot be used.
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

    /// There is no token in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.0.is_empty()
    }

    /// Whose token it is.
    pub(super) fn bearer(&self, token: &str) -> Option<Caller> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.bearer(token).cloned()
    }

    /// Reads the file again and again, until dropped. If it is bad, what was good goes on; an empty one takes all
    /// tokens back.
    pub(super) async fn follow(&self) {
        let mut told = None;
        loop {
            tokio::time::sleep(EVERY).await;
            let file = self.path.display();
            match read(&self.path).await {
                Ok(tokens) => {
                    told = None;
                    self.take(tokens);
                }
                Err(error) => {
                    let error = in_words(&error);
                    if told.as_ref() != Some(&error) {
                        tracing::error!(%file, error, "the tokens file cannot be used; the tokens stay as they were");
                        told = Some(error);
                    }
                }
            }
        }
    }

    fn take(&self, tokens: Tokens) {
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
    let mut file = file.map_err(TokensFileError::Read)?.take(LARGEST + 1);
    let size = file.read_to_end(&mut bytes).await;
    if size.map_err(TokensFileError::Read)? as u64 > LARGEST {
        return Err(TokensFileError::TooLarge);
    }
    Ok(Tokens::read(text_of(&bytes)?)?)
}

/// Tokens, known by their hashes.
#[derive(Debug, Default, PartialEq)]
struct Tokens(HashMap<[u8; 32], Caller>);

/// A line of a tokens file that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadTokens {
    line: usize,
    problem: String,
}

impl Tokens {
    /// Reads a tokens file: a token a line, as `NAME ROLE SHA256`. Empty lines and those that begin with `#`
    /// are passed over. A name may have several tokens of one role: the next one beside the one that it replaces.
    ///
    /// # Errors
    /// The first line that is not of that form, repeats a token, or gives a name another role.
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
                    "{role:?} is no role; the roles are viewer, operator, approver, admin"
                ))
            })?;
            let mut known = [0; 32];
            hex::decode_to_slice(hash, &mut known)
                .map_err(|_| bad("the hash must be 64 hexadecimal digits".to_owned()))?;
            if let Some(problem) = too_long(name, MAX_BY_CHARS) {
                return Err(bad(format!("the name {problem}")));
            }
            if let Some(other) = roles.insert(name, role).filter(|other| *other != role) {
                let (role, other) = (role.as_str(), other.as_str());
                return Err(bad(format!(
                    "{name} has a token with the role {other} already, and cannot be {role}, too"
                )));
            }
            let caller = Caller::new(name.to_owned(), role);
            if tokens.insert(known, caller).is_some() {
                return Err(bad("this token stands there already".to_owned()));
            }
        }
        Ok(Self(tokens))
    }

    /// Whose token it is. What is compared are hashes, so the time that it takes tells nothing.
    fn bearer(&self, token: &str) -> Option<&Caller> {
        self.0.get(&hash(token))
    }
}

/// A new token, and its line in a tokens file.
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
    fn a_new_token_opens_the_door_that_its_line_stands_at() {
        let (token, line) = new_token("ann", Role::Approver);
        let tokens = Tokens::read(&format!("# people\n\n{line}\n")).unwrap();
        let caller = tokens.bearer(&token).unwrap();
        assert_eq!((caller.name(), caller.role()), ("ann", Role::Approver));
        assert_eq!(tokens.bearer("twc_other"), None);
        assert!(!line.contains(&token));
        assert_ne!(new_token("ann", Role::Approver).0, token);
    }

    #[test]
    fn a_new_token_and_the_one_that_it_replaces_overlap() {
        let (old, old_line) = new_token("ann", Role::Operator);
        let (new, new_line) = new_token("ann", Role::Operator);
        let tokens = Tokens::read(&format!("{old_line}\n{new_line}")).unwrap();
        let ann = Caller::new("ann".to_owned(), Role::Operator);
        assert_eq!(tokens.bearer(&old), Some(&ann));
        assert_eq!(tokens.bearer(&new), Some(&ann));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let hash = "0".repeat(64);
        let table = [
            ("ann viewer".to_owned(), "line 1: must be NAME ROLE SHA256"),
            (
                format!("\nann chief {hash}"),
                "line 2: \"chief\" is no role",
            ),
            ("ann viewer xyz".to_owned(), "64 hexadecimal digits"),
            (
                format!("ann viewer {hash}\nann admin {}", "1".repeat(64)),
                "line 2: ann has a token with the role viewer already, and cannot be admin, too",
            ),
            (
                format!("ann viewer {hash}\nbob admin {hash}"),
                "line 2: this token stands",
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
    async fn a_changed_file_is_read_again_and_a_bad_one_is_not_taken() {
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
            let soon = || tokio::time::sleep(2 * EVERY);
            // Files are read by another thread, for which this time does not wait.
            let become_known = async |expected: [bool; 2]| {
                for _ in 0..1_000 {
                    if known() == expected {
                        break;
                    }
                    soon().await;
                }
                assert_eq!(known(), expected);
            };
            // Nobody is to read half of it.
            let put = |text: &str| {
                let whole = folder.path().join("whole");
                std::fs::write(&whole, text).unwrap();
                std::fs::rename(&whole, &path).unwrap();
            };
            // As some editors write it.
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
            () = file.follow() => unreachable!("it follows for ever"),
            () = steps => {}
        }
    }
}
