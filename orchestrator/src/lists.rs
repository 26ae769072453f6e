//! Files with device ids, as people have them: one a line; a registry's export, with a JSON object a line; CSV with a
//! header and a column of ids. What kind a file is, its first line says.
//!
//! Lines may hold keys of devices, and are never shown.
//!
//! A list may be larger than memory. Ids that it names twice count once; to find those without
//! holding the whole list, a large one is read in several passes, each of which keeps the ids
//! of one part of a hash's range.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use twincast_core::ids::{DeviceId, InvalidName};
use twincast_secret::{NotText, text_of};

/// The longest line that is read as one: far longer than an id with spaces around it, or a remark.
const LONGEST_LINE: u64 = 64 * 1024;
/// The largest list, in bytes: twenty million of the longest ids. A hub has a million devices, and some more on demand.
const LARGEST: u64 = 20_000_000 * 130;
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
    /// It has no end, or is no list.
    #[error("the device list {} has more than {most} bytes: it is none", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is allowed.
        most: u64,
    },
    /// A line has no device id.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// It is no text.
    #[error("cannot read the device list {}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: NotText,
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

fn for_each(path: &Path, take: impl FnMut(DeviceId) -> bool) -> Result<(), ListError> {
    for_each_within(LARGEST, path, take)
}

fn for_each_within(
    most: u64,
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
    let mut left = most;
    loop {
        line.clear();
        // A file without an end of line must not be taken into memory whole.
        let mut limited = (&mut file).take(LONGEST_LINE);
        let length = limited.read_until(b'\n', &mut line).map_err(read)?;
        if length == 0 {
            return Ok(());
        }
        left = left
            .checked_sub(length as u64)
            .ok_or_else(|| ListError::TooLarge {
                path: path.to_owned(),
                most,
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
                (begun, true) => {
                    form = Some(begun);
                    continue;
                }
                (begun, false) => form.insert(begun).id(text),
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
    format!("is not a device id, which is {}", error.allowed)
}

/// How a list is written.
enum Form {
    /// The line is the id.
    Plain,
    /// The line is an object.
    Json,
    /// The id is in the column of this number.
    Csv { separator: char, column: usize },
}

/// Of an object of a registry's export, or of an answer of the hub.
#[derive(Deserialize)]
struct Listed {
    #[serde(alias = "deviceId")]
    id: String,
}

impl Form {
    /// The form of a list that begins with `line`, and whether that is a header.
    fn of(line: &str) -> (Self, bool) {
        if line.starts_with('{') {
            return (Self::Json, false);
        }
        // An id may have any of these in it: it is a header only if a column has this name.
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
                .map_err(|_| {
                    "is not a JSON object with an id, as the lines before it are".to_owned()
                }),
            Self::Csv { separator, column } => {
                let cell = cells(line, *separator).into_iter().nth(*column);
                cell.ok_or_else(|| format!("has no column {}, where the ids are", column + 1))
            }
        }
    }
}

/// The cells of a line of CSV (RFC 4180), without the space around them.
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
    fn a_list_has_an_end() {
        let file = list("a\nb\nc\n");
        let ids = |most| {
            let mut ids = Vec::new();
            let read = for_each_within(most, file.path(), |id| {
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
    fn lists_are_taken_as_people_have_them() {
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

    /// Whatever is wrong with a line, there may be a key in it.
    #[test]
    fn a_line_is_never_shown() {
        for (text, says) in [
            (
                "a\n\nb secret\n",
                ":3: is not a device id, which is 1 to 128",
            ),
            (
                "a\n{\"id\":\"b\",\"primaryKey\":\"secret\"}\n",
                ":2: is not a device id",
            ),
            (
                "{\"id\":\"a\"}\n{\"key\":\"secret\"}\n",
                ":2: is not a JSON object with an id",
            ),
            (
                "{\"id\":\"a\"}\n{\"id\":\"b secret\"}\n",
                ":2: is not a device id",
            ),
            ("{\"id\":\"a\"}\nsecret\n", ":2: is not a JSON object"),
            ("key,id\nsecret\n", ":2: has no column 2, where the ids are"),
            ("key,id\nsecret,\n", ":2: is not a device id"),
            (
                "HostName=secret.net;SharedAccessKey=secret\n\"x\n",
                ":2: is not a device id",
            ),
        ] {
            let error = check(list(text).path()).unwrap_err();
            let words = twincast_core::error::in_words(&error);
            assert!(words.contains(says), "{says}: {words}");
            assert!(!words.contains("secret"), "{words}");
        }
    }

    #[test]
    fn bad_lists_are_named() {
        let mut file = list("a\n");
        file.write_all(b"b\xff\n").unwrap();
        let error = check(file.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with(":2: it is not UTF-8 text: byte 2 belongs to no character"),
            "{error}"
        );
        let wide: Vec<u8> = "\u{feff}a\nb\n"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let mut file = list("");
        file.write_all(&wide).unwrap();
        let error = check(file.path()).unwrap_err();
        let words = twincast_core::error::in_words(&error);
        assert!(
            words.ends_with(": it is UTF-16; save it as UTF-8"),
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
