//! Thread wal-reader: from the connection into batches. It never touches the disk, so the server is answered whatever
//! the disk does.

use super::progress::Progress;
use super::{Item, Rules};
use crate::error::{Error, Kind};
use crate::limits::RECEIVE_PAUSE_MAX;
use crate::pg::Lsn;
use crate::wire::replication::{Arrival, WalStream};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Bytes of WAL without a gap, in a buffer that goes back and forth between reader and writer.
#[derive(Debug, Default)]
pub struct Batch {
    /// Where it begins.
    pub lsn: Lsn,
    /// What follows there.
    pub bytes: Vec<u8>,
}

impl Batch {
    /// The position after it.
    pub fn end(&self) -> Lsn {
        Lsn(self.lsn.0 + self.bytes.len() as u64)
    }

    fn push(&mut self, lsn: Lsn, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.lsn = lsn;
        }
        assert_eq!(
            self.end(),
            lsn,
            "the session has checked that there is no gap"
        );
        self.bytes.extend_from_slice(bytes);
    }
}

/// Why the reader ended.
#[derive(Debug)]
pub enum End {
    /// The server has left this timeline.
    Timeline,
    /// The server shut down in good order.
    Shutdown,
    /// SIGINT or SIGTERM.
    Stopped,
    /// The end position was reached.
    Reached,
    /// The writer has taken nothing for too long: there is no room, or the archive is down.
    Paused,
    /// The connection is gone.
    Lost(Error),
    /// The writer has ended; its own error counts.
    WriterGone,
}

/// One reader.
pub struct Reader<'a> {
    /// The connection.
    pub stream: &'a mut WalStream,
    /// To the writer.
    pub items: Sender<Item>,
    /// Buffers that the writer has emptied.
    pub empty: Receiver<Vec<u8>>,
    /// How far all are.
    pub progress: &'a Progress,
    /// What was asked for.
    pub rules: &'a Rules,
}

impl Reader<'_> {
    /// Receives until the stream ends in one way or another.
    pub fn run(self) -> End {
        let mut heard = Instant::now();
        let mut asked = false;
        let mut owed = None;
        let mut batch = Batch::default();
        loop {
            let deadline = self.deadline(heard, asked);
            let arrival = self.stream.next(deadline, &mut |lsn, bytes| {
                batch.push(lsn, bytes);
                Ok(())
            });
            let arrival = match arrival {
                Ok(arrival) => arrival,
                Err(e) if e.kind() == Kind::Interrupted => return End::Stopped,
                Err(e) => return End::Lost(e),
            };
            if !matches!(arrival, Arrival::Quiet) {
                (heard, asked) = (Instant::now(), false);
            }
            if !batch.bytes.is_empty() {
                let end = batch.end();
                self.progress.received.raise(end.0);
                self.progress
                    .server
                    .raise(end.max(self.stream.server_end()).0);
                let next = Batch {
                    lsn: end,
                    bytes: self.empty.try_recv().unwrap_or_default(),
                };
                if let Err(end) = self.hand_over(Item::Wal(std::mem::replace(&mut batch, next))) {
                    return end;
                }
                // Strictly beyond, as pg_receivewal has it: what ends there may still go on.
                if self.rules.end_position.is_some_and(|last| end > last) {
                    return End::Reached;
                }
            }
            let outcome = match arrival {
                Arrival::Wal => Ok(()),
                Arrival::Keepalive {
                    server_end,
                    reply_requested,
                } => {
                    self.progress.server.raise(server_end.0);
                    match reply_requested {
                        _ if self.is_owed_too_long(&mut owed) => Err(End::Paused),
                        // Behind all WAL that came before it: what is asked for is the flush of that.
                        true => self.hand_over(Item::Reply),
                        false => Ok(()),
                    }
                }
                Arrival::EndOfTimeline => Err(End::Timeline),
                Arrival::ServerShutdown => Err(End::Shutdown),
                Arrival::Quiet => self.quiet(heard, &mut asked),
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    /// Whether the archive does not take what the server has asked for: then its shutdown must not wait for that. `owed`
    /// is up to where, and since when.
    fn is_owed_too_long(&self, owed: &mut Option<(Lsn, Instant)>) -> bool {
        let wanted = self.progress.owed_by_archive();
        // What was asked for has come; more was asked for since.
        let met = owed.is_some_and(|(lsn, _)| self.progress.archived.get() >= lsn.0);
        *owed = match (wanted, *owed) {
            (None, _) => None,
            (Some(_), Some(earlier)) if !met => Some(earlier),
            (Some(lsn), _) => Some((lsn, Instant::now())),
        };
        owed.is_some_and(|(_, since)| since.elapsed() > RECEIVE_PAUSE_MAX)
    }

    /// When a silent connection must be looked at.
    fn deadline(&self, heard: Instant, asked: bool) -> Instant {
        let Some(limit) = self.rules.receive_timeout else {
            return Instant::now() + Duration::from_secs(3600);
        };
        heard + if asked { limit } else { limit / 2 }
    }

    /// Half of the time has passed: ask whether anybody is there. All of it: nobody is.
    fn quiet(&self, heard: Instant, asked: &mut bool) -> std::result::Result<(), End> {
        let Some(limit) = self.rules.receive_timeout else {
            return Ok(());
        };
        if heard.elapsed() >= limit {
            return Err(End::Lost(
                Error::new(
                    Kind::Transient,
                    format!("the server has been silent for {} s", limit.as_secs()),
                )
                .hint("The connection is given up; --receive-timeout sets this time."),
            ));
        }
        if heard.elapsed() >= limit / 2 && !*asked {
            *asked = true;
            self.progress.report(true).map_err(End::Lost)?;
        }
        Ok(())
    }

    /// Gives the writer its next piece. While it takes none the server is kept informed, up to a point.
    fn hand_over(&self, item: Item) -> std::result::Result<(), End> {
        let began = Instant::now();
        let mut item = item;
        loop {
            let slice = self.rules.status_interval.min(Duration::from_millis(500));
            match self.items.send_timeout(item, slice) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => return Err(End::WriterGone),
                Err(SendTimeoutError::Timeout(back)) => item = back,
            }
            if self.rules.stop.is_set() {
                return Err(End::Stopped);
            }
            if began.elapsed() > RECEIVE_PAUSE_MAX {
                return Err(End::Paused);
            }
            if self.progress.since_report() >= self.rules.status_interval {
                self.progress.report(false).map_err(End::Lost)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_no_gap() {
        let mut batch = Batch::default();
        batch.push(Lsn(100), b"abc");
        batch.push(Lsn(103), b"d");
        assert_eq!((batch.lsn, batch.end()), (Lsn(100), Lsn(104)));
        let gap = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            batch.push(Lsn(105), b"e");
        }));
        assert!(gap.is_err());
    }
}
