//! Frames between the supervisor and its Python processes: `length: u32, kind: u8, call: u32, payload`, little-endian.
//! What each means stands in `python/celeriac/_worker/wire.py`.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Both halves must be of one version.
pub(crate) const VERSION: u32 = 4;

pub(crate) const START: u8 = 1;
pub(crate) const FORK: u8 = 2;
pub(crate) const IMPORT: u8 = 3;
pub(crate) const SIGNAL: u8 = 4;
pub(crate) const READY: u8 = 10;
pub(crate) const FORKED: u8 = 11;
pub(crate) const EXITED: u8 = 12;
pub(crate) const FAILED: u8 = 13;
pub(crate) const WARNING: u8 = 14;
pub(crate) const ERROR: u8 = 15;
pub(crate) const TASK: u8 = 20;
pub(crate) const CONCLUDE: u8 = 21;
pub(crate) const CANCEL: u8 = 22;
pub(crate) const STOP: u8 = 23;
pub(crate) const ANSWER: u8 = 24;
pub(crate) const PING: u8 = 25;
pub(crate) const HELLO: u8 = 30;
pub(crate) const END: u8 = 31;
pub(crate) const CONCLUDED: u8 = 32;
pub(crate) const MODULES: u8 = 33;
pub(crate) const SPENT: u8 = 34;
pub(crate) const RECORD: u8 = 40;
pub(crate) const STEP: u8 = 41;
pub(crate) const STEP_DONE: u8 = 42;
pub(crate) const TOKEN: u8 = 43;
pub(crate) const FLUSH: u8 = 44;
pub(crate) const STORE: u8 = 45;
pub(crate) const FETCH: u8 = 46;
pub(crate) const PONG: u8 = 47;
pub(crate) const ORDER: u8 = 48;

/// A frame from Python holds so many bytes at most.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 20;

/// Length, kind and call.
const HEADER: usize = 9;
/// What the length counts of the header.
const COUNTED: usize = HEADER - 4;
const READ_BYTES: usize = 1 << 16;

/// A frame that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) call: u32,
    pub(crate) payload: Bytes,
}

/// Writes a frame to the end of `out`; `payload` writes what it carries.
pub(crate) fn write(out: &mut Vec<u8>, kind: u8, call: u32, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.push(kind);
    out.extend(call.to_le_bytes());
    payload(out);
    // Messages are bounded far below this by the worker.
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// A frame with JSON in it.
pub(crate) fn json<T: serde::Serialize>(kind: u8, call: u32, payload: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = serde_json::to_vec(payload).unwrap_or_default();
    write(&mut out, kind, call, |out| out.extend(payload));
    out
}

/// Takes a stream of bytes apart into frames.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) buffer: BytesMut,
}

impl Reader {
    /// The next whole frame, if it has come.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        let length = (&self.buffer[..4]).get_u32_le() as usize;
        if !(COUNTED..=FRAME_BYTES_MAX).contains(&length) {
            let what = format!("a frame of {length} bytes; {FRAME_BYTES_MAX} at most");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(4 + length);
        frame.advance(4);
        let kind = frame.get_u8();
        let call = frame.get_u32_le();
        Ok(Some(Frame { kind, call, payload: frame.freeze() }))
    }
}

/// A socket, frame by frame.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    reader: Reader,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, reader: Reader::default() }
    }

    /// The socket, and what was received of the next frame.
    pub(crate) fn into_parts(self) -> (UnixStream, Reader) {
        (self.stream, self.reader)
    }

    /// Sends what [`write`] has written. Dropped half-way, it leaves a channel that is good for nothing.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        self.stream.write_all(frames).await
    }

    /// The next frame, if it has been received already and `wanted` wants it.
    pub(crate) fn received(&mut self, wanted: impl FnOnce(u8) -> bool) -> Option<Frame> {
        // Kind stands after the length. What is wrong with a frame is for the wait to tell.
        let kind = *self.reader.buffer.get(4)?;
        if !wanted(kind) {
            return None;
        }
        self.reader.next().ok().flatten()
    }

    /// Waits for the next frame; `None` when the other side is gone. Dropping the wait loses nothing.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.reader.next()? {
                return Ok(Some(frame));
            }
            self.reader.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.reader.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, TASK, 7, |out| out.extend(b"first"));
        write(&mut out, STOP, u32::MAX, |_| {});
        write(&mut out, END, 0, |out| out.extend(vec![b'x'; 100_000]));
        out
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let bytes = sample();
        for step in [1, 3, 9, 10, 4096, bytes.len()] {
            let mut reader = Reader::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(step) {
                reader.buffer.extend_from_slice(piece);
                while let Some(frame) = reader.next().unwrap() {
                    found.push(frame);
                }
            }
            let kinds: Vec<_> =
                found.iter().map(|frame| (frame.kind, frame.call, frame.payload.len())).collect();
            assert_eq!(kinds, [(TASK, 7, 5), (STOP, u32::MAX, 0), (END, 0, 100_000)], "in steps of {step}");
            assert_eq!(&*found[0].payload, b"first");
            assert!(reader.buffer.is_empty());
        }
    }

    #[test]
    fn lengths_are_bounded() {
        for length in [0, 4, (FRAME_BYTES_MAX + 1) as u32, u32::MAX] {
            let mut reader = Reader::default();
            reader.buffer.extend_from_slice(&length.to_le_bytes());
            reader.buffer.extend_from_slice(&[0; 32]);
            assert!(reader.next().is_err(), "{length}");
        }
    }

    #[tokio::test]
    async fn a_channel_carries_frames_and_says_when_it_ends() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut left, mut right) = (Channel::new(left), Channel::new(right));
        let sending = tokio::spawn(async move {
            left.send(&sample()).await.unwrap();
        });
        for expected in [TASK, STOP, END] {
            assert_eq!(right.receive().await.unwrap().unwrap().kind, expected);
        }
        sending.await.unwrap();
        assert_eq!(right.receive().await.unwrap(), None);
    }
}
