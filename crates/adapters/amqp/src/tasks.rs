//! The tasks of a connection, all awaited on close.

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Spawns tasks from any thread: a handle may be dropped on a thread without a runtime.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    runtime: Handle,
}

impl Tasks {
    /// Spawns on the current runtime.
    pub(crate) fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Waits until all tasks have ended. The caller has signalled the tasks to end before.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
