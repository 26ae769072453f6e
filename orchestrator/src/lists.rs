//! Device lists in common formats: one id per line; a registry export with a JSON object per line;
//! CSV with a header and a column of ids. The first line determines the format.
//!
//! Lines may hold keys of devices, and are never shown.
//!
//! A list may be larger than memory. Duplicate ids count once. To find duplicates without holding
//! the whole list, a large list is read in several passes; each pass keeps the ids of one part of a
//! hash's range.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use twincast_core::ids::{DeviceId, InvalidName};
use twincast_secret::{NotText, text_of};

/// The longest line that is read as a whole: far longer than an id with surrounding spaces, or a
/// comment.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// The largest list in bytes: twenty million ids of maximum length. A hub has a million devices,
/// and some more on demand.
const MAX_LIST_BYTES: u64 = 20_000_000 * 130;
/// The number of ids kept by one pass: about 60 MB.
const IDS_PER_PASS: u64 = 500_000;

/// A problem with a device list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file cannot be read.
    #[error("cannot read the device list {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is endless, or not a list.
    #[error("the device list {} is too large: more than {max_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes allowed.
        max_bytes: u64,
    },
    /// A line has no device id.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The problem with the line.
        problem: String,
    },
    /// The file is not text.
    #[error("cannot read the device list {}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: NotText,
    },
    /// The list has no ids.
    #[error("the device list {} has no device ids", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The result of checking a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListFacts {
    /// The number of lines with an id, duplicates included.
    pub ids: u64,
}

/// Checks every line of a list.
///
/// # Errors
/// The first line without a valid device id; a list without ids; an unreadable file.
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

/// Passes each id of a list to `take` once, and returns the number of duplicates. Stops early, with
/// the duplicates so far, when `take` returns `false`.
///
/// # Errors
/// As [`check`].
pub fn for_each_unique(path: &Path, take: impl FnMut(DeviceId) -> bool) -> Result<u64, ListError> {
    let facts = check(path)?;
    in_passes(path, facts.ids.div_ceil(IDS_PER_PASS), take)
}

/// Removes duplicates from a list of ids, and returns their number.
pub fn remove_duplicates(ids: &mut Vec<DeviceId>) -> u64 {
    let before = ids.len();
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(id.clone()));
    (before - ids.len()) as u64
}

fn in_passes(
    path: &Path,
    passes: u64,
    mut take: impl FnMut(DeviceId) -> bool,
) -> Result<u64, ListError> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut repeats = 0;
    let mut wants_more = true;
    for pass in 0..passes {
        let mut seen: HashSet<DeviceId> = HashSet::new();
        for_each(path, |id| {
            if hasher.hash_one(&id) % passes != pass {
                return wants_more;
            }
            if seen.insert(id.clone()) {
                wants_more = take(id);
            } else {
                repeats += 1;
            }
            wants_more
        })?;
        if !wants_more {
            break;
        }
    }
    Ok(repeats)
}

fn for_each(path: &Path, take: impl FnMut(DeviceId) -> bool) -> Result<(), ListError> {
    for_each_within(MAX_LIST_BYTES, path, take)
}

