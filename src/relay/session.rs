//! One connection: who is there, where to go on, and the stream until it ends, over all timelines that it passes.

use super::reader::{End, Reader};
use super::writer::Writer;
use super::{Course, Item, Outcome, Relay, Rules};
use crate::archive::Archive;
use crate::archive::gaps::Gap;
use crate::archive::identity::Identity;
use crate::disk::os::OsDir;
use crate::error::{Error, Kind, Result};
use crate::limits::RECEIVE_QUEUE_BATCHES;
use crate::pg::{Lsn, Segment, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId};
use crate::spool::queue::Archived;
use crate::spool::resume::{self, Contents, Start};
use crate::spool::writer::SegmentWriter;
use crate::spool::{self, owner};
use crate::wire::Conn;
use crate::wire::replication::{Replication, WalStream};
use crate::work::crew;
use crate::work::stop::Stop;
use crossbeam_channel::{Sender, bounded};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// What is known of the server once it has shown itself.
struct Server {
    system_id: SystemId,
    segment_size: SegmentSize,
    flush: Lsn,
    /// Its timeline and how it came there.
    path: TimelineHistory,
    /// Whether the archive, if there is one, was found to be of its cluster, and so can be asked more.
    archive_answers: bool,
}

/// Where a session goes on.
struct Found {
    start: Start,
    archived: Archived,
    /// Whether the archive was asked what it has, or there is none.
    archive_asked: bool,
}

