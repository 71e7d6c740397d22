//! Names where a letter may have a meaning of its own: in paths and in JSON pointers.

/// A name as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

/// A name as part of a JSON pointer.
pub(crate) fn pointer(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_part() {
        assert_eq!(segment("a-b.c~d"), "a-b.c~d");
        assert_eq!(segment("a/b {é}?"), "a%2Fb%20%7B%C3%A9%7D%3F");
        assert_eq!(pointer("a/b~c"), "a~1b~0c");
    }
}