fn for_each_within(
    max_bytes: u64,
    path: &Path,
    mut take: impl FnMut(DeviceId) -> bool,
) -> Result<(), ListError> {
    let read = |source| ListError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(read)?);
    let mut line = Vec::new();
    let mut number = 0;
    let mut form: Option<Form> = None;
    let mut remaining = max_bytes;
    loop {
        line.clear();
        // Limit the read: a file without line ends must not fill the memory.
        let mut limited = (&mut file).take(MAX_LINE_BYTES);
        let length = limited.read_until(b'\n', &mut line).map_err(read)?;
        if length == 0 {
            return Ok(());
        }
        remaining = remaining
            .checked_sub(length as u64)
            .ok_or_else(|| ListError::TooLarge {
                path: path.to_owned(),
                max_bytes,
            })?;
        number += 1;
        let wrong = |problem: String| ListError::Line {
            path: path.to_owned(),
            line: number,
            problem,
        };
        let text = match text_of(&line) {
            Ok(text) => text.trim(),
            Err(source @ NotText::Utf16) if number == 1 => {
                let path = path.to_owned();
                return Err(ListError::NotText { path, source });
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        if text.is_empty() || text == "#" || text.starts_with("# ") {
            continue;
        }
        let id = match &form {
            Some(form) => form.id(text),
            None => match Form::of(text) {
                (detected, true) => {
                    form = Some(detected);
                    continue;
                }
                (detected, false) => form.insert(detected).id(text),
            },
        };
        let id = id.and_then(|id| DeviceId::new(id).map_err(|error| not_an_id(&error)));
        let id = id.map_err(wrong)?;
        if !take(id) {
            return Ok(());
        }
    }
}

fn not_an_id(error: &InvalidName) -> String {
    format!("invalid device id; allowed: {}", error.allowed)
}

/// The format of a list.
enum Form {
    /// The line is the id.
    Plain,
    /// The line is a JSON object.
    Json,
    /// The id is in the column of this index.
    Csv { separator: char, column: usize },
}

/// An object of a registry export, or of a hub's query result.
#[derive(Deserialize)]
struct Listed {
    #[serde(alias = "deviceId")]
    id: String,
}

impl Form {
    /// Returns the format of a list that begins with `line`, and whether `line` is a header.
    fn of(line: &str) -> (Self, bool) {
        if line.starts_with('{') {
            return (Self::Json, false);
        }
        // Ids may contain separators, so a line is a header only if a column has this name.
        for separator in [',', ';', '\t'] {
            let is_id = |cell: &String| {
                let letters = cell.chars().filter(char::is_ascii_alphanumeric);
                let name = letters.collect::<String>().to_ascii_lowercase();
                matches!(&*name, "deviceid" | "id")
            };
            if let Some(column) = cells(line, separator).iter().position(is_id) {
                return (Self::Csv { separator, column }, true);
            }
        }
        (Self::Plain, false)
    }

    fn id(&self, line: &str) -> Result<String, String> {
        match self {
            Self::Plain => Ok(line.to_owned()),
            Self::Json => serde_json::from_str(line)
                .map(|listed: Listed| listed.id)
                .map_err(|_| "not a JSON object with an id, unlike the lines before".to_owned()),
            Self::Csv { separator, column } => {
                let cell = cells(line, *separator).into_iter().nth(*column);
                cell.ok_or_else(|| format!("column {} with the ids is missing", column + 1))
            }
        }
    }
}

/// Splits a line of CSV (RFC 4180) into cells without surrounding spaces.
fn cells(line: &str, separator: char) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let cell = cells.last_mut().expect("there is one");
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => cell.push('"'),
            '"' => quoted = !quoted,
            c if c == separator && !quoted => cells.push(String::new()),
            c => cell.push(c),
        }
    }
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_list_has_a_size_limit() {
        let file = list("a\nb\nc\n");
        let ids = |max_bytes| {
            let mut ids = Vec::new();
            let read = for_each_within(max_bytes, file.path(), |id| {
                ids.push(id.to_string());
                true
            });
            (read.is_ok(), ids.concat())
        };
        assert_eq!(ids(6), (true, "abc".to_owned()));
        assert_eq!(ids(5), (false, "ab".to_owned()));
    }

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
    fn common_list_formats_are_accepted() {
        let export = |id: &str| {
            format!(
                r#"{{"id":"{id}","eTag":"MA==","status":"enabled","authentication":{{"symmetricKey":{{"primaryKey":"c2VjcmV0"}}}}}}"#
            )
        };
        for text in [
            "a\nb;1\n".to_owned(),
            "\u{feff}a\r\nb;1".to_owned(),
            format!("{}\n{}\n", export("a"), export("b;1")),
            "{\"deviceId\":\"a\"}\r\n\r\n{\"deviceId\":\"b;1\"}\r\n".to_owned(),
            "name,Device ID,key\nx,a,s\n\"x, \"\"y\"\"\",\"b;1\",s\n".to_owned(),
            "\u{feff}# export\nid;name\na;x\n\"b;1\";y\n".to_owned(),
            "device_id\tkey\na\ts\nb;1\ts\n".to_owned(),
            "deviceId\na\nb;1\n".to_owned(),
        ] {
            let mut ids = Vec::new();
            let file = list(&text);
            let repeats = for_each_unique(file.path(), |id| {
                ids.push(id.to_string());
                true
            });
            assert_eq!(repeats.unwrap(), 0, "{text}");
            assert_eq!(ids, ["a", "b;1"], "{text}");
        }
    }

    /// A line may contain a key, whatever the error.
    #[test]
    fn errors_do_not_show_the_line() {
        for (text, says) in [
            (
                "a\n\nb secret\n",
                ":3: invalid device id; allowed: 1 to 128",
            ),
            (
                "a\n{\"id\":\"b\",\"primaryKey\":\"secret\"}\n",
                ":2: invalid device id",
            ),
            (
                "{\"id\":\"a\"}\n{\"key\":\"secret\"}\n",
                ":2: not a JSON object with an id",
            ),
            (
                "{\"id\":\"a\"}\n{\"id\":\"b secret\"}\n",
                ":2: invalid device id",
            ),
            ("{\"id\":\"a\"}\nsecret\n", ":2: not a JSON object"),
            ("key,id\nsecret\n", ":2: column 2 with the ids is missing"),
            ("key,id\nsecret,\n", ":2: invalid device id"),
            (
                "HostName=secret.net;SharedAccessKey=secret\n\"x\n",
                ":2: invalid device id",
            ),
        ] {
            let error = check(list(text).path()).unwrap_err();
            let words = twincast_core::error::describe(&error);
            assert!(words.contains(says), "{says}: {words}");
            assert!(!words.contains("secret"), "{words}");
        }
    }

    #[test]
    fn invalid_lists_are_reported() {
        let mut file = list("a\n");
        file.write_all(b"b\xff\n").unwrap();
        let error = check(file.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with(":2: the text is not UTF-8: byte 2 is not part of a character"),
            "{error}"
        );
        let wide: Vec<u8> = "\u{feff}a\nb\n"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let mut file = list("");
        file.write_all(&wide).unwrap();
        let error = check(file.path()).unwrap_err();
        let words = twincast_core::error::describe(&error);
        assert!(
            words.ends_with(": the text is UTF-16; save it as UTF-8"),
            "{words}"
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
