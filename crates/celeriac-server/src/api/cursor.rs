//! Where a page goes on: a number, opaque to clients.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What [`write`] makes, for the description of the API.
pub(crate) const PATTERN: &str = "^[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048]$";

pub(crate) fn write(number: u64) -> String {
    URL_SAFE_NO_PAD.encode(number.to_be_bytes())
}

pub(crate) fn read(cursor: &str) -> Option<u64> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor.trim_end()).ok()?;
    // Stores count in signed numbers; nothing is beyond their largest.
    Some(u64::from_be_bytes(bytes.try_into().ok()?).min(i64::MAX.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for number in [0, 1, 255, 256, i64::MAX.unsigned_abs()] {
            assert_eq!(read(&write(number)), Some(number));
            assert_eq!(write(number).len(), 11);
        }
        for wrong in ["", "AAAAAAAAAAB", "AAAA", "not base64!", "AAAAAAAAAAAAAAAA"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
