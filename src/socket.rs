//! The socket in a state folder: while a process works on the folder, others ask it.
//!
//! One process alone can have the state open to change it. It answers the HTTP API ([`twincast_orchestrator::http`]) on
//! the Unix socket `state.sock` beside the state, so what can be looked at and asked for is the same as of a server, and
//! an operation is answered when its effect is on disk.
//!
//! Who asks is known from the system: whoever may read the state may look; its owner and root may change it, too.
//! What a process that was killed leaves behind of the socket answers nobody, and the next one takes its place.

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
use twincast_orchestrator::http::auth::{Caller, Door, Role};
use twincast_orchestrator::http::{Api, TIME};

use crate::config::Settings;
use crate::engine::Engine;
use crate::exit::{ExitCode, Failure};
use crate::http::{self, Bounds, Peer};

/// The socket in its folder.
const SOCKET: &str = "state.sock";
/// The header with the name that an operation is recorded under, as its sender gives it.
pub(crate) const BY: &str = "twincast-by";
/// The longest path that every system takes for a socket.
const LONGEST: usize = 100;
/// Connections at the most. The owner's are not those of another user.
const BOUNDS: Bounds = Bounds {
    most: 128,
    most_of_one: 96,
};
/// How long requests under way may take when the process ends.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// Answers those who ask for the folder that this process works on.
pub(crate) struct Desk {
    socket: PathBuf,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Desk {
    /// Answers for an engine that has the state in `settings.state` open.
    pub(crate) fn open(engine: &Engine, settings: &Settings) -> Result<Self, Failure> {
        let dir = &settings.state;
        let (listener, owner) = listen(dir)
            .with_context(|| format!("cannot make the socket {}", dir.join(SOCKET).display()))
            .map_err(|error| Failure::new(ExitCode::State, error))?;
        let driver = &engine.driver;
        let api = Api {
            store: Arc::clone(&engine.store) as _,
            queue: Some(Arc::clone(&driver.queue)),
            limits: settings.limits(),
            hubs: driver.hubs.clone(),
            intake: Arc::new(engine.intake(settings)),
            letters: None,
            door: Arc::new(Door::Known),
            status: Arc::default(),
            time: TIME,
        };
        let introduced = middleware::from_fn(move |request, next| introduce(owner, request, next));
        let server = http::Server {
            router: api.router().layer(introduced),
            tls: None,
            bounds: BOUNDS,
            last_requests: LAST_REQUESTS,
        };
        let stop = CancellationToken::new();
        Ok(Self {
            socket: dir.join(SOCKET),
            serving: tokio::spawn(server.serve(listener, stop.clone())),
            stop,
        })
    }

    /// Takes no more requests, and lets those under way end.
    pub(crate) async fn close(self) {
        // Whoever comes from here on waits for the state itself. An error leaves a file that answers nobody.
        _ = fs::remove_file(&self.socket);
        self.stop.cancel();
        _ = self.serving.await;
    }
}

/// A path for the system to a socket.
pub(crate) struct Socket {
    path: PathBuf,
    /// What the path leads through, where it is a long one's: it must stay open while the path is used.
    _folder: Option<File>,
}

impl Socket {
    /// That of the process that works on the state in `dir`, if one answers.
    pub(crate) async fn at_work(dir: &Path) -> Result<Option<Self>, Failure> {
        let failed = |error: io::Error| {
            let error = anyhow::Error::new(error).context(format!(
                "cannot ask the twincast that works on the state in {}",
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

    /// The path, for as long as this lives.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A long path is taken from its open folder.
    fn of(dir: &Path) -> io::Result<Self> {
        let path = dir.join(SOCKET);
        if path.as_os_str().len() <= LONGEST {
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

/// A listener for whoever may read the state, and who owns it.
fn listen(dir: &Path) -> io::Result<(UnixListener, u32)> {
    let socket = Socket::of(dir)?;
    let path = socket.path();
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // To ask, the system wants the right to write to the socket.
    let readers = fs::metadata(dir.join("state.redb"))?.mode() & 0o444;
    fs::set_permissions(path, Permissions::from_mode(readers | readers >> 1))?;
    Ok((listener, fs::metadata(path)?.uid()))
}

/// Tells the API who asks.
async fn introduce(owner: u32, mut request: Request, next: Next) -> axum::response::Response {
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
    fn the_owner_and_root_change_and_others_look() {
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