impl Relay<'_> {
    /// Receives over one connection until it ends.
    pub(super) fn session(&self, sealed: &Sender<()>, stop: &Stop) -> Result<Outcome> {
        let mut conn = self.connect.replication(stop)?;
        let asking = self.asking(stop);
        let server = self.recognise(&mut conn, &asking)?;
        self.progress
            .set_server(conn.server(), server.system_id.to_string());
        let found = self.start(&mut conn, &server, &asking, stop)?;
        let without_archive = !found.archive_asked;
        let ended = self.follow(conn, server.segment_size, found, sealed, stop);
        ended.map_err(|e| match e.kind() {
            Kind::Hole if without_archive => {
                self.needs_archive.store(true, Ordering::Relaxed);
                archive_may_have_it(e)
            }
            _ => e,
        })
    }

    /// Receives from where it was found to go on, over all timelines that come.
    fn follow(
        &self,
        mut conn: Conn,
        size: SegmentSize,
        found: Found,
        sealed: &Sender<()>,
        stop: &Stop,
    ) -> Result<Outcome> {
        let Found {
            start,
            mut archived,
            ..
        } = found;
        log::info!(
            "receiving timeline {} from {}: {}",
            start.timeline,
            start.lsn,
            start.why
        );
        if self
            .options
            .end_position
            .is_some_and(|last| start.lsn > last)
        {
            log::info!("the end position was reached before");
            return Ok(Outcome::Done);
        }
        let spool = self.open_spool()?;
        let mut writer = SegmentWriter::begin(spool, size, start.timeline, start.lsn)?;
        writer.heed(stop);
        loop {
            let (timeline, lsn) = (writer.timeline(), writer.write_lsn());
            let course = Course {
                timeline,
                segment_size: size,
                archived: archived.clone(),
            };
            self.enter(course, lsn);
            let slot = self.options.slot.as_deref();
            let (next, switch) = match conn.start_replication(slot, lsn, timeline)? {
                Replication::TimelineEnded {
                    conn: same,
                    next,
                    switch,
                } => {
                    conn = same;
                    (next, switch)
                }
                Replication::Streaming(mut stream) => {
                    match self.stream(&mut stream, &mut writer, size, sealed, stop)? {
                        End::Timeline => {}
                        End::Stopped => {
                            stop.check()?;
                            return Ok(Outcome::Done);
                        }
                        other => return outcome(other),
                    }
                    self.progress.disconnect();
                    let (same, next) = stream.end()?;
                    conn = same;
                    next.ok_or_else(|| no_next_timeline(timeline))?
                }
            };
            log::info!("timeline {timeline} ended at {switch}; timeline {next} goes on there");
            let path = self.keep_history(&mut conn, next)?;
            writer.switch_timeline(next, switch)?;
            self.expect_course();
            archived = self.archived().unwrap_or(archived);
            archived.switch_timeline(path, switch);
        }
    }

    /// Who is it? Spool and archive must be of the same cluster.
    fn recognise(&self, conn: &mut Conn, asking: &Stop) -> Result<Server> {
        let identity = conn.identify_system()?;
        let segment_size = conn.wal_segment_size()?;
        let cluster = Identity {
            system_id: identity.system_id,
            major: conn.server_version().major(),
            segment_size,
        };
        owner::refuse_stranger(&self.spool, cluster.system_id, segment_size)?;
        let archive_answers = match &self.options.upload {
            Some(upload) => {
                let claim = |archive: &Archive| archive.claim(&cluster, crate::work::now());
                self.ask_archive(upload, asking, claim)?.is_some()
            }
            None => false,
        };
        let path = self.keep_history(conn, identity.timeline)?;
        Ok(Server {
            system_id: identity.system_id,
            segment_size,
            flush: identity.flush,
            path,
            archive_answers,
        })
    }

    /// The histories of a timeline and of all on its path, durable in the spool before any WAL of theirs.
    fn keep_history(&self, conn: &mut Conn, timeline: TimelineId) -> Result<TimelineHistory> {
        let mut path = TimelineHistory::root(timeline);
        if timeline == TimelineId(1) {
            return Ok(path);
        }
        let (_, text) = conn.timeline_history_raw(timeline)?;
        path = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))?;
        for ancestor in &path.ancestors {
            if ancestor.timeline > TimelineId(1) {
                // A server that was restored without it has none to give.
                match conn.timeline_history_raw(ancestor.timeline) {
                    Ok((_, text)) => spool::store_history(&self.spool, ancestor.timeline, &text)?,
                    Err(e) if e.kind() == Kind::Transient => return Err(e),
                    Err(e) => log::warn!(
                        "the history of timeline {} cannot be had: {}",
                        ancestor.timeline,
                        e.one_line()
                    ),
                }
            }
        }
        spool::store_history(&self.spool, timeline, &text)?;
        Ok(path)
    }

    /// Where to go on, and how far the archive reaches.
    fn start(&self, conn: &mut Conn, server: &Server, asking: &Stop, stop: &Stop) -> Result<Found> {
        let size = server.segment_size;
        self.expect_course();
        let contents = resume::read(&self.spool, size)?;
        let restart = self.restart_lsn(conn, stop)?;
        let mut held = self.held(&contents, server, restart, asking)?;
        // Without an archive at all nothing can be there.
        if self.options.upload.is_none() {
            held.get_or_insert_default();
        }
        if let Some(lsn) = self.options.accept_gap {
            // One that does not answer may have what seems to be missing, and it must be told.
            let known = held.as_mut().ok_or_else(|| {
                self.needs_archive.store(true, Ordering::Relaxed);
                gap_needs_archive(lsn)
            })?;
            self.accept_gap(lsn, &contents, known, restart, server)?;
        }
        let (path, held) = (&server.path, held.as_ref());
        let found = resume::start_position(&contents, held, path, size, restart, server.flush);
        let start = match found {
            // After its start a standby is where it has replayed to, and gets the rest again.
            Err(e) if e.kind() == Kind::Mismatch && is_standby(conn)? => {
                let anywhere = Lsn(u64::MAX);
                let start = resume::start_position(&contents, held, path, size, restart, anywhere)?;
                return Err(standby_behind(&start, server.flush));
            }
            other => other.inspect_err(|_| {
                self.needs_archive.store(held.is_none(), Ordering::Relaxed);
            })?,
        };
        let nothing = BTreeSet::new();
        let known = held.unwrap_or(&nothing);
        Ok(Found {
            archived: Archived::begin(&contents, known, path.clone(), size, start.lsn)?,
            archive_asked: held.is_some(),
            start,
        })
    }

    /// What the archive has from the first segment on that matters and the newest before it, and the gaps that were
    /// accepted before, which nobody will ever fill.
    fn held(
        &self,
        contents: &Contents,
        server: &Server,
        restart: Option<Lsn>,
        asking: &Stop,
    ) -> Result<Option<BTreeSet<Segment>>> {
        let upload = self.options.upload.as_ref();
        let Some(upload) = upload.filter(|_| server.archive_answers) else {
            return Ok(None);
        };
        let size = server.segment_size;
        let mut from = restart;
        for segment in contents.whole.iter().chain(&contents.partial) {
            let start = segment.start(size)?;
            from = Some(from.map_or(start, |lsn| lsn.min(start)));
        }
        let path = &server.path;
        // Without it the marks of what was uploaded stand for it.
        self.ask_archive(upload, asking, |archive| {
            // An empty spool does not tell how far we were: the archive must.
            let back = contents.is_empty();
            let mut held = archive.held_segments(path, size, from.unwrap_or(Lsn(0)), back)?;
            let ancestors = path.ancestors.iter().map(|ancestor| ancestor.timeline);
            for timeline in ancestors.chain([path.timeline]) {
                for gap in archive.gaps(timeline)? {
                    held.extend(segments_between(path, size, gap.start, gap.end));
                }
            }
            if back {
                keep_newest_before(
                    &mut held,
                    SegmentNo::holding(from.unwrap_or(Lsn(0)), size),
                    size,
                )?;
            }
            Ok(held)
        })
    }

    /// The operator gives up what lies between the end of what we have and `lsn`. The archive is told, so that recovery
    /// stops there instead of ending.
    fn accept_gap(
        &self,
        lsn: Lsn,
        contents: &Contents,
        held: &mut BTreeSet<Segment>,
        restart: Option<Lsn>,
        server: &Server,
    ) -> Result<()> {
        let (size, path) = (server.segment_size, &server.path);
        if lsn > server.flush {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "--accept-gap {lsn} lies beyond the server's WAL, which ends at {}",
                    server.flush
                ),
            ));
        }
        let reached = resume::start_position(contents, Some(held), path, size, None, server.flush)?;
        let end = SegmentNo::holding(lsn, size).start(size);
        if reached.lsn >= end {
            log::info!(
                "there is no gap before {lsn}: WAL is unbroken up to {}",
                reached.lsn
            );
            return Ok(());
        }
        if let Some(kept) = restart
            && SegmentNo::holding(kept, size).start(size) != end
        {
            let what = match kept < end {
                true => "would give up WAL that the server still has",
                false => "leaves WAL missing",
            };
            return Err(
                Error::new(Kind::Usage, format!("--accept-gap {lsn} {what}"))
                    .detail(format!(
                        "The slot keeps it from {kept} on; the spool and the archive reach up to {}.",
                        reached.lsn
                    ))
                    .hint(format!("Say --accept-gap {kept}, or leave it out.")),
            );
        }
        log::warn!(
            "WAL from {} to {end} is given up, as --accept-gap says; take a base backup",
            reached.lsn
        );
        if let Some(upload) = &self.options.upload {
            let gap = Gap {
                timeline: path.holding(reached.lsn),
                start: reached.lsn,
                end,
            };
            // Not without the archive: a gap that nobody is told of would look like the end of WAL.
            self.archive(upload)?
                .put_gap(gap, server.system_id, crate::work::now())?;
        }
        held.extend(segments_between(path, size, reached.lsn, end));
        Ok(())
    }

    /// What the slot keeps; an error if it cannot be used.
    fn restart_lsn(&self, conn: &mut Conn, stop: &Stop) -> Result<Option<Lsn>> {
        let Some(slot) = &self.options.slot else {
            return Ok(None);
        };
        // A slot that was never used has no position yet, and a lost one has none any more: only SQL tells which.
        let info = match self
            .connect
            .ordinary(conn, stop)
            .and_then(|mut sql| sql.slot_info(slot))
        {
            Ok(info) => info.ok_or_else(|| no_slot(slot))?,
            Err(e) if conn.server_version().reads_slots() => {
                log::debug!(
                    "no ordinary session to ask about the slot: {}",
                    e.one_line()
                );
                let state = conn.read_slot(slot)?.ok_or_else(|| no_slot(slot))?;
                return Ok(state.restart_lsn);
            }
            Err(e) => {
                return Err(e.context(format!("could not look at the replication slot \"{slot}\""))
                    .hint("Servers before 15 tell of slots in an ordinary session alone: let the role connect to database postgres."));
            }
        };
        if !info.physical {
            return Err(Error::new(
                Kind::Refused,
                format!("the replication slot \"{slot}\" is logical"),
            )
            .detail("WAL is received through physical slots alone.")
            .hint("Make one of another name with wal-receive --create-slot."));
        }
        if info.is_lost() {
            return Err(Error::new(
                Kind::Hole,
                format!("the replication slot \"{slot}\" is lost"),
            )
            .detail("The server has removed WAL that it should have kept (max_slot_wal_keep_size).")
            .hint("Drop the slot and create it anew, go on with --accept-gap, and take a base backup."));
        }
        Ok(info.restart_lsn)
    }
}

