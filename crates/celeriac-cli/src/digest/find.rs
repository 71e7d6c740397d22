//! Which files are documents, and which are left alone, each with its reason.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::document::{Document, Format, parse};
use super::report;

/// How much is looked at.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Documents taken; those after are counted and left out. Default 10,000.
    pub documents_max: usize,
    /// The largest file that is read, in bytes. Default 8 MiB.
    pub file_bytes_max: u64,
    /// Folder entries looked at, of any kind; the walk ends there. Default 1,000,000.
    pub entries_max: usize,
    /// How many folders deep the walk goes. Default 64.
    pub depth_max: usize,
    /// How many skipped files are listed with a reason; the rest is counted. Default 1,000.
    pub skipped_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            documents_max: 10_000,
            file_bytes_max: 8 << 20,
            entries_max: 1_000_000,
            depth_max: 64,
            skipped_max: 1_000,
        }
    }
}

/// What a walk found, in the order of names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Found {
    /// The documents to read.
    pub sources: Vec<Source>,
    /// What looked like a document or a folder of them and is not taken.
    pub skipped: Vec<Skipped>,
    /// Further skipped files, beyond [`Limits::skipped_max`].
    pub skipped_unlisted: usize,
    /// Documents beyond [`Limits::documents_max`].
    pub left_out: usize,
    /// The walk ended at [`Limits::entries_max`]; there may be more documents that nobody has counted.
    pub cut_short: bool,
}

impl Found {
    /// Notes a file that is not taken, within the bound on the list.
    pub fn skip(&mut self, name: impl Into<String>, reason: Skip, limits: &Limits) {
        if self.skipped.len() < limits.skipped_max {
            self.skipped.push(Skipped { name: name.into(), reason });
        } else {
            self.skipped_unlisted += 1;
        }
    }
}

/// A file that is probably a document; it has not been opened yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Its path below the folder that was walked, with `/` between the parts: what people are shown.
    pub name: String,
    /// How it is written.
    pub format: Format,
}

/// A file that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// As [`Source::name`].
    pub name: String,
    /// Why.
    pub reason: Skip,
}

/// Why a file is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Skip {
    /// It is larger than the bound.
    TooLarge {
        /// The bound, in bytes.
        bytes_max: u64,
    },
    /// It holds zero bytes, as no text does.
    Binary,
    /// It is not UTF-8.
    NotUtf8 {
        /// The offset of the first byte that is not.
        at: usize,
    },
    /// Its name is not UTF-8, so it cannot travel in a message.
    NameNotUtf8,
    /// There is no text in it.
    Empty,
    /// It is a report that an earlier run wrote.
    OwnReport,
    /// It is a symbolic link. Links are not followed: that is what makes loops and double reads impossible.
    Link,
    /// It is a pipe, a socket or a device, on which reading could wait for ever.
    NotAFile,
    /// The folder lies too deep.
    TooDeep {
        /// The bound, in folders.
        depth_max: usize,
    },
    /// The system refused.
    Unreadable {
        /// Its words.
        error: String,
    },
}

impl Skip {
    fn unreadable(error: &std::io::Error) -> Self {
        Self::Unreadable { error: error.to_string() }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes_max } => write!(f, "larger than {bytes_max} bytes"),
            Self::Binary => f.write_str("binary"),
            Self::NotUtf8 { at } => write!(f, "not UTF-8 at byte {at}"),
            Self::NameNotUtf8 => f.write_str("its name is not UTF-8"),
            Self::Empty => f.write_str("no text in it"),
            Self::OwnReport => f.write_str("a digest written by celeriac"),
            Self::Link => f.write_str("a symbolic link"),
            Self::NotAFile => f.write_str("not a regular file"),
            Self::TooDeep { depth_max } => write!(f, "more than {depth_max} folders deep"),
            Self::Unreadable { error } => write!(f, "unreadable: {error}"),
        }
    }
}

