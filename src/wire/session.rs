//! Physical replication inside a copy in both directions, sans-IO: no socket, no clock.
//!
//! 1. WAL comes without gaps and without repetition: what does not begin where the last piece ended is an error.
//! 2. Apply is never reported: we replay nothing, and who waits for `remote_apply` must not be told that we did.

use super::codec;
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;

/// Type byte, position of the WAL, end of the server's WAL, the server's clock.
const WAL_HEADER_BYTES: usize = 25;

/// Type byte, end of the server's WAL, the server's clock, whether a reply is requested.
const KEEPALIVE_BYTES: usize = 18;

/// A message of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// WAL that follows the last piece.
    Wal {
        /// Position of its first byte.
        lsn: Lsn,
        /// How far the server's WAL reaches.
        server_end: Lsn,
        /// The WAL, at most 128 KiB; it may cross the end of a segment.
        bytes: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has sent.
        server_end: Lsn,
        /// Whether the server wants a status update at once; it ends the session of a receiver that gives none.
        reply_requested: bool,
    },
}

/// The receiving side of one stream.
#[derive(Debug)]
pub struct Session {
    next_lsn: Lsn,
    server_end: Lsn,
}

impl Session {
    /// A stream that was asked for from `start`.
    pub fn new(start: Lsn) -> Session {
        Session {
            next_lsn: start,
            server_end: start,
        }
    }

    /// Where the next piece of WAL must begin; all before it was decoded.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// How far the server's WAL reached when it sent the last piece.
    pub fn server_end(&self) -> Lsn {
        self.server_end
    }

    /// Takes the body of a CopyData message apart. `Kind::Protocol` if it is malformed, or is WAL that does not follow
    /// the last piece.
    pub fn decode<'a>(&mut self, copy_data: &'a [u8]) -> Result<Message<'a>> {
        match copy_data.first() {
            Some(b'w') => self.wal(copy_data),
            Some(b'k') => keepalive(copy_data),
            Some(other) => Err(codec::unexpected(*other, "replication")),
            None => Err(codec::malformed("A message of the copy is empty.")),
        }
    }

    fn wal<'a>(&mut self, message: &'a [u8]) -> Result<Message<'a>> {
        let Some((header, bytes)) = message.split_first_chunk::<WAL_HEADER_BYTES>() else {
            return Err(wrong_length("WAL", message.len()));
        };
        let (lsn, server_end) = (lsn_at(header, 1), lsn_at(header, 9));
        if lsn != self.next_lsn {
            return Err(not_next(lsn, self.next_lsn));
        }
        let end = lsn.0.checked_add(bytes.len() as u64);
        let end = end.ok_or_else(|| codec::malformed("Its WAL goes beyond the last position."))?;
        self.next_lsn = Lsn(end);
        self.server_end = server_end;
        Ok(Message::Wal {
            lsn,
            server_end,
            bytes,
        })
    }
}

fn keepalive(message: &[u8]) -> Result<Message<'_>> {
    let Ok(message) = <&[u8; KEEPALIVE_BYTES]>::try_from(message) else {
        return Err(wrong_length("keepalive", message.len()));
    };
    Ok(Message::Keepalive {
        server_end: lsn_at(message, 1),
        reply_requested: message[KEEPALIVE_BYTES - 1] != 0,
    })
}

/// A standby status update as a whole CopyData message: WAL is with us up to `write` and durable up to `flush`. Without
/// `flush` the server neither moves a slot nor takes us for a synchronous standby. `now_us_2000` is our clock in
/// microseconds since 2000-01-01 UTC.
pub fn status_update(
    write: Lsn,
    flush: Option<Lsn>,
    reply_requested: bool,
    now_us_2000: i64,
) -> [u8; 39] {
    let flush = flush.unwrap_or(Lsn::INVALID);
    assert!(flush <= write, "nothing is durable that was not written");
    let mut message = [0; 39];
    message[0] = b'd';
    message[1..5].copy_from_slice(&38u32.to_be_bytes());
    message[5] = b'r';
    message[6..14].copy_from_slice(&write.0.to_be_bytes());
    message[14..22].copy_from_slice(&flush.0.to_be_bytes());
    // 22..30 is the apply position and stays 0/0.
    message[30..38].copy_from_slice(&now_us_2000.to_be_bytes());
    message[38] = u8::from(reply_requested);
    message
}

fn lsn_at(bytes: &[u8], offset: usize) -> Lsn {
    let bytes = bytes[offset..].first_chunk().expect("within the header");
    Lsn(u64::from_be_bytes(*bytes))
}

fn wrong_length(what: &str, bytes: usize) -> Error {
    codec::malformed(format!("A {what} message has {bytes} bytes."))
}

