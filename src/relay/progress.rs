//! How far the relay is: the positions that its threads raise, what the server is told of them, and what `status`
//! shows. Positions are `received ≥ written ≥ flushed`; each is durable, or handed to the kernel, before it is raised.

use super::lock_of;
use super::status::{Document, Lag, Position, Trouble};
use crate::error::Result;
use crate::pg::timestamp::Timestamp;
use crate::pg::{Lsn, TimelineId};
use crate::wire::replication::StatusSender;
use crate::work::now;
use crate::work::watermark::Watermark;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Which position the server takes for durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// What is synced in the spool directory.
    #[default]
    Local,
    /// What the store has.
    Archived,
}

/// Samples of the server's position, one a second: lags of more than an hour are shown as that.
const SAMPLES_MAX: usize = 3_600;

/// Shared by all threads of the relay for as long as it runs, across connections.
pub struct Progress {
    acknowledge: Acknowledge,
    /// Whether the server is told of flushes at all: without slot and `--synchronous` it must not take us for a
    /// standby that it waits for.
    reports_flush: bool,
    /// Up to where the server said that it has WAL.
    pub server: Watermark,
    /// Up to where WAL has arrived here.
    pub received: Watermark,
    /// Up to where it was handed to the kernel.
    pub written: Watermark,
    /// Up to where it survives power loss.
    pub flushed: Watermark,
    /// Up to where the archive has it without a hole.
    pub archived: Watermark,
    /// Up to where the server has asked for it, if it waits for the archive.
    wanted: Watermark,
    /// The sending half of the present connection. Its lock also orders the reports: the positions are read under it,
    /// so none is followed by an older one, which would move the slot back. A mutex, because reader, writer and
    /// uploader all report.
    line: Mutex<Option<Line>>,
    /// What only `status` reads.
    facts: Mutex<Facts>,
}

/// The present connection.
struct Line {
    sender: StatusSender,
    reported: Instant,
}

/// What `status` shows beside the positions.
#[derive(Default)]
struct Facts {
    state: &'static str,
    server_place: String,
    connected_since: Option<Timestamp>,
    system_identifier: String,
    timeline: Option<TimelineId>,
    last_error: Option<(Timestamp, String)>,
    has_streamed: bool,
    samples: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Nothing has happened yet.
    pub fn new(acknowledge: Acknowledge, reports_flush: bool) -> Progress {
        Progress {
            acknowledge,
            reports_flush,
            server: Watermark::default(),
            received: Watermark::default(),
            written: Watermark::default(),
            flushed: Watermark::default(),
            archived: Watermark::default(),
            wanted: Watermark::default(),
            line: Mutex::default(),
            facts: Mutex::new(Facts {
                state: "starting",
                ..Facts::default()
            }),
        }
    }

    /// WAL is received from `start` on: all before it is safe. That may be before what an earlier stream had reached, on
    /// another timeline, whose positions say nothing about this one. Only between two streams.
    pub fn begin(&self, start: Lsn) {
        for mark in [&self.received, &self.written, &self.flushed, &self.wanted] {
            mark.restart(start.0);
        }
    }

    /// Reports go through `sender` from now on.
    pub fn connect(&self, sender: StatusSender) {
        lock_of(&self.facts).has_streamed = true;
        *lock_of(&self.line) = Some(Line {
            sender,
            reported: Instant::now(),
        });
    }

    /// The connection is over.
    pub fn disconnect(&self) {
        *lock_of(&self.line) = None;
    }

    /// Tells the server where we are; nothing while there is no connection.
    pub fn report(&self, reply_requested: bool) -> Result<()> {
        let mut line = lock_of(&self.line);
        let Some(line) = line.as_mut() else {
            return Ok(());
        };
        // The flush position is read first: what is written may only be ahead of it.
        let flush = match self.acknowledge {
            Acknowledge::Local => self.flushed.get(),
            Acknowledge::Archived => self.archived.get().min(self.flushed.get()),
        };
        let write = self.written.get();
        assert!(flush <= write, "flushed {flush:X} beyond written {write:X}");
        let flush = self.reports_flush.then_some(Lsn(flush));
        line.sender.send(Lsn(write), flush, reply_requested)?;
        line.reported = Instant::now();
        Ok(())
    }

