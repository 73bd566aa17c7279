//! A stream of WAL over one connection: one thread reads, others report what has become of it.
//!
//! 1. The reader waits without holding the connection; it and whoever reports take it only for one read or one whole
//!    message. So a report goes out at once, under TLS too, while the reader waits for WAL that will not come before.
//! 2. WAL is handed on where it lies in the input, without gaps; all that one read brought is handed on before the
//!    next wait.
//! 3. What was reported is never taken back within a stream: the server would move the slot backwards with it.
//! 4. A report that could not be sent whole ends the stream for all: half a message must not be followed by another.

use super::codec::{self, Frame};
use super::conn::{self, Conn};
use super::session::{Message, Session, status_update};
use super::sql::{Rows, unsendable};
use super::stream::{self, Fault, Readable, Stream, Wait};
use super::{command, slot};
use crate::error::{Error, Kind, Result};
use crate::limits::{COPY_END_TIMEOUT, STATUS_SEND_TIMEOUT};
use crate::pg::{Lsn, TimelineId};
use crate::work::stop::Stop;
use bytes::BytesMut;
use postgres_protocol::message::backend::Message as Backend;
use postgres_protocol::message::frontend;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

/// From the epoch of Unix to that of PostgreSQL, 2000-01-01 UTC.
const EPOCH_DIFFERENCE_US: i64 = 946_684_800_000_000;

/// The answer to START_REPLICATION.
#[derive(Debug)]
pub enum Replication {
    /// WAL comes.
    Streaming(WalStream),
    /// The server left the timeline just where the stream was to begin, so there is nothing to send.
    TimelineEnded {
        /// The session, ready for the next command.
        conn: Conn,
        /// The timeline that goes on from there.
        next: TimelineId,
        /// Where it does.
        switch: Lsn,
    },
}

/// What a call of `WalStream::next` met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// WAL, which was handed over.
    Wal,
    /// A sign of life.
    Keepalive {
        /// How far the server has sent.
        server_end: Lsn,
        /// Whether the server wants a status update at once.
        reply_requested: bool,
    },
    /// The server has sent all of this timeline and left it: `end` tells where it goes on.
    EndOfTimeline,
    /// The server shuts down in good order, and has sent everything.
    ServerShutdown,
    /// Nothing until the deadline.
    Quiet,
}

impl Conn {
    /// Asks a replication session for the WAL of `timeline` from `start` on. Servers before 15 want `identify_system` to
    /// have been called in this session.
    ///
    /// Refusals by kind: `Locked` if somebody uses the slot, `Missing` if there is no such slot, `Hole` if the WAL was
    /// removed (from the stream's `next` as a rule), `Mismatch` if the server's history does not hold that position on
    /// that timeline. A position that the server has not reached is `Protocol`, from `next`.
    pub fn start_replication(
        mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<Replication> {
        let mut out = BytesMut::new();
        let text = command::start_replication(slot, start, timeline);
        frontend::query(&text, &mut out).map_err(unsendable)?;
        self.begin(&out)?;
        let mut answer = Answer::default();
        loop {
            let frame = self.next()?;
            match frame.tag {
                b'W' => {
                    return Ok(Replication::Streaming(WalStream::new(
                        self, start, timeline,
                    )));
                }
                b'Z' => break,
                _ => answer.take(&self, &frame)?,
            }
        }
        let rows = answer.rows().map_err(not_in_history)?;
        match next_timeline(&rows, timeline, start)? {
            Some((next, switch)) => Ok(Replication::TimelineEnded {
                conn: self,
                next,
                switch,
            }),
            None => Err(codec::malformed(
                "It ends the answer to START_REPLICATION, which neither streams nor names the next timeline.",
            )),
        }
    }
}

/// The reading half of a stream, for one thread. Dropped, it ends the session.
pub struct WalStream {
    /// Without its stream, which `half` has.
    conn: Conn,
    half: ReadingHalf,
    session: Session,
    timeline: TimelineId,
    /// What came behind WAL in one read, for the next call.
    later: Option<Arrival>,
}

impl WalStream {
    fn new(mut conn: Conn, start: Lsn, timeline: TimelineId) -> WalStream {
        let stream = conn.lend_stream();
        let line = Line {
            readable: stream.readable(),
            stop: conn.stop().clone(),
            open: Mutex::new(Some(Open {
                stream,
                write: Lsn::INVALID,
                flush: None,
            })),
        };
        WalStream {
            conn,
            half: ReadingHalf(Arc::new(line)),
            session: Session::new(start),
            timeline,
            later: None,
        }
    }

    /// What sends status updates, from any thread.
    pub fn sender(&self) -> StatusSender {
        StatusSender(self.half.0.clone())
    }