fn not_next(sent: Lsn, due: Lsn) -> Error {
    Error::new(Kind::Protocol, "the server's WAL does not follow on").detail(format!(
        "It sent WAL from {sent}, where WAL from {due} was due."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Inbox;
    use crate::wire::script::{keepalive, message, wal};

    /// What a stream gives when it arrives in pieces of `cut` bytes, and how it ended.
    fn receive(start: u64, stream: &[u8], cut: usize) -> (Vec<String>, Result<Lsn>) {
        let (mut inbox, mut session) = (Inbox::new(), Session::new(Lsn(start)));
        inbox.logged_in();
        let mut seen = Vec::new();
        for mut piece in stream.chunks(cut) {
            while !piece.is_empty() {
                let space = inbox.space().unwrap();
                let count = space.len().min(piece.len());
                space[..count].copy_from_slice(&piece[..count]);
                inbox.filled(count);
                piece = &piece[count..];
                while let Some(frame) = inbox.next().unwrap() {
                    match session.decode(inbox.body(&frame)) {
                        Ok(message) => seen.push(format!("{message:?}")),
                        Err(error) => return (seen, Err(error)),
                    }
                }
            }
        }
        (seen, Ok(session.next_lsn()))
    }

    fn pieces(start: u64, lengths: &[usize]) -> Vec<u8> {
        let (mut stream, mut lsn) = (Vec::new(), start);
        for length in lengths {
            let bytes: Vec<u8> = (0..*length).map(|n| (lsn as usize + n) as u8).collect();
            stream.extend(wal(lsn, lsn + 7, &bytes));
            lsn += *length as u64;
            stream.extend(keepalive(lsn, *length == 77));
        }
        stream
    }

    #[test]
    fn cuts_do_not_matter() {
        let lengths = [1, 8192, 77, 128 << 10];
        let stream = pieces(0x0100_0000, &lengths);
        let (whole, end) = receive(0x0100_0000, &stream, stream.len());
        assert_eq!(whole.len(), 8);
        let end = end.unwrap();
        assert_eq!(end.0, 0x0100_0000 + lengths.iter().sum::<usize>() as u64);
        for cut in (1..64).chain([999, 4096, 8217, 65536, 131_071]) {
            let (seen, last) = receive(0x0100_0000, &stream, cut);
            assert_eq!((seen, last.unwrap()), (whole.clone(), end), "cut {cut}");
        }
    }

    #[test]
    fn positions_only_grow_and_leave_nothing_out() {
        let mut session = Session::new(Lsn(100));
        let body = |lsn, bytes: &[u8]| wal(lsn, 500, bytes)[5..].to_vec();
        let cases = [
            (100, 10, true),
            (110, 0, true),
            (111, 5, false),  // a gap
            (100, 10, false), // the same again
            (105, 10, false), // part of it again
            (110, 1, true),
            (0, 1, false),
        ];
        for (lsn, length, fine) in cases {
            let before = session.next_lsn();
            let message = body(lsn, &vec![1; length]);
            match session.decode(&message) {
                Ok(_) => {
                    assert!(fine && session.next_lsn().0 == lsn + length as u64);
                    assert_eq!(session.server_end(), Lsn(500));
                }
                Err(error) => {
                    assert!(!fine, "{error}");
                    assert_eq!(error.kind(), Kind::Protocol);
                    let text = error.to_string();
                    assert!(text.contains(&Lsn(lsn).to_string()), "{text}");
                    assert!(text.contains(&before.to_string()), "{text}");
                    assert_eq!(session.next_lsn(), before);
                }
            }
        }
        let mut last = Session::new(Lsn(u64::MAX - 1));
        assert!(last.decode(&body(u64::MAX - 1, &[1, 2])).is_err());
        assert!(last.decode(&body(u64::MAX - 1, &[1])).is_ok());
    }

    #[test]
    fn short_and_strange_messages_are_refused() {
        let mut session = Session::new(Lsn(0));
        let (wal, keepalive) = (wal(0, 0, b""), keepalive(0, true));
        for length in 0..25 {
            assert!(session.decode(&wal[5..5 + length]).is_err(), "{length}");
        }
        assert!(session.decode(&wal[5..]).is_ok());
        for length in 1..18 {
            assert!(
                session.decode(&keepalive[5..5 + length]).is_err(),
                "{length}"
            );
        }
        assert!(session.decode(&[&keepalive[5..], b"x"].concat()).is_err());
        assert!(session.decode(&keepalive[5..]).is_ok());
        assert!(session.decode(&message(b'd', b"s")[5..]).is_err());
    }

    #[test]
    fn a_status_update_byte_by_byte() {
        let update = status_update(Lsn(0x0102), Some(Lsn(0x0101)), true, 0x0304);
        let numbers = [
            &[0, 0, 0, 0, 0, 0, 1, 2][..],
            &[0, 0, 0, 0, 0, 0, 1, 1],
            &[0; 8],
            &[0, 0, 0, 0, 0, 0, 3, 4],
        ];
        assert_eq!(
            update[..],
            [&b"d\0\0\0\x26r"[..], &numbers.concat(), &[1]].concat()
        );
        let silent = status_update(Lsn(5), None, false, -1);
        assert_eq!(silent[14..22], [0; 8]);
        assert_eq!((&silent[30..38], silent[38]), (&[0xFF; 8][..], 0));
    }

    #[test]
    #[should_panic(expected = "durable")]
    fn more_flushed_than_written_is_a_mistake() {
        status_update(Lsn(1), Some(Lsn(2)), false, 0);
    }
}
