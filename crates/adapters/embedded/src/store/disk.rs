//! Opens the file: lock, ownership and format.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
};

use super::error::{InvalidData, OpenError};
use super::overlay::Overlay;
use super::tables::{FORMAT, ReadTables, WriteTables, meta};

/// The size of the cache for the file's pages. The size bounds the memory of the store for any
/// fleet. The system caches the file, too, so a larger cache was no faster in measurements.
const CACHE_BYTES: usize = 4 << 20;

/// Opens the database, any number of times.
type Opener = Box<dyn FnMut(&Builder) -> Result<Database, DatabaseError> + Send>;

/// The place of the state. Holds the lock until dropped, so the database can be closed and opened
/// again after a failed write, without another process in between.
pub(super) struct Disk {
    dir: PathBuf,
    open: Opener,
    _lock: Option<File>,
    /// Writes stay in memory, so no write may be confirmed.
    pub(super) is_read_only: bool,
}

/// An open database, with the content of the `meta` table.
pub(super) struct Opened {
    pub(super) database: Database,
    /// The number of commits.
    pub(super) commits: u64,
    /// An abandoned plan waits for removal.
    pub(super) garbage: bool,
    /// The hubs with a listener that did not report an end, each with the listener's state.
    pub(super) listened_to: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens the folder `dir`, created if missing, and locks the folder.
    pub(super) fn folder(dir: &Path) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::from_io(dir.to_owned(), error);
        std::fs::create_dir_all(dir).map_err(io_error)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("state.lock"))
            .map_err(io_error)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse {
                dir: dir.to_owned(),
            },
            TryLockError::Error(error) => io_error(error),
        })?;
        let path = dir.join(super::STATE_FILE);
        if !path.try_exists().map_err(io_error)? {
            create(dir, &path)?;
        }
        let mut disk = Self::new(dir.to_owned(), move |builder| builder.open(&path));
        disk._lock = Some(lock);
        Ok(disk)
    }

    /// Opens the state in the folder `dir` for reading. Changes nothing. The lock excludes writers,
    /// and admits other readers.
    pub(super) fn read_only(dir: &Path) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::from_reading(dir.to_owned(), error);
        let lock = match File::open(dir.join("state.lock")) {
            Ok(lock) => Some(lock),
            // Without the lock file there is no writer: a writer creates the lock file first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(error)),
        };
        if let Some(lock) = &lock {
            lock.try_lock_shared().map_err(|error| match error {
                TryLockError::WouldBlock => OpenError::InUse {
                    dir: dir.to_owned(),
                },
                TryLockError::Error(error) => io_error(error),
            })?;
        }
        let file = File::open(dir.join(super::STATE_FILE)).map_err(io_error)?;
        let mut overlay = Some(Overlay::on(file).map_err(io_error)?);
        let mut disk = Self::new(dir.to_owned(), move |builder| {
            let overlay = overlay.take().ok_or(DatabaseError::DatabaseAlreadyOpen)?;
            builder.create_with_backend(overlay)
        });
        disk._lock = lock;
        disk.is_read_only = true;
        Ok(disk)
    }

    /// Opens memory. Memory cannot fail, so is never opened a second time.
    pub(super) fn memory() -> Self {
        let mut backend = Some(InMemoryBackend::new());
        Self::new(PathBuf::from("(memory)"), move |builder| {
            let backend = backend.take().ok_or(DatabaseError::DatabaseAlreadyOpen)?;
            builder.create_with_backend(backend)
        })
    }

    pub(super) fn new(
        dir: PathBuf,
        open: impl FnMut(&Builder) -> Result<Database, DatabaseError> + Send + 'static,
    ) -> Self {
        Self {
            dir,
            open: Box::new(open),
            _lock: None,
            is_read_only: false,
        }
    }

    /// Returns the folder, for messages.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the database, and checks that the state belongs to this program. `first` means that
    /// the state was not read before.
    pub(super) fn open(&mut self, first: bool) -> Result<Opened, OpenError> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        // Reads the whole file, some 30 bytes a device: the checksums reveal damage here, and not
        // as a panic in the middle of a rollout.
        builder.set_check_integrity_on_open(true);
        let dir = &self.dir;
        let open = &mut self.open;
        let database = catch_unwind(AssertUnwindSafe(|| open(&builder)))
            .map_err(|_| damaged(dir, "it cannot be read"))?
            .map_err(|error| OpenError::from_database(dir.clone(), error))?;
        check_format(dir, &database)?;
        read_meta(database, first).map_err(|error| OpenError::from_redb(dir.clone(), error))
    }
}