/// The documents under `root`, which is a folder or one file; a single file is taken whatever its name ends with.
///
/// Hidden folders and those that hold other people's or generated files (`target`, `node_modules`, …) are passed over.
///
/// # Errors
/// `root` cannot be looked at. Trouble below it is in [`Found::skipped`].
pub fn find(root: &Path, limits: &Limits) -> anyhow::Result<Found> {
    let metadata = fs::metadata(root)
        .with_context(|| format!("cannot look at {}; give a document or a folder of them", root.display()))?;
    let mut found = Found::default();
    if !metadata.is_dir() {
        anyhow::ensure!(metadata.is_file(), "{} is neither a file nor a folder", root.display());
        let name = root.file_name().unwrap_or(root.as_os_str()).to_string_lossy().into_owned();
        let format = Format::of(&name).unwrap_or(Format::Plain);
        take(&mut found, root.to_owned(), name, format, limits);
        return Ok(found);
    }

    // Depth first with the children pushed in reverse, so that what a bound cuts off is always the end of one order.
    let mut waiting = vec![(root.to_owned(), String::new(), 0)];
    let mut looked_at = 0;
    while let Some((path, name, depth)) = waiting.pop() {
        if name.is_empty() || is_folder(&path) {
            if depth > limits.depth_max {
                found.skip(name, Skip::TooDeep { depth_max: limits.depth_max }, limits);
                continue;
            }
            match children(&path, limits.entries_max.saturating_sub(looked_at)) {
                Ok((children, all)) => {
                    looked_at += children.len();
                    found.cut_short |= !all;
                    for child in children.into_iter().rev() {
                        let child_name =
                            if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                        waiting.push((path.join(&child), child_name, depth + 1));
                    }
                }
                Err(error) if name.is_empty() => {
                    return Err(error).with_context(|| format!("cannot list {}", root.display()));
                }
                Err(error) => found.skip(name, Skip::unreadable(&error), limits),
            }
        } else if let Some(format) = Format::of(&name) {
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => found.skip(name, Skip::Link, limits),
                Ok(metadata) if !metadata.is_file() => found.skip(name, Skip::NotAFile, limits),
                Ok(metadata) if metadata.len() > limits.file_bytes_max => {
                    found.skip(name, Skip::TooLarge { bytes_max: limits.file_bytes_max }, limits);
                }
                Ok(_) => take(&mut found, path, name, format, limits),
                // Nothing is there under the name with its bad bytes replaced.
                Err(_) if name.contains(char::REPLACEMENT_CHARACTER) => {
                    found.skip(name, Skip::NameNotUtf8, limits);
                }
                Err(error) => found.skip(name, Skip::unreadable(&error), limits),
            }
        }
    }
    Ok(found)
}

fn take(found: &mut Found, path: PathBuf, name: String, format: Format, limits: &Limits) {
    if path.to_str().is_none() {
        found.skip(name, Skip::NameNotUtf8, limits);
    } else if found.sources.len() < limits.documents_max {
        found.sources.push(Source { path, name, format });
    } else {
        found.left_out += 1;
    }
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// The names in a folder that are worth a look, sorted, and whether these are all.
fn children(folder: &Path, max: usize) -> std::io::Result<(Vec<String>, bool)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if names.len() == max {
            names.sort_unstable();
            return Ok((names, false));
        }
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !PASSED_OVER.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok((names, true))
}

const PASSED_OVER: [&str; 5] = ["target", "node_modules", "__pycache__", "venv", "site-packages"];

