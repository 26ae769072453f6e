//! The socket in a state folder: while a process works on the folder, other commands ask the
//! process.
//!
//! Only a single process can have the state open for changes. The process serves the HTTP API
//! ([`twincast_orchestrator::http`]) on the Unix socket `state.sock` beside the state. The socket
//! offers the same operations as a server, and answers an operation once the effect is on disk.
//!
//! The system identifies the caller. Users with read access to the state may read through the API;
//! the owner of the state and root may also change the state. The socket file of a killed process
//! has no listener, and the next process replaces the file.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::Request;
use axum::extract::connect_info::ConnectInfo;
use axum::middleware::{self, Next};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use twincast_orchestrator::http::auth::{Access, Caller, Role};
use twincast_orchestrator::http::{Api, REQUEST_TIMEOUT};

use crate::config::Settings;
use crate::engine::Engine;
use crate::failure::{ExitCode, Failure};
use crate::http::{self, ConnectionLimits, Peer};

/// The name of the socket in the state folder.
const SOCKET: &str = "state.sock";
/// The header with the caller's name, recorded with an operation.
pub(crate) const BY: &str = "twincast-by";
/// The longest socket path accepted by every system, in bytes.
const MAX_PATH_BYTES: usize = 100;
/// Limits on connections. Connections of another user do not count as the owner's.
const CONNECTION_LIMITS: ConnectionLimits = ConnectionLimits {
    total: 128,
    per_peer: 96,
};
/// Time limit for running requests at the end of the process.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves the API for the state folder of this process.
pub(crate) struct StateSocketServer {
    socket: PathBuf,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl StateSocketServer {
    /// Serves the API for an engine with an open state in `settings.state`.
    pub(crate) fn open(engine: &Engine, settings: &Settings) -> Result<Self, Failure> {
        let dir = &settings.state;
        let (listener, owner) = listen(dir)
            .with_context(|| format!("cannot create the socket {}", dir.join(SOCKET).display()))
            .map_err(|error| Failure::new(ExitCode::State, error))?;
        let driver = &engine.driver;
        let api = Api {
            store: Arc::clone(&engine.store) as _,
            queue: Some(Arc::clone(&driver.queue)),
            limits: settings.limits(),
            hubs: driver.hubs.clone(),
            executor: Arc::new(engine.command_executor(settings)),
            dead_letters: None,
            access: Arc::new(Access::Provided),
            status: Arc::default(),
            request_timeout: REQUEST_TIMEOUT,
        };
        let with_caller =
            middleware::from_fn(move |request, next| add_caller(owner, request, next));
        let server = http::Server {
            router: api.router().layer(with_caller),
            tls: None,
            limits: CONNECTION_LIMITS,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
        };
        let stop = CancellationToken::new();
        Ok(Self {
            socket: dir.join(SOCKET),
            serving: tokio::spawn(server.serve(listener, stop.clone())),
            stop,
        })
    }

    /// Stops taking requests, and lets running requests finish.
    pub(crate) async fn close(self) {
        // From here on, other commands wait for the state itself. After an error, a file without a
        // listener remains.
        _ = fs::remove_file(&self.socket);
        self.stop.cancel();
        _ = self.serving.await;
    }
}

/// A path to a socket, short enough for the system.
pub(crate) struct Socket {
    path: PathBuf,
    /// The open folder in a shortened path; must stay open while the path is used.
    _folder: Option<File>,
}

impl Socket {
    /// Returns the socket of the process working on the state in `dir`, if a process answers.
    pub(crate) async fn connect_to_owner(dir: &Path) -> Result<Option<Self>, Failure> {
        let failed = |error: io::Error| {
            let error = anyhow::Error::new(error).context(format!(
                "cannot query the twincast process using the state folder {}",
                dir.display()
            ));
            Failure::new(ExitCode::State, error)
        };
        let socket = Self::of(dir).map_err(failed)?;
        match UnixStream::connect(&socket.path).await {
            Ok(_) => Ok(Some(socket)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(failed(error)),
            },
        }
    }

    /// Returns the path, valid for the lifetime of this value.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the socket of a folder. A long path is shortened to a path below the open folder.
    fn of(dir: &Path) -> io::Result<Self> {
        let path = dir.join(SOCKET);
        if path.as_os_str().len() <= MAX_PATH_BYTES {
            return Ok(Self {
                path,
                _folder: None,
            });
        }
        let folder = File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
        Ok(Self {
            path: path.into(),
            _folder: Some(folder),
        })
    }
}

/// Binds the socket for all users with read access to the state; returns the listener and the
/// owner's user id.
fn listen(dir: &Path) -> io::Result<(UnixListener, u32)> {
    let socket = Socket::of(dir)?;
    let path = socket.path();
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The system requires write permission on a socket to connect.
    let readers = fs::metadata(dir.join("state.redb"))?.mode() & 0o444;
    fs::set_permissions(path, Permissions::from_mode(readers | readers >> 1))?;
    Ok((listener, fs::metadata(path)?.uid()))
}

/// Adds the caller to a request of the API.
async fn add_caller(owner: u32, mut request: Request, next: Next) -> axum::response::Response {
    let user = match request.extensions().get() {
        Some(ConnectInfo(Peer::User(user))) => *user,
        _ => None,
    };
    let named = request.headers().get(BY);
    let named = named.and_then(|name| std::str::from_utf8(name.as_bytes()).ok());
    let caller = caller(owner, user, named);
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn caller(owner: u32, user: Option<u32>, named: Option<&str>) -> Caller {
    let may_change = user.is_some_and(|user| user == owner || user == 0);
    let shown = user.map_or("somebody".to_owned(), |user| format!("user {user}"));
    if may_change {
        Caller::new(named.map_or(shown, str::to_owned), Role::Admin)
    } else {
        Caller::new(shown, Role::Viewer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_root_are_admins_and_other_users_viewers() {
        let table = [
            (Some(7), "ann", Role::Admin),
            (Some(0), "ann", Role::Admin),
            (Some(8), "user 8", Role::Viewer),
            (None, "somebody", Role::Viewer),
        ];
        for (user, name, role) in table {
            assert_eq!(
                caller(7, user, Some("ann")),
                Caller::new(name.to_owned(), role),
                "{user:?}"
            );
        }
        assert_eq!(caller(7, Some(7), None).name(), "user 7");
    }
}