impl Relay<'_> {
    /// Reader and writer, until the stream has ended and all that came of it is durable.
    fn stream(
        &self,
        stream: &mut WalStream,
        writer: &mut SegmentWriter<OsDir>,
        segment_size: SegmentSize,
        sealed: &Sender<()>,
        stop: &Stop,
    ) -> Result<End> {
        let options = self.options;
        self.progress.connect(stream.sender());
        self.progress.set_state("streaming");
        let (items, queue) = bounded::<Item>(RECEIVE_QUEUE_BATCHES);
        let (emptied, empty) = bounded(RECEIVE_QUEUE_BATCHES);
        let rules = Rules {
            synchronous: options.synchronous,
            status_interval: options.status_interval,
            receive_timeout: options.receive_timeout,
            end_position: options.end_position,
            segment_size,
            stop: stop.clone(),
            given_up: Stop::new(),
        };
        let room = |segment| self.has_room(segment, segment_size);
        crew::run(stop, |crew| {
            let (rules, progress) = (&rules, &self.progress);
            let writer = Writer {
                segments: writer,
                items: queue,
                empty: emptied,
                sealed: sealed.clone(),
                progress,
                rules,
                room: &room,
            };
            crew.spawn("wal-writer", move || writer.run())?;
            let reader = Reader {
                stream,
                items,
                empty,
                progress,
                rules,
            };
            // Its end of the channel falls with it: the writer writes what is left, syncs, reports and ends.
            let end = match reader.run() {
                // The writer has seen the stop first.
                End::WriterGone if rules.stop.is_set() => End::Stopped,
                end => end,
            };
            if matches!(end, End::Paused | End::Stopped) {
                rules.given_up.set();
            }
            Ok(end)
        })
    }

    /// Whether there may be a file of this segment: there is one, or the spool may become larger by it. What stays anyway
    /// does not count: nothing would ever make room for it.
    fn has_room(&self, segment: Segment, size: SegmentSize) -> bool {
        let Some(most) = self.options.spool_bytes_max else {
            return true;
        };
        // The one before it may not have its final name yet.
        let previous = segment
            .number(size)
            .map(|n| SegmentNo(n.0.saturating_sub(1)));
        let previous = previous.map(|number| Segment::new(segment.timeline, number, size));
        let writing = previous.is_ok_and(|before| owner::has_begun(&self.spool, before));
        let writing = u64::from(writing) * size.bytes();
        // What cannot be counted is not too much.
        let used = owner::usage(&self.spool, size).map_or(0, |used| used.passing + writing);
        used < most || owner::has_begun(&self.spool, segment)
    }
}