impl Source {
    /// Reads the document and splits it.
    ///
    /// # Errors
    /// Why it is left alone.
    pub fn read(&self, limits: &Limits) -> Result<Document, Skip> {
        // Asked before opening: to open a pipe would wait for its writer.
        let metadata = fs::metadata(&self.path).map_err(|error| Skip::unreadable(&error))?;
        if !metadata.is_file() {
            return Err(Skip::NotAFile);
        }
        let file = fs::File::open(&self.path).map_err(|error| Skip::unreadable(&error))?;
        let mut bytes = Vec::new();
        // One byte more than allowed, since a file may have grown after it was looked at.
        let read = file.take(limits.file_bytes_max.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| Skip::unreadable(&error))?;
        if bytes.len() as u64 > limits.file_bytes_max {
            return Err(Skip::TooLarge { bytes_max: limits.file_bytes_max });
        }
        if bytes.contains(&0) {
            return Err(Skip::Binary);
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| Skip::NotUtf8 { at: error.utf8_error().valid_up_to() })?;
        if text.starts_with(report::MARK) {
            return Err(Skip::OwnReport);
        }
        let document = parse(&self.name, self.format, &text);
        if document.sections.is_empty() { Err(Skip::Empty) } else { Ok(document) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn names(found: &Found) -> Vec<&str> {
        found.sources.iter().map(|source| source.name.as_str()).collect()
    }

    #[test]
    fn takes_documents_in_order_and_passes_over_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "b.md",
            "a.TXT",
            "docs/z.rst",
            "docs/a/page.html",
            "code.rs",
            ".git/x.md",
            ".hidden/y.md",
            "target/doc/t.md",
            "node_modules/left-pad/README.md",
        ] {
            write(folder.path(), name, "Some text.");
        }
        let found = find(folder.path(), &Limits::default()).unwrap();
        assert_eq!(names(&found), ["a.TXT", "b.md", "docs/a/page.html", "docs/z.rst"]);
        assert!(found.skipped.is_empty() && found.left_out == 0 && !found.cut_short);
    }

    #[test]
    fn a_single_file_is_taken_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "notes", "Some text.");
        let found = find(&folder.path().join("notes"), &Limits::default()).unwrap();
        assert_eq!(names(&found), ["notes"]);
        assert_eq!(found.sources[0].format, Format::Plain);
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = find(Path::new("/no/such/folder"), &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"), "{error}");
    }

    #[test]
    fn bounds_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.md", "b.md", "c.md", "d/e.md"] {
            write(folder.path(), name, "Some text.");
        }
        write(folder.path(), "large.md", vec![b'x'; 65]);
        let limits = Limits { documents_max: 2, file_bytes_max: 64, ..Limits::default() };
        let found = find(folder.path(), &limits).unwrap();
        assert_eq!(names(&found), ["a.md", "b.md"]);
        assert_eq!(found.left_out, 2);
        assert_eq!(
            found.skipped,
            [Skipped { name: "large.md".into(), reason: Skip::TooLarge { bytes_max: 64 } }]
        );

        let found = find(folder.path(), &Limits { entries_max: 3, ..Limits::default() }).unwrap();
        assert!(found.cut_short);
        let found =
            find(folder.path(), &Limits { depth_max: 0, skipped_max: 0, ..Limits::default() }).unwrap();
        assert_eq!((found.skipped.len(), found.skipped_unlisted), (0, 1));
        assert!(!names(&found).contains(&"d/e.md"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "sub/a.md", "Some text.");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("sub/loop.md")).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("sub/again")).unwrap();
        let found = find(folder.path(), &Limits::default()).unwrap();
        assert_eq!(names(&found), ["sub/a.md"]);
        assert_eq!(found.skipped, [Skipped { name: "sub/loop.md".into(), reason: Skip::Link }]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_cannot_travel_is_reported() {
        use std::os::unix::ffi::OsStrExt as _;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"a\xff.md")), "Some text.").unwrap();
        let found = find(folder.path(), &Limits::default()).unwrap();
        assert_eq!(found.skipped, [Skipped { name: "a\u{fffd}.md".into(), reason: Skip::NameNotUtf8 }]);
    }

    #[test]
    fn unreadable_content_has_a_reason() {
        let check = |content: &[u8], expected: Skip| {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), "a.md", content);
            let found = find(folder.path(), &Limits::default()).unwrap();
            let limits = Limits { file_bytes_max: 200, ..Limits::default() };
            assert_eq!(found.sources[0].read(&limits).unwrap_err(), expected);
        };
        check(b"ab\xffcd", Skip::NotUtf8 { at: 2 });
        check(b"ab\0cd", Skip::Binary);
        check(b" \n\n```\ncode\n```\n", Skip::Empty);
        check(&[b'x'; 201], Skip::TooLarge { bytes_max: 200 });
        check(format!("{}\n# Digest\n", report::MARK).as_bytes(), Skip::OwnReport);
    }
}
