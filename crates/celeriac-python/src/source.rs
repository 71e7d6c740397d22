//! The Python half, carried in the program for interpreters that do not have the package `celeriac`.

use std::io;

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

/// Writes the copy to a private folder, which goes when the value is dropped.
pub(crate) fn unpack() -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("celeriac-").tempdir()?;
    for (path, text) in SOURCES {
        let path = folder.path().join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(folder)
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
        let folder = unpack().unwrap();
        assert!(folder.path().join("celeriac/_worker/zygote.py").is_file());
    }
}
