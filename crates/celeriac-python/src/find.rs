//! Which Python runs the application.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The interpreter: the one that is named, else `CELERIAC_PYTHON`, the one beside this program (as in the environment that
/// a wheel was installed in), that of the active virtual environment, `python3` of the path.
///
/// # Errors
/// There is none.
pub fn interpreter(named: Option<&Path>) -> Result<PathBuf> {
    let program = std::env::current_exe().ok();
    find(named, program.as_deref(), |name| std::env::var_os(name).map(PathBuf::from))
}

fn find(
    named: Option<&Path>,
    program: Option<&Path>,
    environment: impl Fn(&str) -> Option<PathBuf>,
) -> Result<PathBuf> {
    let path = environment("PATH").unwrap_or_default();
    if let Some(named) = named {
        return lookup(named, &path)
            .ok_or_else(|| Error::NoInterpreter(format!("--python {} is not a program", named.display())));
    }
    if let Some(chosen) = environment("CELERIAC_PYTHON").filter(|chosen| !chosen.as_os_str().is_empty()) {
        return lookup(&chosen, &path).ok_or_else(|| {
            Error::NoInterpreter(format!("CELERIAC_PYTHON={} is not a program", chosen.display()))
        });
    }
    // Only in an environment of its own: the `python3` beside a program in /usr/bin is the system's.
    let beside = program
        .and_then(Path::parent)
        .filter(|folder| folder.parent().is_some_and(|environment| environment.join("pyvenv.cfg").is_file()));
    let active = environment("VIRTUAL_ENV").map(|environment| environment.join("bin"));
    for folder in beside.map(Path::to_owned).into_iter().chain(active) {
        for name in ["python3", "python"] {
            let candidate = folder.join(name);
            if is_program(&candidate) {
                return Ok(candidate);
            }
        }
    }
    ["python3", "python"].into_iter().find_map(|name| lookup(Path::new(name), &path)).ok_or_else(|| {
        Error::NoInterpreter(
            "there is no python3 on the path, and no virtual environment is active; name one by --python or CELERIAC_PYTHON"
                .to_owned(),
        )
    })
}

/// A program by its path, or by its name on `path`.
fn lookup(name: &Path, path: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return is_program(name).then(|| name.to_owned());
    }
    std::env::split_paths(path.as_os_str()).map(|folder| folder.join(name)).find(|found| is_program(found))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(path: &Path) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_owned()
    }

    #[test]
    fn the_nearest_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let system = program(&at("usr/python3"));
        let active = program(&at("active/bin/python"));
        let beside = program(&at("wheel/bin/python3"));
        let chosen = program(&at("chosen/pypy"));
        let celeriac = at("wheel/bin/celeriac");
        let environment = |names: &'static [&'static str]| {
            let values =
                [("PATH", at("usr")), ("VIRTUAL_ENV", at("active")), ("CELERIAC_PYTHON", at("chosen/pypy"))];
            move |name: &str| {
                values
                    .iter()
                    .find(|(known, _)| *known == name && names.contains(known))
                    .map(|(_, value)| value.clone())
            }
        };
        let found = |named: Option<&Path>, names| find(named, Some(&celeriac), environment(names)).unwrap();
        assert_eq!(found(None, &["PATH"]), system);
        assert_eq!(found(None, &["PATH", "VIRTUAL_ENV"]), active);
        std::fs::write(at("wheel/pyvenv.cfg"), "").unwrap();
        assert_eq!(found(None, &["PATH", "VIRTUAL_ENV"]), beside, "now it is in an environment");
        assert_eq!(found(None, &["PATH", "VIRTUAL_ENV", "CELERIAC_PYTHON"]), chosen);
        assert_eq!(found(Some(&system), &["CELERIAC_PYTHON"]), system);
        assert_eq!(found(Some(Path::new("python3")), &["PATH"]), system, "a name is looked up");
    }

    #[test]
    fn what_is_named_and_not_there_is_not_replaced() {
        let none = |_: &str| None;
        let error = find(Some(Path::new("/no/such/python")), None, none).unwrap_err().to_string();
        assert!(error.contains("--python") && error.contains("/no/such/python"), "{error}");
        let error = find(None, None, none).unwrap_err().to_string();
        assert!(error.contains("CELERIAC_PYTHON"), "{error}");
    }
}