    /// Where the next piece of WAL will begin; all before it was handed over.
    pub fn next_lsn(&self) -> Lsn {
        self.session.next_lsn()
    }

    /// How far the server's WAL reached when it sent the last piece.
    pub fn server_end(&self) -> Lsn {
        self.session.server_end()
    }

    /// The timeline of this WAL.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Waits for what comes, at most until `deadline`, and hands all WAL that came to `wal`, in order, with its position.
    /// What has arrived is handed over even if the deadline has passed.
    ///
    /// `Kind::Interrupted` on a stop; then statuses can still be sent. An error of `wal` is passed on, with that piece
    /// counted as handed over. After any other error the stream is of no use.
    pub fn next(
        &mut self,
        deadline: Instant,
        wal: &mut dyn FnMut(Lsn, &[u8]) -> Result<()>,
    ) -> Result<Arrival> {
        loop {
            self.conn.stop().check()?;
            if let Some(arrival) = self.handle(wal)? {
                return Ok(arrival);
            }
            if !self.fill(deadline)? {
                return Ok(Arrival::Quiet);
            }
        }
    }

    /// Ends the copy and waits for the server's last words, `limits::COPY_END_TIMEOUT` at most. After `EndOfTimeline`
    /// they name the next timeline and where it begins, which may be before `next_lsn`: a server that was itself cut off
    /// in mid record has passed on what nobody will ever complete. Earlier they name none, and WAL under way is lost.
    pub fn end(self) -> Result<(Conn, Option<(TimelineId, Lsn)>)> {
        let WalStream {
            mut conn,
            half,
            session,
            timeline,
            ..
        } = self;
        let open = half.0.open().take().ok_or_else(ended)?;
        conn.take_back(open.stream, Instant::now() + COPY_END_TIMEOUT);
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        conn.send(&out)?;
        let mut answer = Answer::default();
        loop {
            let frame = conn.next()?;
            match frame.tag {
                b'd' | b'c' => {}
                b'Z' => break,
                _ => answer.take(&conn, &frame)?,
            }
        }
        let next = next_timeline(&answer.rows()?, timeline, session.next_lsn())?;
        Ok((conn, next))
    }

    /// Handles the whole messages at hand. What is no WAL ends the round; behind WAL it waits for the next one.
    fn handle(&mut self, wal: &mut dyn FnMut(Lsn, &[u8]) -> Result<()>) -> Result<Option<Arrival>> {
        if let Some(arrival) = self.later.take() {
            return Ok(Some(arrival));
        }
        let mut arrived = None;
        while let Some(frame) = self.conn.buffered()? {
            match self.one(&frame, wal)? {
                Arrival::Wal => arrived = Some(Arrival::Wal),
                other if arrived.is_none() => return Ok(Some(other)),
                other => {
                    self.later = Some(other);
                    break;
                }
            }
        }
        Ok(arrived)
    }

    fn one(
        &mut self,
        frame: &Frame,
        wal: &mut dyn FnMut(Lsn, &[u8]) -> Result<()>,
    ) -> Result<Arrival> {
        match frame.tag {
            b'd' => match self.session.decode(self.conn.body(frame))? {
                Message::Wal { lsn, bytes, .. } => wal(lsn, bytes).map(|()| Arrival::Wal),
                Message::Keepalive {
                    server_end,
                    reply_requested,
                } => Ok(Arrival::Keepalive {
                    server_end,
                    reply_requested,
                }),
            },
            b'c' => Ok(Arrival::EndOfTimeline),
            // The copy is complete although the server has not ended it: it is about to go.
            b'C' => Ok(Arrival::ServerShutdown),
            // Errors of every sort come in mid copy: removed WAL, a position not reached yet, a slot taken away.
            b'E' => Err(slot::by_sqlstate(self.conn.error_of(frame)?)),
            tag => Err(codec::unexpected(tag, "replication")),
        }
    }

    /// Reads once; false if nothing came before the deadline.
    fn fill(&mut self, deadline: Instant) -> Result<bool> {
        let line = &self.half.0;
        let wait = Wait {
            stop: line.stop.clone(),
            deadline: Some(deadline),
        };
        loop {
            if let Some(count) = line.try_receive(self.conn.space()?)? {
                self.conn.filled(count);
                return Ok(true);
            }
            match line.readable.wait(&wait) {
                Ok(()) => {}
                Err(Fault::TimedOut) => return Ok(false),
                Err(fault) => return Err(conn::error_of_fault(fault, &line.stop)),
            }
        }
    }
}

impl std::fmt::Debug for WalStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (timeline, next) = (self.timeline, self.next_lsn());
        write!(f, "WalStream({:?}, {timeline} at {next})", self.conn)
    }
}

/// What reports how far WAL has come with us; for any thread.
#[derive(Clone)]
pub struct StatusSender(Arc<Line>);