/// Creates an empty state under another name first: a crash leaves no half-made state, which would
/// look like a damaged state.
fn create(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let io_error = |error| OpenError::from_io(dir.to_owned(), error);
    let new = dir.join("state.new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create(&new)
        .map_err(|error| OpenError::from_database(dir.to_owned(), error))?;
    write_format(&database).map_err(|error| OpenError::from_redb(dir.to_owned(), error))?;
    drop(database);
    std::fs::rename(&new, path).map_err(io_error)?;
    sync_folder(dir).map_err(io_error)
}

fn write_format(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let mut tables = WriteTables::open(&transaction)?;
    tables.meta.insert(meta::FORMAT, FORMAT)?;
    drop(tables);
    transaction.commit()?;
    Ok(())
}

fn damaged(dir: &Path, what: &str) -> OpenError {
    OpenError::Damaged {
        dir: dir.to_owned(),
        source: Box::new(InvalidData(what.to_owned())),
    }
}

/// Refuses unknown formats before any write.
fn check_format(dir: &Path, database: &Database) -> Result<(), OpenError> {
    let found =
        stored_format(database).map_err(|error| OpenError::from_redb(dir.to_owned(), error))?;
    match found {
        Format::Fresh | Format::Number(FORMAT) => Ok(()),
        Format::Number(found) if found > FORMAT => Err(OpenError::TooNew {
            dir: dir.to_owned(),
            found,
            known: FORMAT,
        }),
        Format::Number(_) | Format::Foreign => {
            Err(damaged(dir, "it was written by another program"))
        }
    }
}

enum Format {
    /// Nothing was written yet.
    Fresh,
    /// The state belongs to this program.
    Number(u64),
    /// The file belongs to another program.
    Foreign,
}

fn stored_format(database: &Database) -> Result<Format, redb::Error> {
    let transaction = database.begin_read()?;
    if transaction.list_tables()?.next().is_none() {
        return Ok(Format::Fresh);
    }
    match transaction.open_table(super::tables::META) {
        Ok(table) => {
            let number = table.get(meta::FORMAT)?.map(|number| number.value());
            Ok(number.map_or(Format::Foreign, Format::Number))
        }
        Err(redb::TableError::Storage(error)) => Err(error.into()),
        Err(_) => Ok(Format::Foreign),
    }
}

fn read_meta(database: Database, first: bool) -> Result<Opened, redb::Error> {
    if first {
        let transaction = database.begin_write()?;
        let mut tables = WriteTables::open(&transaction)?;
        tables.meta.insert(meta::FORMAT, FORMAT)?;
        drop(tables);
        transaction.commit()?;
    }
    let transaction = database.begin_read()?;
    let tables = ReadTables::open(&transaction)?;
    let number = |key| tables.meta.get(key).map(|n| n.map_or(0, |n| n.value()));
    let commits = number(meta::COMMITS)?;
    let garbage = !tables.garbage.is_empty()?;
    let listened_to = tables
        .listeners
        .iter()?
        .map(|row| row.map(|(hub, state)| (hub.value().to_owned(), state.value().to_owned())))
        .collect::<Result<_, _>>()?;
    drop((tables, transaction));
    Ok(Opened {
        database,
        commits,
        garbage,
        listened_to,
    })
}

/// Makes the name of a new file durable, and the name of the file's folder.
fn sync_folder(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
        if let Some(parent) = dir.parent().filter(|parent| *parent != Path::new("")) {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}
