//! A client for HTTP.

/// A client to be configured. TLS is ring's, unless the program has chosen something else before.
pub(crate) fn client() -> reqwest::ClientBuilder {
    // Fails when there is a choice already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}
