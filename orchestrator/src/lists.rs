//! Files with one device id a line.
//!
//! A list may be larger than memory. Ids that it names twice count once; to find those without
//! holding the whole list, a large one is read in several passes, each of which keeps the ids
//! of one part of a hash's range.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use twincast_core::ids::{DeviceId, InvalidName};

/// The longest line that is read as one: far longer than an id with spaces around it, or a remark.
const LONGEST_LINE: u64 = 64 * 1024;
/// How many ids one pass keeps: about 60 MB.
const IDS_A_PASS: u64 = 500_000;

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It cannot be read.
    #[error("cannot read the device list {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A line is no device id.
    #[error("{}:{line}: not a device id", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: InvalidName,
    },
    /// It has no ids.
    #[error("the device list {} names no device", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// What one look at a list found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListFacts {
    /// Lines with an id, repeats included.
    pub ids: u64,
}

/// Checks every line of a list.
///
/// # Errors
/// The first line that is no device id; a list without any; a file that cannot be read.
pub fn check(path: &Path) -> Result<ListFacts, ListError> {
    let mut ids = 0;
    for_each(path, |_| {
        ids += 1;
        true
    })?;
    if ids == 0 {
        return Err(ListError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(ListFacts { ids })
}

/// Hands out each id of a list once; gives the number of repeats. Stops early, with the repeats
/// so far, when `take` says `false`.
///
/// # Errors
/// As [`check`].
pub fn for_each_unique(path: &Path, take: impl FnMut(DeviceId) -> bool) -> Result<u64, ListError> {
    let facts = check(path)?;
    in_passes(path, facts.ids.div_ceil(IDS_A_PASS), take)
}

/// Hands out each of these ids once; gives the number of repeats, so far when `take` says `false`.
pub fn each_once(ids: Vec<DeviceId>, mut take: impl FnMut(DeviceId) -> bool) -> u64 {
    let mut seen = HashSet::new();
    let mut repeats = 0;
    for id in ids {
        if !seen.insert(id.clone()) {
            repeats += 1;
        } else if !take(id) {
            break;
        }
    }
    repeats
}

fn in_passes(
    path: &Path,
    passes: u64,
    mut take: impl FnMut(DeviceId) -> bool,
) -> Result<u64, ListError> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut repeats = 0;
    let mut go_on = true;
    for pass in 0..passes {
        let mut seen: HashSet<DeviceId> = HashSet::new();
        for_each(path, |id| {
            if hasher.hash_one(&id) % passes != pass {
                return go_on;
            }
            if seen.insert(id.clone()) {
                go_on = take(id);
            } else {
                repeats += 1;
            }
            go_on
        })?;
        if !go_on {
            break;
        }
    }
    Ok(repeats)
}

fn for_each(path: &Path, mut take: impl FnMut(DeviceId) -> bool) -> Result<(), ListError> {
    let read = |source| ListError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(read)?);
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        // A file without an end of line must not be taken into memory whole.
        let mut limited = (&mut file).take(LONGEST_LINE);
        if limited.read_until(b'\n', &mut line).map_err(read)? == 0 {
            return Ok(());
        }
        number += 1;
        // What is no text is no device id either, and is told with its line.
        let text = String::from_utf8_lossy(&line);
        // Some editors mark a text as UTF-8 at its beginning.
        let text = text
            .strip_prefix('\u{feff}')
            .filter(|_| number == 1)
            .unwrap_or(&text);
        let text = text.trim();
        if text.is_empty() || text == "#" || text.starts_with("# ") {
            continue;
        }
        let id = DeviceId::new(text).map_err(|source| ListError::Line {
            path: path.to_owned(),
            line: number,
            source,
        })?;
        if !take(id) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn list(lines: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        file
    }

    #[test]
    fn any_number_of_passes_gives_each_id_once() {
        let text: String = (0..500).map(|n| format!("d{}\n", n % 311)).collect();
        let file = list(&format!("# fleet\n\n{text}"));
        for passes in [1, 2, 7] {
            let mut ids = Vec::new();
            let repeats = in_passes(file.path(), passes, |id| {
                ids.push(id);
                true
            })
            .unwrap();
            ids.sort();
            let count = ids.len();
            ids.dedup();
            assert_eq!(
                (count, ids.len(), repeats),
                (311, 311, 500 - 311),
                "{passes} passes"
            );
        }
    }

    #[test]
    fn a_reader_may_stop() {
        let file = list("a\nb\nc\n");
        let mut ids = 0;
        for_each_unique(file.path(), |_| {
            ids += 1;
            ids < 2
        })
        .unwrap();
        assert_eq!(ids, 2);
    }

    #[test]
    fn bad_lists_are_named() {
        let file = list("a\n\nb c\n");
        let error = check(file.path()).unwrap_err();
        assert!(
            error.to_string().ends_with(":3: not a device id"),
            "{error}"
        );
        let mut file = list("a\n");
        file.write_all(b"b\xff\n").unwrap();
        let error = check(file.path()).unwrap_err();
        assert!(
            error.to_string().ends_with(":2: not a device id"),
            "{error}"
        );
        assert_eq!(check(list("\u{feff}a;1\r\nb\n").path()).unwrap().ids, 2);
        assert!(matches!(
            check(list("\n# x\n").path()),
            Err(ListError::Empty { .. })
        ));
        assert!(matches!(
            check(Path::new("/nowhere")),
            Err(ListError::Read { .. })
        ));
    }
}
