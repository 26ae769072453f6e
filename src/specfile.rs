//! Reads a rollout's spec and the files named in the spec.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use twincast_core::ids::DeviceId;
use twincast_core::json::Json;
use twincast_core::spec::{Body, MAX_DEVICES_INLINE, MAX_MESSAGE_BYTES, Problems, RolloutSpec};
use twincast_orchestrator::lists;

use crate::failure::{ExitCode, Failure};
use crate::output::thousands;
use crate::textfile;

/// A spec and the content of the named files.
#[derive(Debug)]
pub(crate) struct SpecFile {
    /// The spec, with the body inlined.
    pub(crate) spec: RolloutSpec,
    /// SHA-256 of the device lists, by the path in the spec.
    pub(crate) files: BTreeMap<String, String>,
    /// The folder of the spec, and the base of relative paths in the spec.
    pub(crate) base: PathBuf,
}

impl SpecFile {
    /// Returns the spec with all named files inlined: the receiver cannot read files of this
    /// machine.
    pub(crate) fn self_contained(&self) -> Result<Json, Failure> {
        let mut spec = self.spec.clone();
        if let Some(path) = spec.target.devices_file.take() {
            spec.target.devices = devices_of(&self.base.join(path))?;
        }
        for rule in &mut spec.target.exclude {
            if let Some(path) = rule.devices_file.take() {
                rule.devices = devices_of(&self.base.join(path))?;
            }
        }
        Json::of(&spec).map_err(|error| Failure::new(ExitCode::Unexpected, error))
    }
}

fn devices_of(path: &Path) -> Result<Vec<DeviceId>, Failure> {
    let mut devices = Vec::new();
    let take = |device| {
        devices.push(device);
        devices.len() <= MAX_DEVICES_INLINE
    };
    lists::for_each_unique(path, take).map_err(|error| Failure::new(ExitCode::Refused, error))?;
    if devices.len() > MAX_DEVICES_INLINE {
        let message = format!(
            "{} lists more than {} devices, too many for one command",
            path.display(),
            thousands(MAX_DEVICES_INLINE as u64)
        );
        return Err(Failure::message(ExitCode::Refused, message).hint(
            "select the devices by tags, or roll out from this machine with `twincast run`",
        ));
    }
    Ok(devices)
}

/// Reads and checks a spec and all named files. `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<SpecFile, Failure> {
    let refused = |error: anyhow::Error| Failure::new(ExitCode::Refused, error);
    let text = textfile::read("the rollout's spec", path).map_err(refused)?;
    let mut spec = RolloutSpec::read(path.display().to_string(), &text)
        .map_err(|problems| Failure::new(ExitCode::Refused, problems))?;
    let base = path.parent().map(Path::to_owned).unwrap_or_default();
    if let Body::File(file) = &spec.message.body {
        spec.message.body = Body::Base64(inline(&base.join(file))?);
        let problems = spec.problems();
        if !problems.is_empty() {
            let origin = path.display().to_string();
            return Err(Failure::new(
                ExitCode::Refused,
                Problems { origin, problems },
            ));
        }
    }
    let mut files = BTreeMap::new();
    let lists = spec.target.devices_file.iter().chain(
        spec.target
            .exclude
            .iter()
            .filter_map(|rule| rule.devices_file.as_ref()),
    );
    for list in lists {
        let path = base.join(list);
        lists::check(&path).map_err(|error| Failure::new(ExitCode::Refused, error))?;
        files.insert(list.display().to_string(), sha256(&path)?);
    }
    Ok(SpecFile { spec, files, base })
}

fn inline(path: &Path) -> Result<String, Failure> {
    let refused = |error: anyhow::Error| Failure::new(ExitCode::Refused, error);
    let limit = MAX_MESSAGE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read the message's body {}", path.display()))
        .map_err(refused)?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        let message = format!(
            "the message's body {} has too many bytes: a hub accepts at most {MAX_MESSAGE_BYTES}",
            path.display()
        );
        return Err(Failure::message(ExitCode::Refused, message));
    }
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn sha256(path: &Path) -> Result<String, Failure> {
    let mut digest = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => {
                return Ok(digest
                    .finalize()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect());
            }
            n => digest.update(&buffer[..n]),
        }
    }
}
