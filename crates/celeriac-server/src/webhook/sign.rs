//! The signature of a delivery.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The value of `Celeriac-Webhook-Signature`: what a receiver computes from the other two headers and the body as it came,
/// and compares in constant time.
#[must_use]
pub fn signature(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    let mut text = String::from("v1=");
    for byte in mac.finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_others_compute_it() {
        // printf '%s' 'msg_1.1767225600.{"state": "SUCCESS"}' | openssl dgst -sha256 -hmac 'secret-0123456789'
        let expected = "v1=e7342aa54d27eef1af34c670b54ac824eaf3ef54711893ac1ca984b89e0df07a";
        assert_eq!(
            signature("secret-0123456789", "msg_1", 1_767_225_600, b"{\"state\": \"SUCCESS\"}"),
            expected
        );
    }
}
