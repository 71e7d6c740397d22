//! Content types and compressions: bytes of a body to JSON text and back.

use std::borrow::Cow;

use bytes::Bytes;

use super::{DecodeError, msgpack, yaml};

pub use super::compression::Compression;

/// What a body is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Serializer {
    /// `application/json`, what Celery uses unless told otherwise.
    Json,
    /// `application/x-msgpack`.
    Msgpack,
    /// `application/x-yaml`; needs the feature `yaml`.
    Yaml,
}

impl Serializer {
    /// The content type of the envelope.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Msgpack => "application/x-msgpack",
            Self::Yaml => "application/x-yaml",
        }
    }

    /// The content encoding of the envelope.
    #[must_use]
    pub fn content_encoding(self) -> &'static str {
        match self {
            Self::Json | Self::Yaml => "utf-8",
            Self::Msgpack => "binary",
        }
    }

    /// The serializer of a content type.
    ///
    /// # Errors
    /// It is one that is never read, or that carries no arguments.
    pub fn from_content_type(name: &str) -> Result<Self, DecodeError> {
        let remedy = match name {
            "application/json" => return Ok(Self::Json),
            "application/x-msgpack" => return Ok(Self::Msgpack),
            "application/x-yaml" => return Ok(Self::Yaml),
            "application/x-python-serialize" | "application/x-python" => {
                "pickle can run any code, so it is never read; set task_serializer to json in the producer"
            }
            "application/data" | "application/text" | "text/plain" => {
                "raw bytes and text carry no arguments; set task_serializer to json in the producer"
            }
            _ => "use application/json, application/x-msgpack or application/x-yaml",
        };
        Err(DecodeError::ContentType { content_type: name.to_owned(), remedy })
    }

    /// The serializer under Celery's name for it: `json`, `msgpack`, `yaml`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "msgpack" => Some(Self::Msgpack),
            "yaml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// The content type an envelope names.
pub(super) struct ContentType<'a> {
    pub(super) name: &'a str,
    pub(super) encoding: Option<&'a str>,
}

/// The JSON text of a body, without space around it; its syntax is checked where it is read.
pub(super) fn decode<'a>(
    content: &ContentType<'_>,
    compression: Option<&str>,
    body: &'a [u8],
) -> Result<Cow<'a, str>, DecodeError> {
    let serializer = Serializer::from_content_type(content.name)?;
    if let Some(encoding) = content.encoding {
        let known = ["utf-8", "utf8", "us-ascii", "ascii", "binary"];
        if !known.iter().any(|name| name.eq_ignore_ascii_case(encoding)) {
            let why = format_args!("{encoding} is not read; send utf-8");
            return Err(DecodeError::invalid("content-encoding", why));
        }
    }
    match compression {
        None => deserialize(serializer, body),
        Some(name) => {
            let plain = Compression::from_name(name)?.decompress(body)?;
            Ok(Cow::Owned(deserialize(serializer, &plain)?.into_owned()))
        }
    }
}

pub(super) fn encode(
    serializer: Serializer,
    compression: Option<Compression>,
    json: String,
) -> Result<Bytes, DecodeError> {
    let plain = serialize(serializer, json)?;
    match compression {
        None => Ok(plain),
        Some(compression) => compression.compress(&plain).map(Bytes::from),
    }
}

pub(super) fn deserialize(serializer: Serializer, bytes: &[u8]) -> Result<Cow<'_, str>, DecodeError> {
    let utf8 = || std::str::from_utf8(bytes).map_err(|why| DecodeError::invalid("body", why));
    match serializer {
        Serializer::Json => Ok(Cow::Borrowed(utf8()?.trim_matches([' ', '\t', '\n', '\r']))),
        Serializer::Msgpack => msgpack::to_json(bytes).map(Cow::Owned),
        Serializer::Yaml => yaml::to_json(utf8()?).map(Cow::Owned),
    }
}

pub(super) fn serialize(serializer: Serializer, json: String) -> Result<Bytes, DecodeError> {
    match serializer {
        Serializer::Json => Ok(Bytes::from(json)),
        Serializer::Msgpack => msgpack::from_json(&json).map(Bytes::from),
        Serializer::Yaml => yaml::from_json(&json).map(Bytes::from),
    }
}

/// In front of a compressed result, as nothing else says that it is one.
const MARKER: &[u8] = b"\0celery-compressed\0";

/// Takes the compression off a result that is marked as compressed.
pub(super) fn decompress_marked(bytes: &[u8]) -> Result<Cow<'_, [u8]>, DecodeError> {
    let Some(rest) = bytes.strip_prefix(MARKER) else { return Ok(Cow::Borrowed(bytes)) };
    let name_ends = rest.iter().position(|byte| *byte == 0);
    let name_ends =
        name_ends.ok_or_else(|| DecodeError::invalid("result meta", "the compression has no name"))?;
    let name = String::from_utf8_lossy(&rest[..name_ends]);
    Compression::from_name(&name)?.decompress(&rest[name_ends + 1..]).map(Cow::Owned)
}

pub(super) fn compress_marked(compression: Option<Compression>, plain: Bytes) -> Result<Bytes, DecodeError> {
    let Some(compression) = compression else { return Ok(plain) };
    let mut out = MARKER.to_vec();
    out.extend_from_slice(compression.content_type().as_bytes());
    out.push(0);
    out.extend(compression.compress(&plain)?);
    Ok(Bytes::from(out))
}