impl StatusSender {
    /// Tells the server at once that WAL is written up to `write` and durable up to `flush`; `None` says nothing of the
    /// latter. Positions below those that were sent before are raised to them. It also works after a stop, as long as
    /// nobody has to wait for it.
    ///
    /// `Kind::Transient` if the stream has ended or its server does not take the message; the stream has ended then.
    pub fn send(&self, write: Lsn, flush: Option<Lsn>, reply_requested: bool) -> Result<()> {
        let mut guard = self.0.open();
        let open = guard.as_mut().ok_or_else(ended)?;
        (open.write, open.flush) = (open.write.max(write), open.flush.max(flush));
        let update = status_update(open.write, open.flush, reply_requested, now_us_2000());
        let wait = Wait {
            stop: self.0.stop.clone(),
            deadline: Some(Instant::now() + STATUS_SEND_TIMEOUT),
        };
        open.stream.send(&update, &wait).map_err(|fault| {
            open.stream.hang_up();
            conn::error_of_fault(fault, &self.0.stop)
        })
    }
}

/// What both halves share. A mutex, because a TLS session cannot be split into one that reads and one that writes, and
/// because of two writers each must send a whole message.
struct Line {
    readable: Readable,
    stop: Stop,
    /// None once the copy has ended.
    open: Mutex<Option<Open>>,
}

struct Open {
    stream: Stream,
    /// Written, as reported last.
    write: Lsn,
    /// Durable, as reported last.
    flush: Option<Lsn>,
}

impl Line {
    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what there is now; `None` if that is nothing.
    fn try_receive(&self, into: &mut [u8]) -> Result<Option<usize>> {
        let mut open = self.open();
        let stream = &mut open.as_mut().ok_or_else(ended)?.stream;
        let count = match stream.try_receive(into) {
            Ok(Some(0)) => Err(stream::closed()),
            outcome => outcome,
        };
        count.map_err(|fault| conn::error_of_fault(fault, &self.stop))
    }
}

/// Ends the copy when the reader goes, whoever still holds a sender.
struct ReadingHalf(Arc<Line>);

impl Drop for ReadingHalf {
    fn drop(&mut self) {
        if let Some(mut open) = self.0.open().take() {
            // The server takes this in mid copy; it sees the statuses sent before, and logs no broken connection.
            open.stream.part(&conn::goodbye());
        }
    }
}

/// Results, completions and an error around a copy.
#[derive(Default)]
struct Answer {
    rows: Rows,
    error: Option<Error>,
}

impl Answer {
    fn take(&mut self, conn: &Conn, frame: &Frame) -> Result<()> {
        match conn.message(frame)? {
            Backend::RowDescription(body) => self.rows = Rows::begin(&body)?,
            Backend::DataRow(body) => self.rows.push(&body)?,
            Backend::CommandComplete(_) => {}
            Backend::ErrorResponse(_) => self.error = Some(conn.error_of(frame)?),
            _ => return Err(codec::unexpected(frame.tag, "the end of a copy")),
        }
        Ok(())
    }

    fn rows(self) -> Result<Rows> {
        self.error
            .map_or(Ok(self.rows), |error| Err(slot::by_sqlstate(error)))
    }
}

/// The row that names the next timeline, if there is one. It must be a later one, and begin within what was received.
fn next_timeline(rows: &Rows, timeline: TimelineId, at: Lsn) -> Result<Option<(TimelineId, Lsn)>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let (next, switch) = (
        rows.need(0, "next_tli")?,
        rows.need(0, "next_tli_startpos")?,
    );
    let strange = || {
        Error::new(Kind::Protocol, "the server's next timeline is not possible").detail(format!(
            "After timeline {timeline}, received up to {at}, it names timeline {next} from {switch}."
        ))
    };
    let id = next.parse().map(TimelineId).map_err(|_| strange())?;
    let start: Lsn = switch.parse().map_err(|_| strange())?;
    if id <= timeline || start > at {
        return Err(strange());
    }
    Ok(Some((id, start)))
}

/// Before the copy begins, the one error without a SQLSTATE of its own is that the server's history does not hold what
/// was asked for. Its text would tell too, but servers translate it.
fn not_in_history(error: Error) -> Error {
    match error.sqlstate() {
        Some("XX000") => error.with_kind(Kind::Mismatch),
        _ => error,
    }
}

fn ended() -> Error {
    Error::new(Kind::Transient, "the replication stream has ended")
}

/// A clock that is set before 2000, or after the year 290,000, is not worth an error here.
fn now_us_2000() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let micros = since.map_or(0, |time| time.as_micros());
    i64::try_from(micros).unwrap_or(i64::MAX) - EPOCH_DIFFERENCE_US
}

#[cfg(test)]
mod tests;