    /// Time since the last report, or the end of time where there is nobody to report to.
    pub fn since_report(&self) -> Duration {
        lock_of(&self.line)
            .as_ref()
            .map_or(Duration::ZERO, |line| line.reported.elapsed())
    }

    /// Whether the server waits for what the store has.
    pub fn waits_for_archive(&self) -> bool {
        self.acknowledge == Acknowledge::Archived
    }

    /// The server asks how far we are, and what is flushed is to get into the archive at once: a server that shuts down
    /// waits for that. Answers whether that is more than it had asked for before.
    pub fn want_archived(&self) -> bool {
        let flushed = self.flushed.get();
        let more = self.waits_for_archive() && self.wanted.get() < flushed;
        if more {
            self.wanted.raise(flushed);
        }
        more
    }

    /// Up to where the server has asked for what the archive does not have yet.
    pub fn owed_by_archive(&self) -> Option<Lsn> {
        let wanted = self.wanted.get();
        (self.archived.get() < wanted).then_some(Lsn(wanted))
    }

    /// In one word, what the relay does: `connecting`, `streaming`, `paused`, `waiting`, `stopping`.
    pub fn set_state(&self, state: &'static str) {
        lock_of(&self.facts).state = state;
    }

    /// A connection was made.
    pub fn set_server(&self, place: &str, system_identifier: String) {
        let mut facts = lock_of(&self.facts);
        facts.server_place = place.to_string();
        facts.connected_since = Some(now());
        facts.system_identifier = system_identifier;
    }

    /// Whether the server has sent us WAL, or was ready to, at least once.
    pub fn has_streamed(&self) -> bool {
        lock_of(&self.facts).has_streamed
    }

    /// WAL of this timeline is being received.
    pub fn set_timeline(&self, timeline: TimelineId) {
        lock_of(&self.facts).timeline = Some(timeline);
    }

    /// Something went wrong and work goes on.
    pub fn set_error(&self, text: String) {
        lock_of(&self.facts).last_error = Some((now(), text));
    }

    /// What `status` shows now, but for the directory's part of it.
    pub fn document(&self) -> Document {
        let mut facts = lock_of(&self.facts);
        let (instant, server) = (Instant::now(), self.server.get());
        if facts.samples.back().is_none_or(|(_, last)| *last < server) {
            facts.samples.push_back((instant, server));
        }
        if facts.samples.len() > SAMPLES_MAX {
            facts.samples.pop_front();
        }
        let position = |mark: &Watermark| {
            let lsn = mark.get();
            (lsn > 0).then(|| Position {
                lsn: Lsn(lsn).to_string(),
                lag: Lag {
                    bytes: server.saturating_sub(lsn),
                    seconds: lag(&facts.samples, lsn, instant).as_secs(),
                },
            })
        };
        Document {
            state: facts.state.to_string(),
            server: facts.server_place.clone(),
            connected_since: facts.connected_since.map(|time| time.to_string()),
            system_identifier: facts.system_identifier.clone(),
            timeline: facts.timeline.map(|timeline| timeline.0),
            server_lsn: (server > 0).then(|| Lsn(server).to_string()),
            received: position(&self.received),
            written: position(&self.written),
            flushed: position(&self.flushed),
            archived: position(&self.archived),
            last_error: facts.last_error.as_ref().map(|(time, text)| Trouble {
                at: time.to_string(),
                message: text.clone(),
            }),
            ..Document::default()
        }
    }
}

/// How long ago the server already had more than `lsn`.
fn lag(samples: &VecDeque<(Instant, u64)>, lsn: u64, now: Instant) -> Duration {
    let missed = samples.iter().find(|(_, server)| *server > lsn);
    missed.map_or(Duration::ZERO, |(time, _)| {
        now.saturating_duration_since(*time)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_from_when_the_server_was_ahead() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let samples = VecDeque::from([(at(0), 100), (at(1), 200), (at(5), 300)]);
        for (lsn, seconds) in [(50, 10), (100, 9), (199, 9), (200, 5), (300, 0), (400, 0)] {
            assert_eq!(
                lag(&samples, lsn, at(10)),
                Duration::from_secs(seconds),
                "{lsn}"
            );
        }
    }
}
