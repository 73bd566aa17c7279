//! Message framing, sans-IO: bytes arrive in any cuts, whole messages come out, and their bodies stay where they are.
//!
//! `postgres-protocol` frames too, but refuses the copy-both tag and copies every message; bulk data must not be
//! copied once more, so a frame is a range of the input buffer.

use crate::error::{Error, Kind, Result};
use crate::limits::{COPY_BUFFER_BYTES, LOGIN_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX};
use postgres_protocol::message::backend::Message;
use std::ops::Range;

/// Tag and length word before each body.
const HEADER_BYTES: usize = 5;

/// A whole message in the buffer: its tag, and where it lies. Valid until the next call of `Inbox::space`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The message type.
    pub tag: u8,
    /// Header and body.
    range: Range<usize>,
}

/// The bytes that have arrived and are not yet used.
pub(super) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    message_bytes_max: usize,
}

impl Inbox {
    /// Empty, with the narrow bound that holds until the server has proved who it is.
    pub fn new() -> Inbox {
        Inbox {
            buffer: vec![0; COPY_BUFFER_BYTES],
            start: 0,
            end: 0,
            message_bytes_max: LOGIN_MESSAGE_BYTES_MAX,
        }
    }

    /// From now on messages of ordinary size are accepted.
    pub fn logged_in(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
    }

    /// The next whole message, or `None` if more bytes are needed.
    pub fn next(&mut self) -> Result<Option<Frame>> {
        let Some(total) = self.wanted_bytes()? else {
            return Ok(None);
        };
        if self.end - self.start < total {
            return Ok(None);
        }
        let range = self.start..self.start + total;
        self.start = range.end;
        Ok(Some(Frame {
            tag: self.buffer[range.start],
            range,
        }))
    }

    /// The body of a frame.
    pub fn body(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.range.start + HEADER_BYTES..frame.range.end]
    }

    /// The frame, parsed; for everything but bulk data.
    pub fn message(&self, frame: &Frame) -> Result<Message> {
        let mut copy = bytes::BytesMut::from(&self.buffer[frame.range.clone()]);
        match Message::parse(&mut copy) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(malformed("It is shorter than its length says.")),
            Err(cause) => Err(malformed(format!("{cause}."))),
        }
    }

    /// Room to read into, never empty. Frames handed out before are gone.
    pub fn space(&mut self) -> Result<&mut [u8]> {
        let wanted = self.wanted_bytes()?.unwrap_or(HEADER_BYTES);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.buffer.len() || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted, 0);
        } else if self.end == 0 && self.buffer.len() > COPY_BUFFER_BYTES {
            self.buffer.truncate(COPY_BUFFER_BYTES);
            self.buffer.shrink_to_fit();
        }
        Ok(&mut self.buffer[self.end..])
    }

    /// `count` bytes were read into `space`.
    pub fn filled(&mut self, count: usize) {
        assert!(
            count <= self.buffer.len() - self.end,
            "more than there was room for"
        );
        self.end += count;
    }

    /// Bytes of the message that starts the buffer, once its header is there.
    fn wanted_bytes(&self) -> Result<Option<usize>> {
        let Some(header) = self.buffer[self.start..self.end].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length < 4 || length > self.message_bytes_max {
            return Err(malformed(format!(
                "A message of type {:?} announces {length} bytes; at most {} are accepted here.",
                char::from(header[0]),
                self.message_bytes_max
            ))
            .hint("Check that host and port are those of a PostgreSQL server."));
        }
        Ok(Some(length + 1))
    }
}

/// The server does not speak the protocol.
pub(super) fn malformed(detail: impl Into<String>) -> Error {
    Error::new(Kind::Protocol, "the server sent a malformed message").detail(detail)
}

/// A message that has no place here.
pub(super) fn unexpected(tag: u8, during: &str) -> Error {
    Error::new(Kind::Protocol, "the server sent an unexpected message")
        .detail(format!("Type {:?} during {during}.", char::from(tag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::script::message;

    fn feed(inbox: &mut Inbox, bytes: &[u8], cut: usize, seen: &mut Vec<(u8, Vec<u8>)>) {
        for piece in bytes.chunks(cut) {
            let mut rest = piece;
            while !rest.is_empty() {
                let space = inbox.space().unwrap();
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                inbox.filled(count);
                rest = &rest[count..];
                while let Some(frame) = inbox.next().unwrap() {
                    seen.push((frame.tag, inbox.body(&frame).to_vec()));
                }
            }
        }
    }

    #[test]
    fn cuts_do_not_matter() {
        let big = vec![7; COPY_BUFFER_BYTES * 2 + 11];
        let messages = [
            (b'd', big.as_slice()),
            (b'W', &b""[..]),
            (b'd', &b"x"[..]),
            (b'Z', &b"I"[..]),
        ];
        let stream: Vec<u8> = messages.iter().flat_map(|(t, b)| message(*t, b)).collect();
        for cut in [1, 2, 3, 4, 5, 6, 7, 1000, COPY_BUFFER_BYTES, stream.len()] {
            let mut inbox = Inbox::new();
            inbox.logged_in();
            let mut seen = Vec::new();
            feed(&mut inbox, &stream, cut, &mut seen);
            feed(&mut inbox, &stream, cut, &mut seen);
            let want: Vec<_> = messages.iter().map(|(t, b)| (*t, b.to_vec())).collect();
            assert_eq!(seen[..4], want[..], "cut {cut}");
            assert_eq!(seen[4..], want[..], "cut {cut}");
        }
    }

    #[test]
    fn grows_for_one_message_and_shrinks_again() {
        let mut inbox = Inbox::new();
        inbox.logged_in();
        let mut seen = Vec::new();
        feed(
            &mut inbox,
            &message(b'd', &vec![1; 3 << 20]),
            8192,
            &mut seen,
        );
        assert!(inbox.buffer.len() > 3 << 20);
        inbox.space().unwrap();
        assert_eq!(inbox.buffer.len(), COPY_BUFFER_BYTES);
    }

    #[test]
    fn refuses_lengths_out_of_bounds() {
        let cases: [(u32, bool, bool); 6] = [
            (0, true, false),
            (3, true, false),
            (4, true, true),
            (MESSAGE_BYTES_MAX as u32 + 1, true, false),
            (LOGIN_MESSAGE_BYTES_MAX as u32 + 1, false, false),
            (LOGIN_MESSAGE_BYTES_MAX as u32 + 1, true, true),
        ];
        for (length, logged_in, fine) in cases {
            let mut inbox = Inbox::new();
            if logged_in {
                inbox.logged_in();
            }
            let space = inbox.space().unwrap();
            space[0] = b'd';
            space[1..5].copy_from_slice(&length.to_be_bytes());
            inbox.filled(5);
            assert_eq!(inbox.next().is_ok(), fine, "{length} {logged_in}");
        }
    }

    #[test]
    fn a_frame_can_be_parsed() {
        let mut inbox = Inbox::new();
        let mut seen = Vec::new();
        let bytes = message(b'C', b"SELECT 1\0");
        let space = inbox.space().unwrap();
        space[..bytes.len()].copy_from_slice(&bytes);
        inbox.filled(bytes.len());
        let frame = inbox.next().unwrap().unwrap();
        seen.push(frame.tag);
        assert!(
            matches!(inbox.message(&frame), Ok(Message::CommandComplete(body)) if body.tag().unwrap() == "SELECT 1")
        );
        assert!(inbox.next().unwrap().is_none());
    }
}
