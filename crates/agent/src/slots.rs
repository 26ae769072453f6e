//! Two folders that versions are installed in by turns, and a link to the one that runs.
//!
//! ```text
//! root/a  root/b            the versions
//! root/current -> a         what runs; changed by a rename, so that it is always one of the two
//! root/update.json          which folder the update on its way goes to, and which one ran before
//! ```
//! Every step may be repeated: what is done stays done.

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
struct Plan {
    id: String,
    slot: String,
    previous: Option<String>,
}

/// Does what a hook is for.
///
/// # Errors
/// What the system says, with the path.
pub(crate) fn run(hook: Hook, slots: &Slots, context: &Context) -> io::Result<()> {
    match hook {
        Hook::Install => install(slots, context),
        Hook::Activate => {
            let plan = plan(slots, &context.id)?
                .ok_or_else(|| io::Error::other("the update was not installed"))?;
            point(&slots.root, Some(&plan.slot))
        }
        Hook::Confirm => Ok(()),
        // Without a plan nothing was changed.
        Hook::Rollback => match plan(slots, &context.id)? {
            Some(plan) => point(&slots.root, plan.previous.as_deref()),
            None => Ok(()),
        },
    }
}

/// The folder that an update goes to, once it is installed.
pub(crate) fn slot_of(slots: &Slots, id: &str) -> Option<PathBuf> {
    let plan = plan(slots, id).ok().flatten()?;
    Some(slots.root.join(plan.slot))
}

fn plan(slots: &Slots, id: &str) -> io::Result<Option<Plan>> {
    let plan: Option<Plan> = store::read(&slots.root.join("update.json"))?;
    Ok(plan.filter(|plan| plan.id == id))
}

fn install(slots: &Slots, context: &Context) -> io::Result<()> {
    let root = &slots.root;
    fs::create_dir_all(root).map_err(|error| at(root, &error))?;
    let plan = match plan(slots, &context.id)? {
        Some(plan) => plan,
        None => {
            let previous = running(root);
            let slot = if previous.as_deref() == Some("a") {
                "b"
            } else {
                "a"
            };
            let plan = Plan {
                id: context.id.clone(),
                slot: slot.to_owned(),
                previous,
            };
            store::write(&root.join("update.json"), &plan).map_err(|error| at(root, &error))?;
            plan
        }
    };
    if running(root).as_ref() == Some(&plan.slot) {
        return Err(io::Error::other(format!(
            "slot {} runs; nothing is installed into it",
            plan.slot
        )));
    }
    let (slot, beside) = (
        root.join(&plan.slot),
        root.join(format!("{}.new", plan.slot)),
    );
    remove(&beside)?;
    // The room is needed for the new version.
    remove(&slot)?;
    let filled =
        fs::create_dir(&beside).and_then(|()| unpack(&context.artifact, slots.artifact, &beside));
    if let Err(error) = filled {
        remove(&beside)?;
        return Err(at(&beside, &error));
    }
    rustix::fs::syncfs(File::open(root)?)?;
    fs::rename(&beside, &slot).map_err(|error| at(&slot, &error))?;
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

/// Which of the two runs.
fn running(root: &Path) -> Option<String> {
    let link = fs::read_link(root.join("current")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Makes the link point to a slot, at once and for good; or to none, if none ran before.
fn point(root: &Path, slot: Option<&str>) -> io::Result<()> {
    let (link, beside) = (root.join("current"), root.join("current.new"));
    if running(root).as_deref() == slot {
        return Ok(());
    }
    match slot {
        Some(slot) => {
            if beside.symlink_metadata().is_ok() {
                fs::remove_file(&beside).map_err(|error| at(&beside, &error))?;
            }
            symlink(slot, &beside).map_err(|error| at(&beside, &error))?;
            fs::rename(&beside, &link).map_err(|error| at(&link, &error))?;
        }
        None => fs::remove_file(&link).map_err(|error| at(&link, &error))?,
    }
    store::sync_folder(&link)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(folder, &error)),
        _ => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
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

        /// Runs a hook twice: as after a crash.
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

        fn runs(&self) -> String {
            fs::read_to_string(self.slots.root.join("current/artifact")).unwrap_or_default()
        }
    }

    #[test]
    fn versions_take_turns_and_steps_may_be_repeated() {
        let device = Device::new(ArtifactKind::File);
        for (id, version) in [("1", "one"), ("2", "two"), ("3", "three")] {
            let before = device.runs();
            device.run(Hook::Install, id, version.as_bytes()).unwrap();
            assert_eq!(device.runs(), before);
            device.run(Hook::Activate, id, b"").unwrap();
            assert_eq!(device.runs(), version);
            device.run(Hook::Confirm, id, b"").unwrap();
        }
        device.run(Hook::Install, "4", b"four").unwrap();
        device.run(Hook::Activate, "4", b"").unwrap();
        device.run(Hook::Rollback, "4", b"").unwrap();
        assert_eq!(device.runs(), "three");
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
        assert_eq!(device.runs(), "");
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
        assert_eq!(device.runs(), "one");
        let cut = &whole[..whole.len() / 2];
        assert!(
            device
                .run(Hook::Install, "2", cut)
                .unwrap_err()
                .to_string()
                .contains("b.new")
        );
        assert!(!device.slots.root.join("b.new").exists());
        assert_eq!(device.runs(), "one");
    }
}
