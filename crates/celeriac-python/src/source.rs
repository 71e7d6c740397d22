//! The Python half, carried in the program for interpreters that do not have the package `celeriac`.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../python/", $path)))),*]
    };
}

const SOURCES: &[(&str, &str)] = sources![
    "celeriac/__init__.py",
    "celeriac/_kombu.py",
    "celeriac/_link.py",
    "celeriac/_task.py",
    "celeriac/backend.py",
    "celeriac/transport.py",
    "celeriac/_worker/__init__.py",
    "celeriac/_worker/application.py",
    "celeriac/_worker/beat.py",
    "celeriac/_worker/child.py",
    "celeriac/_worker/crowd.py",
    "celeriac/_worker/errback.py",
    "celeriac/_worker/interrupt.py",
    "celeriac/_worker/report.py",
    "celeriac/_worker/schema.py",
    "celeriac/_worker/signature.py",
    "celeriac/_worker/store.py",
    "celeriac/_worker/system.py",
    "celeriac/_worker/verdicts.py",
    "celeriac/_worker/wire.py",
    "celeriac/_worker/writer.py",
    "celeriac/_worker/zygote.py",
];

/// What Python is told to run: with the package it finds, or else the copy in the folder it is given.
pub(crate) const BOOT: &str =
    "import sys; sys.path.append(sys.argv.pop(1)); from celeriac._worker.zygote import main; main()";

/// The same for beat.
pub(crate) const BOOT_BEAT: &str =
    "import sys; sys.path.append(sys.argv.pop(1)); from celeriac._worker.beat import main; main()";

/// What the folders are called.
const PREFIX: &str = "celeriac-sources-";
/// The file in each that its owner keeps locked while it lives.
const LOCK: &str = "lock";

/// The copy in a private folder, which goes when the value is dropped. That of a process that was killed goes when the next
/// copy is made by the same user.
#[derive(Debug)]
pub(crate) struct Source {
    // It goes before its lock.
    folder: TempDir,
    _lock: Option<File>,
}

impl Source {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Writes the copy.
pub(crate) fn unpack() -> io::Result<Source> {
    unpack_in(&std::env::temp_dir())
}

fn unpack_in(place: &Path) -> io::Result<Source> {
    sweep(place);
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
    let lock = hold(folder.path())?;
    for (path, text) in SOURCES {
        let path = folder.path().join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(Source { folder, _lock: lock })
}

/// Takes the lock of a folder, which the system gives up with this process. It has its name only then, so that nobody finds
/// it free before. `None` where the file system has no locks: such a folder is never swept.
fn hold(folder: &Path) -> io::Result<Option<File>> {
    let coming = folder.join("lock.coming");
    let lock = File::create_new(&coming)?;
    if lock.try_lock().is_err() {
        return Ok(None);
    }
    std::fs::rename(coming, folder.join(LOCK))?;
    Ok(Some(lock))
}

/// Removes the folders of this user whose owners are gone. What cannot be removed now is the next one's.
fn sweep(place: &Path) {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let path = entry.path();
        // Of the entry itself: a link to a folder is none.
        let is_own = entry
            .metadata()
            .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw());
        if !is_own {
            continue;
        }
        // Kept while the folder goes: who else sweeps leaves it alone.
        if let Ok(lock) = File::open(path.join(LOCK))
            && lock.try_lock().is_ok()
        {
            tracing::debug!(folder = %path.display(), "left behind by a process that was killed, removed");
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_package_is_carried() {
        let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/celeriac/_worker");
        let mut found: Vec<String> = std::fs::read_dir(package)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".py"))
            .map(|name| format!("celeriac/_worker/{name}"))
            .collect();
        found.sort();
        let carried: Vec<&str> =
            SOURCES.iter().map(|(path, _)| *path).filter(|path| path.contains("_worker")).collect();
        assert_eq!(carried, found);
        let source = unpack().unwrap();
        assert!(source.path().join("celeriac/_worker/zygote.py").is_file());
    }

    #[test]
    fn what_the_killed_leave_behind_is_swept_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let source = || unpack_in(place.path()).unwrap();
        let (alive, killed) = (source(), source());
        let left_behind = killed.path().to_owned();
        // As the system does it: the lock is given up, and nothing removed.
        let Source { folder, _lock: lock } = killed;
        let _ = folder.keep();
        drop(lock);
        // Not ours to judge: of another kind, without a lock, and a link to what has one.
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join(LOCK), "").unwrap();
        let link = place.path().join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        let others = ["celeriac-other", "celeriac-sources-no-lock"].map(|name| place.path().join(name));
        for other in &others {
            std::fs::create_dir(other).unwrap();
        }
        std::fs::write(others[0].join(LOCK), "").unwrap();

        assert!(left_behind.is_dir());
        let next = source();
        assert!(!left_behind.exists());
        assert!(alive.path().join("celeriac/_worker/zygote.py").is_file() && next.path().is_dir());
        assert!(others.iter().all(|other| other.is_dir()) && elsewhere.path().join(LOCK).is_file());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
