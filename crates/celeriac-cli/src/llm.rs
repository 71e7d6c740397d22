//! A client of OpenAI-compatible endpoints, as far as the demonstration needs it: one streamed chat completion.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};

/// The longest text taken from an endpoint; what comes after is left out.
use crate::http;

const TEXT_BYTES_MAX: usize = 16 * 1024;
/// The longest line of a stream; an endpoint that sends more is not one.
const LINE_BYTES_MAX: usize = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the endpoint may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// Why an endpoint gave no text.
#[derive(Debug)]
pub(crate) struct Problem(String);

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Problem {}

/// Asks the endpoint at `base` (as `http://127.0.0.1:8080/v1`) and hands each piece of its answer to `token` as it comes.
/// The key, if one is needed, is that of `OPENAI_API_KEY`; it never travels in a message.
pub(crate) async fn complete<F: Future<Output = ()>>(
    base: &str,
    model: &str,
    prompt: &str,
    mut token: impl FnMut(String) -> F,
) -> Result<String, Problem> {
    let problem = |what: &dyn std::fmt::Display| Problem(format!("{base}: {what}"));
    let client = client().map_err(|error| problem(&error))?;
    let mut request = client.post(format!("{}/chat/completions", base.trim_end_matches('/'))).json(&json!({
        "model": model,
        "stream": true,
        "messages": [{ "role": "user", "content": prompt }],
    }));
    if let Ok(key) = std::env::var("OPENAI_API_KEY") {
        request = request.bearer_auth(key);
    }
    let mut response = request.send().await.map_err(|error| problem(&error))?;
    if !response.status().is_success() {
        return Err(problem(&format_args!("answered {}", response.status())));
    }
    let mut text = String::new();
    let mut pending: Vec<u8> = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| problem(&error))? {
        pending.extend_from_slice(&chunk);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match read(&line) {
                Line::Done => return Ok(text),
                Line::Text(piece) if text.len() + piece.len() <= TEXT_BYTES_MAX => {
                    text.push_str(&piece);
                    token(piece).await;
                }
                Line::Text(_) => return Ok(text),
                Line::Other => {}
            }
        }
        if pending.len() > LINE_BYTES_MAX {
            return Err(problem(&"sent a line without end"));
        }
    }
    // A stream that stops without its last line was cut.
    Err(problem(&"the stream ended early"))
}

/// What a line of a stream says.
#[derive(Debug, PartialEq)]
enum Line {
    Text(String),
    Done,
    Other,
}

fn read(line: &[u8]) -> Line {
    let Some(data) = std::str::from_utf8(line).ok().and_then(|line| line.trim().strip_prefix("data:")) else {
        return Line::Other;
    };
    if data.trim() == "[DONE]" {
        return Line::Done;
    }
    let document: Value = serde_json::from_str(data).unwrap_or_default();
    match document["choices"][0]["delta"]["content"].as_str() {
        Some(text) if !text.is_empty() => Line::Text(text.to_owned()),
        _ => Line::Other,
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    http::client().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_stream() {
        let delta = br#"data: {"choices": [{"delta": {"content": "Hi"}}]}"#;
        assert_eq!(read(delta), Line::Text("Hi".to_owned()));
        assert_eq!(read(b"data: [DONE]\r\n"), Line::Done);
        for other in [&b": comment"[..], b"", b"data: {", b"data: {\"choices\": []}", b"event: x", b"\xff"] {
            assert_eq!(read(other), Line::Other);
        }
    }
}
