//! Two folders for alternating installations, and a link to the running folder.
//!
//! ```text
//! root/a  root/b            the versions
//! root/current -> a         the running version; renamed into place, so always a or b
//! root/update.json          the folder of the current update, and the folder running before
//! ```
//! Every step may be repeated; completed work is not done again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{ArtifactKind, Slots};
use crate::hooks::Context;
use crate::store;
use crate::update::Hook;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlotAssignment {
    id: String,
    slot: String,
    previous: Option<String>,
}

/// Performs the slots' part of a hook.
///
/// # Errors
/// The error of the operating system, with the path.
pub(crate) fn run(hook: Hook, slots: &Slots, context: &Context) -> io::Result<()> {
    match hook {
        Hook::Install => install(slots, context),
        Hook::Activate => {
            let assignment = assignment(slots, &context.id)?
                .ok_or_else(|| io::Error::other("the update was not installed"))?;
            switch_to(&slots.root, Some(&assignment.slot))
        }
        Hook::Confirm => Ok(()),
        // Without an assignment, the update has changed nothing.
        Hook::Rollback => match assignment(slots, &context.id)? {
            Some(assignment) => switch_to(&slots.root, assignment.previous.as_deref()),
            None => Ok(()),
        },
    }
}

/// Returns the folder of an update; none before the installation.
pub(crate) fn slot_of(slots: &Slots, id: &str) -> Option<PathBuf> {
    let assignment = assignment(slots, id).ok().flatten()?;
    Some(slots.root.join(assignment.slot))
}

fn assignment(slots: &Slots, id: &str) -> io::Result<Option<SlotAssignment>> {
    let path = slots.root.join("update.json");
    let assignment: Option<SlotAssignment> =
        store::read(&path).map_err(|error| with_path(&path, &error))?;
    Ok(assignment.filter(|assignment| assignment.id == id))
}

fn install(slots: &Slots, context: &Context) -> io::Result<()> {
    let root = &slots.root;
    fs::create_dir_all(root).map_err(|error| with_path(root, &error))?;
    let assignment = match assignment(slots, &context.id) {
        Ok(Some(assignment)) => assignment,
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
        // A damaged file belongs to an earlier update, and the link still names the running
        // version.
        Ok(None) | Err(_) => {
            let previous = running_slot(root);
            let slot = if previous.as_deref() == Some("a") {
                "b"
            } else {
                "a"
            };
            let assignment = SlotAssignment {
                id: context.id.clone(),
                slot: slot.to_owned(),
                previous,
            };
            store::write(&root.join("update.json"), &assignment)
                .map_err(|error| with_path(root, &error))?;
            assignment
        }
    };
    if running_slot(root).as_ref() == Some(&assignment.slot) {
        return Err(io::Error::other(format!(
            "cannot install into slot {}: it is the running slot",
            assignment.slot
        )));
    }
    let (slot, temporary) = (
        root.join(&assignment.slot),
        root.join(format!("{}.new", assignment.slot)),
    );
    remove(&temporary)?;
    // Make room for the new version.
    remove(&slot)?;
    let filled = fs::create_dir(&temporary)
        .and_then(|()| unpack(&context.artifact, slots.artifact, &temporary));
    if let Err(error) = filled {
        remove(&temporary)?;
        return Err(with_path(&temporary, &error));
    }
    rustix::fs::syncfs(File::open(root)?)?;
    fs::rename(&temporary, &slot).map_err(|error| with_path(&slot, &error))?;
    store::sync_folder(&slot)
}

fn unpack(artifact: &Path, kind: ArtifactKind, folder: &Path) -> io::Result<()> {
    let file = io::BufReader::new(File::open(artifact)?);
    match kind {
        ArtifactKind::File => fs::copy(artifact, folder.join("artifact")).map(drop),
        ArtifactKind::Tar => tar::Archive::new(file).unpack(folder),
        ArtifactKind::TarGz => {
            tar::Archive::new(flate2::bufread::GzDecoder::new(file)).unpack(folder)
        }
    }
}