/// Of those before `first`, the newest alone tells how far anybody was.
fn keep_newest_before(
    held: &mut BTreeSet<Segment>,
    first: SegmentNo,
    size: SegmentSize,
) -> Result<()> {
    let mut newest: Option<(SegmentNo, Segment)> = None;
    for segment in held.iter() {
        let number = segment.number(size)?;
        if number < first {
            newest = newest.max(Some((number, *segment)));
        }
    }
    held.retain(|segment| segment.number(size).is_ok_and(|number| number >= first));
    held.extend(newest.map(|(_, segment)| segment));
    Ok(())
}

/// The segments of a path from the one that holds `from` up to the one that begins at `to`, exclusively.
fn segments_between(path: &TimelineHistory, size: SegmentSize, from: Lsn, to: Lsn) -> Vec<Segment> {
    let (mut number, end) = (SegmentNo::holding(from, size), SegmentNo::holding(to, size));
    let mut segments = Vec::new();
    while number < end {
        let last_byte = Lsn(number.next().start(size).0 - 1);
        segments.push(Segment::new(path.holding(last_byte), number, size));
        number = number.next();
    }
    segments
}

fn is_standby(conn: &mut Conn) -> Result<bool> {
    Ok(conn.show("transaction_read_only")? == "on")
}

fn standby_behind(start: &Start, flush: Lsn) -> Error {
    Error::new(
        Kind::Transient,
        format!(
            "the standby has WAL up to {flush} only, and {} is wanted",
            start.lsn
        ),
    )
    .detail("A standby that was started gets again what it had not replayed.")
}

fn no_slot(name: &str) -> Error {
    Error::new(
        Kind::Missing,
        format!("there is no replication slot \"{name}\""),
    )
    .detail("It is not created silently: what the server removed meanwhile would be missing.")
    .hint(format!(
        "Make it with wal-receive --create-slot --slot {name}, or find out who dropped it."
    ))
}

/// The server has removed WAL that we asked for because the archive could not say that it has it.
fn archive_may_have_it(error: Error) -> Error {
    Error::new(
        Kind::Transient,
        format!(
            "the archive must be asked whether this is a gap: {}",
            error.message()
        ),
    )
    .hint("Wait until the archive can be reached.")
}

fn gap_needs_archive(lsn: Lsn) -> Error {
    Error::new(
        Kind::Transient,
        format!("the archive must be asked and told before a gap up to {lsn} is accepted"),
    )
    .hint("Wait until the archive can be reached.")
}

fn no_next_timeline(timeline: TimelineId) -> Error {
    Error::new(
        Kind::Protocol,
        format!("the server ended timeline {timeline} without naming the next one"),
    )
}

/// What the end of a stream means for the session.
fn outcome(end: End) -> Result<Outcome> {
    match end {
        End::Reached => {
            log::info!("the end position was reached");
            Ok(Outcome::Done)
        }
        End::Shutdown => Ok(Outcome::Again("the server has shut down".to_string())),
        End::Paused => Ok(Outcome::Again(
            "there is no room for more, so the server was left".to_string(),
        )),
        End::Lost(e) => Err(e),
        End::Timeline | End::Stopped | End::WriterGone => Err(Error::new(
            Kind::Bug,
            "the end of a stream was not understood",
        )),
    }
}
