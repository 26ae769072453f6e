//! `twincast sign`: keys, and the signed messages of updates.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use twincast_agent::envelope::{self, PublicKey, SecretKey};
use twincast_agent::manifest::{Artifact, Manifest, SCHEMA};

use crate::args::{KeyAction, SignAction, SignArgs, SignUpdateArgs, SignVerifyArgs};
use crate::failure::{ExitCode, Failure};
use crate::output::Output;

pub(crate) fn sign(args: &SignArgs, output: &Output) -> Result<ExitCode, Failure> {
    let done = match &args.action {
        SignAction::Key { action } => key(action, output),
        SignAction::Update(update) => sign_update(update, output),
        SignAction::Verify(verify) => check(verify, output),
    };
    done.map(|()| ExitCode::Success)
        .map_err(|error| Failure::new(ExitCode::Refused, error))
}

fn key(action: &KeyAction, output: &Output) -> anyhow::Result<()> {
    let public = match action {
        KeyAction::New { file } => {
            let (key, pem) = SecretKey::new()?;
            let mut options = OpenOptions::new();
            // An existing key is never overwritten: its signatures could not be renewed.
            let made = options.write(true).create_new(true).mode(0o600).open(file);
            let mut made = made.with_context(|| format!("cannot create {}", file.display()))?;
            made.write_all(pem.as_bytes())?;
            made.sync_all()?;
            key.public()
        }
        KeyAction::Show { file } => secret_key(file)?.public(),
    };
    let (key, id) = (public.to_string(), public.id());
    let text = format!(
        "public key {key}\nkey id     {id}\n\nAdd the public key to update.keys of the devices."
    );
    output.result(&json!({ "public_key": key, "keyid": id }), &text);
    Ok(())
}

fn sign_update(args: &SignUpdateArgs, output: &Output) -> anyhow::Result<()> {
    let keys = args
        .key
        .iter()
        .map(|path| secret_key(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (size, sha256) = measure(&args.artifact)?;
    let expires = args.expires.as_deref().map(str::parse).transpose();
    let manifest = Manifest {
        schema: SCHEMA,
        name: args.name.clone(),
        version: args.version.clone(),
        hardware: (!args.hardware.is_empty()).then(|| args.hardware.clone()),
        artifact: Artifact {
            url: args.url.clone(),
            size,
            sha256,
        },
        expires: expires.context("--expires is not a time like 2030-01-01T00:00:00Z")?,
        force: args.force,
    };
    manifest
        .check_form()
        .map_err(|reason| anyhow::anyhow!("devices would refuse the update: {}", reason.text))?;
    let now = std::time::SystemTime::now().try_into()?;
    manifest
        .check_time(now)
        .map_err(|reason| anyhow::anyhow!("devices would refuse the update: {}", reason.text))?;
    let sealed = envelope::seal(&serde_json::to_vec(&manifest)?, &keys);
    let body = serde_json::to_vec(&sealed)?;
    let out = args.out.display();
    fs::write(&args.out, &body).with_context(|| format!("cannot write {out}"))?;
    let ids: Vec<_> = keys.iter().map(|key| key.public().id()).collect();
    let text = format!(
        "{out}: {} {}, {size} bytes, signed by {}\n\nTo send the update, write in the spec: \
         message: {{ body: {{ file: {out} }}, properties: {{ kind: update }} }}",
        manifest.name,
        manifest.version,
        ids.join(" and "),
    );
    output.result(
        &json!({ "file": args.out, "keyids": ids, "manifest": manifest }),
        &text,
    );
    Ok(())
}

fn check(args: &SignVerifyArgs, output: &Output) -> anyhow::Result<()> {
    let parse = |text: &String| {
        text.parse::<PublicKey>()
            .with_context(|| format!("--public-key {text}"))
    };
    let keys = args
        .public_key
        .iter()
        .map(parse)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let file = args.file.display();
    let body = fs::read(&args.file).with_context(|| format!("cannot read {file}"))?;
    let payload = envelope::open(&body, &keys).with_context(|| format!("{file} is not trusted"))?;
    let manifest: Manifest = serde_json::from_slice(&payload)
        .with_context(|| format!("{file} has no valid manifest"))?;
    manifest
        .check_form()
        .map_err(|reason| anyhow::anyhow!("devices would refuse {file}: {}", reason.text))?;
    if let Some(path) = &args.artifact {
        let (size, sha256) = measure(path)?;
        let Artifact {
            size: expected_size,
            sha256: expected_digest,
            ..
        } = &manifest.artifact;
        anyhow::ensure!(
            size == *expected_size && sha256.eq_ignore_ascii_case(expected_digest),
            "{} is not the artefact of {file}: found {size} bytes and SHA-256 {sha256}; the \
             manifest has {expected_size} bytes and SHA-256 {expected_digest}",
            path.display(),
        );
    }
    let text = format!("{file}: {} {} is signed", manifest.name, manifest.version);
    output.result(&json!({ "signed": true, "manifest": manifest }), &text);
    Ok(())
}

fn secret_key(path: &Path) -> anyhow::Result<SecretKey> {
    let path_shown = path.display();
    let pem = fs::read_to_string(path).with_context(|| format!("cannot read {path_shown}"))?;
    SecretKey::from_pem(&pem).map_err(|error| anyhow::anyhow!("{path_shown} {error}"))
}

/// Returns the size and the SHA-256 of a file.
fn measure(path: &Path) -> anyhow::Result<(u64, String)> {
    let measured = File::open(path).and_then(|mut file| {
        let size = file.metadata()?.len();
        Ok((size, twincast_agent::sha256(&mut file)?))
    });
    measured.with_context(|| format!("cannot read {}", path.display()))
}
