//! Compressed bodies, under kombu's names. Needs the feature `compression`; without it they are refused by name.

use super::DecodeError;

/// The largest size a body may have once it is decompressed: a small message must not fill the memory.
#[cfg(feature = "compression")]
pub(super) const DECOMPRESSED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A zlib stream (RFC 1950), which kombu calls `application/x-gzip`.
    Zlib,
    /// bzip2.
    Bzip2,
    /// An xz container, which kombu calls `application/x-lzma`.
    Xz,
    /// A zstd frame that says how large its content is; older readers in Python insist on that.
    Zstd,
    /// Brotli.
    Brotli,
}

impl Compression {
    /// The value of the header `compression`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Zlib => "application/x-gzip",
            Self::Bzip2 => "application/x-bz2",
            Self::Xz => "application/x-lzma",
            Self::Zstd => "application/zstd",
            Self::Brotli => "application/x-brotli",
        }
    }

    /// The compression under its content type or any name of Celery's setting.
    ///
    /// # Errors
    /// The name is not known.
    pub fn from_name(name: &str) -> Result<Self, DecodeError> {
        match name {
            "application/x-gzip" | "gzip" | "zlib" => Ok(Self::Zlib),
            "application/x-bz2" | "bzip2" | "bzip" => Ok(Self::Bzip2),
            "application/x-lzma" | "lzma" | "xz" => Ok(Self::Xz),
            "application/zstd" | "zstd" | "zstandard" => Ok(Self::Zstd),
            "application/x-brotli" | "brotli" => Ok(Self::Brotli),
            _ => Err(DecodeError::Compression {
                compression: name.to_owned(),
                remedy: "use gzip, bzip2, lzma, zstd or brotli",
            }),
        }
    }

    #[cfg(not(feature = "compression"))]
    fn missing(self) -> DecodeError {
        DecodeError::Compression {
            compression: self.content_type().to_owned(),
            remedy: "build with the feature `compression`, or set task_compression to None in the producer",
        }
    }

    #[cfg(not(feature = "compression"))]
    pub(super) fn compress(self, _plain: &[u8]) -> Result<Vec<u8>, DecodeError> {
        Err(self.missing())
    }

    #[cfg(not(feature = "compression"))]
    pub(super) fn decompress(self, _bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
        Err(self.missing())
    }
}

#[cfg(feature = "compression")]
mod codecs {
    use std::io::{Read, Write};

    use super::{Compression, DECOMPRESSED_BYTES_MAX, DecodeError};

    impl Compression {
        pub(in super::super) fn compress(self, plain: &[u8]) -> Result<Vec<u8>, DecodeError> {
            self.try_compress(plain).map_err(|why| DecodeError::invalid("body", why))
        }

        fn try_compress(self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
            match self {
                Self::Zlib => {
                    let mut writer =
                        flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                    writer.write_all(plain)?;
                    writer.finish()
                }
                Self::Bzip2 => {
                    let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                    writer.write_all(plain)?;
                    writer.finish()
                }
                Self::Xz => {
                    let mut writer =
                        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(6))?;
                    writer.write_all(plain)?;
                    writer.finish()
                }
                // In one call, so that the frame carries the size of its content.
                Self::Zstd => zstd::bulk::compress(plain, zstd::DEFAULT_COMPRESSION_LEVEL),
                Self::Brotli => {
                    let mut out = Vec::new();
                    let params = brotli::enc::BrotliEncoderParams::default();
                    brotli::BrotliCompress(&mut &*plain, &mut out, &params)?;
                    Ok(out)
                }
            }
        }

        pub(in super::super) fn decompress(self, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
            let plain = match self {
                Self::Zlib => bounded(flate2::read::ZlibDecoder::new(bytes)),
                Self::Bzip2 => bounded(bzip2::read::BzDecoder::new(bytes)),
                Self::Xz => bounded(lzma_rust2::XzReader::new(bytes, true)),
                Self::Zstd => zstd::stream::read::Decoder::new(bytes).and_then(bounded),
                Self::Brotli => bounded(brotli::Decompressor::new(bytes, 4096)),
            };
            let plain = plain.map_err(|why| {
                DecodeError::invalid("body", format_args!("{}: {why}", self.content_type()))
            })?;
            if plain.len() > DECOMPRESSED_BYTES_MAX {
                return Err(DecodeError::TooLarge {
                    part: "the decompressed body",
                    bound: DECOMPRESSED_BYTES_MAX,
                });
            }
            Ok(plain)
        }
    }

    /// Reads one byte more than allowed, which tells too much from just enough.
    fn bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        reader.take(DECOMPRESSED_BYTES_MAX as u64 + 1).read_to_end(&mut plain)?;
        Ok(plain)
    }
}

#[cfg(all(test, feature = "compression"))]
mod tests {
    use super::*;

    const ALL: [Compression; 5] =
        [Compression::Zlib, Compression::Bzip2, Compression::Xz, Compression::Zstd, Compression::Brotli];

    #[test]
    fn round_trips() {
        let plain = b"[[2, 3], {}, {}] and so on, and so on, and so on";
        for compression in ALL {
            let bytes = compression.compress(plain).unwrap();
            assert_eq!(compression.decompress(&bytes).unwrap(), plain, "{compression:?}");
            assert!(compression.decompress(b"no such stream").is_err(), "{compression:?}");
            assert_eq!(Compression::from_name(compression.content_type()).unwrap(), compression);
        }
    }

    #[test]
    fn bombs_are_refused() {
        let plain = vec![b' '; DECOMPRESSED_BYTES_MAX + 1];
        for compression in [Compression::Zlib, Compression::Zstd] {
            let bytes = compression.compress(&plain).unwrap();
            let why = compression.decompress(&bytes).unwrap_err();
            assert!(matches!(why, DecodeError::TooLarge { .. }), "{compression:?}: {why}");
            let just = compression.compress(&plain[1..]).unwrap();
            assert_eq!(compression.decompress(&just).unwrap().len(), DECOMPRESSED_BYTES_MAX);
        }
    }

    #[test]
    fn zstd_frames_name_their_size() {
        let bytes = Compression::Zstd.compress(b"abcabcabc").unwrap();
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&bytes).unwrap(), Some(9));
    }
}