/// Returns the name of the running folder.
fn running_slot(root: &Path) -> Option<String> {
    let link = fs::read_link(root.join("current")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Points the link to a slot, atomically and durably; removes the link if no version ran before.
fn switch_to(root: &Path, slot: Option<&str>) -> io::Result<()> {
    let (link, temporary) = (root.join("current"), root.join("current.new"));
    if running_slot(root).as_deref() == slot {
        return Ok(());
    }
    match slot {
        Some(slot) => {
            if temporary.symlink_metadata().is_ok() {
                fs::remove_file(&temporary).map_err(|error| with_path(&temporary, &error))?;
            }
            symlink(slot, &temporary).map_err(|error| with_path(&temporary, &error))?;
            fs::rename(&temporary, &link).map_err(|error| with_path(&link, &error))?;
        }
        None => fs::remove_file(&link).map_err(|error| with_path(&link, &error))?,
    }
    store::sync_folder(&link)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(with_path(folder, &error)),
        _ => Ok(()),
    }
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Device {
        folder: tempfile::TempDir,
        slots: Slots,
    }

    impl Device {
        fn new(artifact: ArtifactKind) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let slots = Slots {
                root: folder.path().join("root"),
                artifact,
            };
            Self { folder, slots }
        }

        /// Runs a hook twice, as after a crash.
        fn run(&self, hook: Hook, id: &str, artifact: &[u8]) -> io::Result<()> {
            let path = self.folder.path().join("artifact");
            fs::write(&path, artifact).unwrap();
            let context = Context {
                id: id.to_owned(),
                name: String::new(),
                version: String::new(),
                previous: None,
                artifact: path,
                reason: None,
            };
            run(hook, &self.slots, &context).and_then(|()| run(hook, &self.slots, &context))
        }

        fn running_version(&self) -> String {
            fs::read_to_string(self.slots.root.join("current/artifact")).unwrap_or_default()
        }
    }

    #[test]
    fn versions_take_turns_and_steps_may_be_repeated() {
        let device = Device::new(ArtifactKind::File);
        for (id, version) in [("1", "one"), ("2", "two"), ("3", "three")] {
            let before = device.running_version();
            device.run(Hook::Install, id, version.as_bytes()).unwrap();
            assert_eq!(device.running_version(), before);
            device.run(Hook::Activate, id, b"").unwrap();
            assert_eq!(device.running_version(), version);
            device.run(Hook::Confirm, id, b"").unwrap();
        }
        device.run(Hook::Install, "4", b"four").unwrap();
        device.run(Hook::Activate, "4", b"").unwrap();
        device.run(Hook::Rollback, "4", b"").unwrap();
        assert_eq!(device.running_version(), "three");
        assert_eq!(
            slot_of(&device.slots, "4"),
            Some(device.slots.root.join("b"))
        );
        assert!(device.run(Hook::Activate, "5", b"").is_err());
    }

    #[test]
    fn the_first_version_rolls_back_to_none() {
        let device = Device::new(ArtifactKind::File);
        device.run(Hook::Rollback, "1", b"").unwrap();
        device.run(Hook::Install, "1", b"one").unwrap();
        device.run(Hook::Activate, "1", b"").unwrap();
        device.run(Hook::Rollback, "1", b"").unwrap();
        assert_eq!(device.running_version(), "");
    }

    #[test]
    fn a_damaged_assignment_stops_a_rollback_and_not_the_next_update() {
        let device = Device::new(ArtifactKind::File);
        for (id, version) in [("1", "one"), ("2", "two")] {
            device.run(Hook::Install, id, version.as_bytes()).unwrap();
            device.run(Hook::Activate, id, b"").unwrap();
        }
        for damaged in ["", "{\"id\": \"2\", \"sl"] {
            fs::write(device.slots.root.join("update.json"), damaged).unwrap();
            let error = device.run(Hook::Rollback, "2", b"").unwrap_err();
            assert!(error.to_string().contains("update.json"), "{error}");
            assert_eq!(device.running_version(), "two");
        }
        device.run(Hook::Install, "3", b"three").unwrap();
        device.run(Hook::Activate, "3", b"").unwrap();
        assert_eq!(device.running_version(), "three");
        device.run(Hook::Rollback, "3", b"").unwrap();
        assert_eq!(device.running_version(), "two");
    }

    #[test]
    fn archives_are_unpacked_within_their_folder() {
        let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o755);
        archive
            .append_data(&mut header.clone(), "artifact", &b"one"[..])
            .unwrap();
        let whole = archive.into_inner().unwrap().finish().unwrap();
        let device = Device::new(ArtifactKind::TarGz);
        device.run(Hook::Install, "1", &whole).unwrap();
        device.run(Hook::Activate, "1", b"").unwrap();
        assert_eq!(device.running_version(), "one");
        let cut = &whole[..whole.len() / 2];
        assert!(
            device
                .run(Hook::Install, "2", cut)
                .unwrap_err()
                .to_string()
                .contains("b.new")
        );
        assert!(!device.slots.root.join("b.new").exists());
        assert_eq!(device.running_version(), "one");
    }
}
