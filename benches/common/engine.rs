//! The distributed engine of the benchmarks: private services, and the engine's processes.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::turns;
use super::{Hub, Process, TIMEOUT, TWINCAST};

const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
/// The target of a rollout to all devices.
pub(crate) const ALL_DEVICES: &str = "tags: { type: fridge }";
/// Batches by a tag with four values.
pub(crate) const BY_REGION: &str = "batch_by: [region]";
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Private RabbitMQ and Redis, stopped on drop.
pub(crate) struct Services {
    rabbitmq: PathBuf,
    redis: PathBuf,
    amqp_port: String,
    redis_port: String,
}

impl Services {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        script(&["install".as_ref()])?;
        let (rabbitmq, redis) = (folder.join("rabbitmq"), folder.join("redis"));
        let port = |verb: &str, dir: &Path| {
            let mut output = script(&[verb.as_ref(), dir.as_os_str()])?;
            output
                .remove("port")
                .with_context(|| format!("{verb} printed no port"))
        };
        Ok(Self {
            redis_port: port("redis-start", &redis)?,
            amqp_port: port("rabbitmq-start", &rabbitmq)?,
            rabbitmq,
            redis,
        })
    }

    /// Stops Redis; Redis keeps the data.
    pub(crate) fn stop_redis(&self) -> Result<()> {
        script(&["stop".as_ref(), self.redis.as_os_str()]).map(|_| ())
    }

    /// Starts Redis again.
    pub(crate) fn start_redis(&self) -> Result<()> {
        script(&["redis-start".as_ref(), self.redis.as_os_str()]).map(|_| ())
    }

    pub(crate) fn redis(&self) -> Result<Redis> {
        let stream = TcpStream::connect(format!("127.0.0.1:{}", self.redis_port))?;
        Ok(Redis(BufReader::new(stream)))
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for dir in [&self.rabbitmq, &self.redis] {
            // An error cannot be reported here.
            _ = script(&["stop".as_ref(), dir.as_os_str()]);
        }
    }
}

/// Runs `scripts/services`. Returns the `key=value` lines of the output.
fn script(arguments: &[&std::ffi::OsStr]) -> Result<HashMap<String, String>> {
    let output = Command::new(SERVICES)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run scripts/services")?;
    ensure!(
        output.status.success(),
        "scripts/services ended with {}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

/// A connection to Redis, for the command `INFO`.
pub(crate) struct Redis(BufReader<TcpStream>);

impl Redis {
    fn info(&mut self, section: &str) -> Result<HashMap<String, String>> {
        write!(self.0.get_mut(), "INFO {section}\r\n")?;
        let mut head = String::new();
        self.0.read_line(&mut head)?;
        let length: usize = head.trim().strip_prefix('$').context("INFO")?.parse()?;
        let mut body = vec![0; length + 2];
        self.0.read_exact(&mut body)?;
        let text = String::from_utf8(body)?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs
            .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
            .collect())
    }

    /// Returns the memory of the data, in bytes.
    pub(crate) fn memory(&mut self) -> Result<i64> {
        Ok(self.info("memory")?["used_memory_dataset"].parse()?)
    }

    /// Returns the number of executed commands, including the commands in scripts.
    pub(crate) fn commands(&mut self) -> Result<u64> {
        let calls = |line: &String| {
            let calls = line.split(',').find_map(|part| part.strip_prefix("calls="));
            calls.and_then(|calls| calls.parse::<u64>().ok())
        };
        Ok(self.info("commandstats")?.values().filter_map(calls).sum())
    }
}

/// The processes of the engine.
pub(crate) struct Engine<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) services: &'a Services,
    pub(crate) folder: &'a Path,
}

impl Engine<'_> {
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let program = std::env::var_os("TWINCAST_PROGRAM");
        let mut command = Command::new(program.unwrap_or_else(|| TWINCAST.into()));
        let Services {
            amqp_port,
            redis_port,
            ..
        } = self.services;
        command
            .arg("--config")
            .arg(self.hub.folder.join("twincast.toml"))
            .args(arguments)
            .env(
                "TWINCAST__AMQP__URL",
                format!("amqp://127.0.0.1:{amqp_port}"),
            )
            .env(
                "TWINCAST__REDIS__URL",
                format!("redis://127.0.0.1:{redis_port}"),
            );
        command
    }

    pub(crate) fn start(&self, role: &str, number: usize) -> Result<Process> {
        let log = File::create(self.folder.join(format!("{role}-{number}.log")))?;
        let mut command = self.command(&[role]);
        command.stdout(Stdio::null()).stderr(log);
        Process::start(role, &mut command)
    }

    /// Starts an orchestrator with an API. Returns the process and the address of the API.
    pub(crate) fn start_with_api(&self) -> Result<(Process, String)> {
        let path = self.folder.join("orchestrator.log");
        let log = File::create(&path)?;
        let mut command = self.command(&["orchestrator"]);
        command
            .env("TWINCAST__API__LISTEN", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(log);
        let orchestrator = Process::start("orchestrator", &mut command)?;
        let started_at = Instant::now();
        while started_at.elapsed() < TIMEOUT {
            let output = std::fs::read_to_string(&path)?;
            let rest = output.split_once("API: http://").map(|(_, rest)| rest);
            if let Some((address, _)) = rest.and_then(|rest| rest.split_once('/')) {
                return Ok((orchestrator, address.to_owned()));
            }
            pause();
        }
        bail!("the orchestrator does not say where its API is")
    }

    /// Submits a rollout to a target. `more` is the rest of the spec.
    pub(crate) fn submit(&self, name: &str, target: &str, more: &str) -> Result<()> {
        let spec = self.folder.join(format!("{name}.yaml"));
        let body = super::body();
        let text = format!(
            "name: {name}\ntarget: {{ {target} }}\nmessage: {{ body: {{ json: {body} }} }}\n{more}\n"
        );
        std::fs::write(&spec, text)?;
        let spec = spec.to_str().context("a path that is text")?;
        let output = self.command(&["submit", spec]).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "submit: {stderr}");
        Ok(())
    }

    /// Waits until a rollout's phase satisfies `predicate`. Returns the phase.
    pub(crate) fn until(&self, name: &str, predicate: impl Fn(&str) -> bool) -> Result<String> {
        let started_at = Instant::now();
        while started_at.elapsed() < TIMEOUT {
            let output = self.command(&["--json", "status", name]).output()?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            let phase = status["phase"].as_str().unwrap_or_default();
            if predicate(phase) {
                return Ok(phase.to_owned());
            }
            pause();
        }
        bail!("not done after {TIMEOUT:?}")
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the beat of a measurement, not a wait for luck"
)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}

/// Posts to the API of an orchestrator without tokens. Retries up to 60 times, because the
/// orchestrator may be busy or not ready for the request.
pub(crate) fn post(api: &str, path: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let mut answer = String::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(api)?;
        // Without tokens, an API answers only this machine, addressed by a local name.
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        answer.clear();
        stream.read_to_string(&mut answer)?;
        if answer.contains(" 200 ") || answer.contains(" 201 ") {
            return Ok(());
        }
        turns::pause(Duration::from_millis(500));
    }
    bail!("{path}: {answer}")
}
