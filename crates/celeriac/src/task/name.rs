//! The name of a task that was given none: where its function stands, as Python would write it. `my_app::tasks` and
//! `digest` make `my_app.tasks.digest`, when the program is compiled.

/// How many bytes the name has.
#[must_use]
pub const fn length(module: &str, function: &str) -> usize {
    let module = module.as_bytes();
    let mut length = function.len() + 1;
    let mut at = 0;
    while at < module.len() {
        length += 1;
        at += if separates(module, at) { 2 } else { 1 };
    }
    length
}

/// The name. `N` is its [`length`].
#[must_use]
pub const fn bytes<const N: usize>(module: &str, function: &str) -> [u8; N] {
    let (module, function) = (module.as_bytes(), function.as_bytes());
    let mut name = [b'.'; N];
    let (mut at, mut end) = (0, 0);
    while at < module.len() {
        if separates(module, at) {
            at += 2;
        } else {
            name[end] = module[at];
            at += 1;
        }
        end += 1;
    }
    end += 1;
    at = 0;
    while at < function.len() {
        name[end + at] = function[at];
        at += 1;
    }
    name
}

/// The name as text.
#[must_use]
pub const fn text(name: &[u8]) -> &str {
    match core::str::from_utf8(name) {
        Ok(name) => name,
        Err(_) => panic!("only whole `::` were replaced in what was UTF-8"),
    }
}

const fn separates(module: &[u8], at: usize) -> bool {
    module[at] == b':' && at + 1 < module.len() && module[at + 1] == b':'
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! name {
        ($module:literal, $function:literal) => {{
            const BYTES: [u8; length($module, $function)] = bytes($module, $function);
            text(&BYTES)
        }};
    }

    #[test]
    fn names_are_written_as_python_writes_them() {
        assert_eq!(name!("app", "add"), "app.add");
        assert_eq!(name!("my_app::tasks::mail", "send"), "my_app.tasks.mail.send");
        assert_eq!(name!("größe::å", "add"), "größe.å.add");
    }
}
