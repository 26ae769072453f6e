//! Lists with a device id per line.

#![no_main]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use twincast_orchestrator::lists::{ListError, check, for_each_unique};

/// The file of the list; in memory if the system has such a file system.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    directory.join(format!("twincast-fuzz-{}", std::process::id()))
});

twincast_fuzz::bytes!(|list| {
    fs::write(&*FILE, list).expect("the list can be written");
    let checked = check(&FILE);
    let mut ids = HashSet::new();
    let unique = for_each_unique(&FILE, |id| {
        assert!(ids.insert(id.to_string()), "{id} comes twice");
        true
    });
    match (checked, unique) {
        (Ok(facts), Ok(repeats)) => {
            assert_eq!(facts.ids, ids.len() as u64 + repeats);
            let mut first = 0;
            _ = for_each_unique(&FILE, |_| {
                first += 1;
                false
            });
            assert_eq!(first, 1, "it goes on when told to stop");
        }
        (Err(checked), Err(unique)) => {
            assert_eq!(checked.to_string(), unique.to_string());
            if let ListError::Line { line, .. } = checked {
                let lines = list.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
                assert!(
                    (1..=lines + list.len() as u64 / 65_536).contains(&line),
                    "{line}"
                );
            }
        }
        (checked, unique) => panic!("{checked:?}, then {unique:?}"),
    }
});
