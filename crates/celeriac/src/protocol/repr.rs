//! Arguments as Python would print them, for the headers that people look at.

use super::{Json, JsonMap, scan};

/// The longest text of a header, in characters, as Celery's `argsrepr_maxsize`.
const CHARACTERS_MAX: usize = 1024;

/// The positional arguments as a tuple: `(2, 'a', None)`, cut at 1024 characters.
#[must_use]
pub fn args_repr(args: &[Json]) -> String {
    let mut out = Bounded::default();
    out.push("(");
    for (index, value) in args.iter().enumerate() {
        if index > 0 {
            out.push(", ");
        }
        if out.full {
            break;
        }
        value_repr(&mut out, value.as_str());
    }
    out.push(if args.len() == 1 { ",)" } else { ")" });
    out.finish()
}

/// The named arguments as a dict: `{'y': True}`, cut at 1024 characters.
#[must_use]
pub fn kwargs_repr(kwargs: &JsonMap) -> String {
    let mut out = Bounded::default();
    out.push("{");
    for (index, (key, value)) in kwargs.iter().enumerate() {
        entry_repr(&mut out, index, key, value.as_str());
        if out.full {
            break;
        }
    }
    out.push("}");
    out.finish()
}

/// One value: `{'a': [1, None]}`, cut at 1024 characters.
#[must_use]
pub fn python_repr(value: &Json) -> String {
    let mut out = Bounded::default();
    value_repr(&mut out, value.as_str());
    out.finish()
}

/// Takes text until it is full, so that large arguments cost no more than small ones.
#[derive(Default)]
struct Bounded {
    text: String,
    characters: usize,
    full: bool,
}

impl Bounded {
    fn push(&mut self, text: &str) {
        for character in text.chars() {
            if self.full {
                return;
            }
            // Room for the three points is made when they are needed.
            if self.characters == CHARACTERS_MAX {
                self.full = true;
                return;
            }
            self.text.push(character);
            self.characters += 1;
        }
    }

    fn finish(mut self) -> String {
        if self.full {
            for _ in 0..3 {
                self.text.pop();
            }
            self.text.push_str("...");
        }
        self.text
    }
}

fn value_repr(out: &mut Bounded, value: &str) {
    if out.full {
        return;
    }
    match value.as_bytes().first() {
        Some(b'n') => out.push("None"),
        Some(b't') => out.push("True"),
        Some(b'f') => out.push("False"),
        Some(b'N') => out.push("nan"),
        Some(b'I') => out.push("inf"),
        Some(b'"') => string_repr(out, &scan::string(value).unwrap_or_default()),
        Some(b'[') => {
            out.push("[");
            for (index, item) in scan::items(value).into_iter().flatten().flatten().enumerate() {
                if index > 0 {
                    out.push(", ");
                }
                value_repr(out, item);
                if out.full {
                    return;
                }
            }
            out.push("]");
        }
        Some(b'{') => {
            out.push("{");
            for (index, (key, item)) in scan::entries(value).into_iter().flatten().flatten().enumerate() {
                entry_repr(out, index, &key, item);
                if out.full {
                    return;
                }
            }
            out.push("}");
        }
        _ => out.push(if value == "-Infinity" { "-inf" } else { value }),
    }
}

fn entry_repr(out: &mut Bounded, index: usize, key: &str, value: &str) {
    if index > 0 {
        out.push(", ");
    }
    string_repr(out, key);
    out.push(": ");
    value_repr(out, value);
}

/// Quoted as Python does: in double quotes only when there is a single one inside and no double one.
fn string_repr(out: &mut Bounded, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { "\"" } else { "'" };
    out.push(quote);
    for character in text.chars() {
        if out.full {
            return;
        }
        match character {
            '\\' => out.push("\\\\"),
            '\'' if quote == "'" => out.push("\\'"),
            '\n' => out.push("\\n"),
            '\r' => out.push("\\r"),
            '\t' => out.push("\\t"),
            '\0'..=' ' | '\u{7f}'..='\u{a0}' if character != ' ' => {
                out.push(&format!("\\x{:02x}", u32::from(character)));
            }
            _ => out.push(character.encode_utf8(&mut [0; 4])),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_like_python() {
        let args = |text: &str| args_repr(&Json::parse(text).unwrap().array_items().unwrap());
        assert_eq!(args("[2, 3]"), "(2, 3)");
        assert_eq!(args("[2]"), "(2,)");
        assert_eq!(args("[]"), "()");
        assert_eq!(args(r#"["a'b", "a\"'b", "\n\u0001é", -1.5]"#), r#"("a'b", 'a"\'b', '\n\x01é', -1.5)"#);
        let kwargs =
            Json::parse(r#"{"a": null, "b": true, "c": [false, NaN, -Infinity, {"d": {}}]}"#).unwrap();
        let kwargs = kwargs.entries().unwrap();
        assert_eq!(kwargs_repr(&kwargs), "{'a': None, 'b': True, 'c': [False, nan, -inf, {'d': {}}]}");
        assert_eq!(python_repr(&kwargs.to_json()), kwargs_repr(&kwargs));
    }

    #[test]
    fn is_cut() {
        for length in [1020, 1021, 1022, 5000] {
            let text = args_repr(&[Json::string(&"é".repeat(length))]);
            // Five characters stand around the text: `('` and `',)`.
            assert_eq!(text.chars().count(), (length + 5).min(1024), "{length}");
            assert_eq!(text.ends_with("..."), length + 5 > 1024, "{length}");
        }
        let long = args_repr(&vec![Json::null(); 100_000]);
        assert_eq!((long.chars().count(), &long[1021..]), (1024, "..."));
    }
}
