//! SegmentWriter: fills segment files (`segment_file` makes them), syncs them, and seals them: a full segment is synced,
//! renamed to its final name, and the directory synced.
//!
//! A failed write or sync is never tried again: how much of it reached the disk is unknown, and the kernel may have
//! dropped the pages. The writer is poisoned and only a new life, which receives the segment again, goes on. The one
//! exception is a full disk while a file is being made: nothing depends on that file yet, so it is removed, and the
//! same `append` may be called again.

use super::segment_file::{Empty, Fork, Open, prepare, rename, sync_dir};
use super::{failed, partial_name};
use crate::disk::{Fs, FsFile};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, Segment, SegmentNo, SegmentSize, TimelineId};
use crate::work::stop::Stop;

/// Writes the WAL of one timeline after the other into segment files.
pub struct SegmentWriter<F: Fs> {
    fs: F,
    size: SegmentSize,
    timeline: TimelineId,
    write_lsn: Lsn,
    flush_lsn: Lsn,
    /// How far the server's WAL reaches, as far as it said.
    server_end: Lsn,
    open: Option<Open<F::File>>,
    /// Where this timeline left its parent, until its first segment is made.
    fork: Option<Fork>,
    /// The append that met a full disk began here; it may come again.
    refused: Option<Lsn>,
    poisoned: bool,
    stop: Stop,
}

impl<F: Fs> SegmentWriter<F> {
    /// Begins at `start`, the first byte of a segment, which `resume` has found: all WAL before it is safe, or not
    /// wanted. Touches nothing; the file is made or taken up by the first `append`.
    pub fn begin(fs: F, size: SegmentSize, timeline: TimelineId, start: Lsn) -> Result<Self> {
        if SegmentNo::holding(start, size).start(size) != start {
            let message = format!("{start} is not the start of a segment");
            return Err(Error::new(Kind::Bug, message));
        }
        Ok(SegmentWriter {
            fs,
            size,
            timeline,
            write_lsn: start,
            flush_lsn: start,
            server_end: start,
            open: None,
            fork: None,
            refused: None,
            poisoned: false,
            stop: Stop::new(),
        })
    }

    /// From now on `stop` ends the making of a new segment file.
    pub fn heed(&mut self, stop: &Stop) {
        self.stop = stop.clone();
    }

    /// The timeline being written.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// All before this was handed to the kernel; the next byte expected.
    pub fn write_lsn(&self) -> Lsn {
        self.write_lsn
    }

    /// All before this survives power loss.
    pub fn flush_lsn(&self) -> Lsn {
        self.flush_lsn
    }

    /// Tells how far the server's WAL reaches: whether segments come one by one or as fast as they can be written.
    pub fn server_reaches(&mut self, lsn: Lsn) {
        self.server_end = lsn;
    }

    /// Writes `bytes`, which begin at `lsn`, and seals every segment they complete. Else nothing is synced. A gap or an
    /// overlap is `Kind::Protocol`. `Kind::Full` means that there is no room for a new segment file: call again with
    /// the same bytes when there is. `Kind::Interrupted` is the same for one who was told to stop (`heed`). After any other
    /// error only a new writer goes on.
    pub fn append(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<()> {
        self.check_sound()?;
        let mut rest = &bytes[self.taken_already(lsn, bytes.len())?..];
        while !rest.is_empty() {
            if self.open.is_none() {
                self.refused = Some(lsn);
                self.open_segment()?;
            }
            let room = self.size.bytes() - self.offset();
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.write(now)?;
            rest = later;
        }
        self.refused = None;
        Ok(())
    }

    /// Makes everything written survive power loss, with one sync, and answers up to where. In a segment that is not
    /// to be seen yet (`switch_timeline`) that is where the segment begins.
    pub fn flush(&mut self) -> Result<Lsn> {
        self.check_sound()?;
        let Some(open) = &self.open else {
            return Ok(self.flush_lsn);
        };
        if open.hidden_until.is_none() && self.flush_lsn < self.write_lsn {
            let synced = open.file.sync_data();
            let synced = synced.map_err(|e| failed("sync", &open.name(), e));
            self.or_poison(synced)?;
            self.flush_lsn = self.write_lsn;
        }
        Ok(self.flush_lsn)
    }

    /// Goes over to timeline `next`, which left this one at `switch`. What was received of this one is flushed and
    /// keeps its name. The segment that holds `switch` is received again from its first byte, under its new name, so
    /// both LSNs step back to there.
    ///
    /// Recovery asks the newer timeline for that segment first. So its file begins with a copy of what we have below
    /// `switch`; without our old file it stays `.tmp` until it has reached `switch`.
    pub fn switch_timeline(&mut self, next: TimelineId, switch: Lsn) -> Result<()> {
        self.check_sound()?;
        let begun = self.fork.is_none() && !self.is_hidden();
        if next <= self.timeline || switch > self.write_lsn || !begun {
            return Err(self.bad_switch(next, switch));
        }
        self.flush()?;
        let segment = Segment::holding(self.timeline, switch, self.size);
        let start = SegmentNo::holding(switch, self.size).start(self.size);
        let parent = match &self.open {
            Some(open) if open.segment == segment => partial_name(segment),
            // Passed, so it is whole. A `.partial` of it would be an earlier life's and may be shorter.
            _ => segment.to_string(),
        };
        self.fork = (start < switch).then_some(Fork { at: switch, parent });
        (self.open, self.refused) = (None, None);
        self.timeline = next;
        (self.write_lsn, self.flush_lsn) = (start, start);
        Ok(())
    }

    fn offset(&self) -> u64 {
        self.write_lsn.0 % self.size.bytes()
    }

    fn is_hidden(&self) -> bool {
        let hidden_until = self.open.as_ref().and_then(|open| open.hidden_until);
        hidden_until.is_some()
    }

    /// How many of the bytes at `lsn` were written before the disk was found full.
    fn taken_already(&self, lsn: Lsn, len: usize) -> Result<usize> {
        let taken = self.write_lsn.0.wrapping_sub(lsn.0);
        if taken == 0 || (self.refused == Some(lsn) && taken <= len as u64) {
            return Ok(taken as usize);
        }
        let message = format!("WAL at {} was expected, not at {lsn}", self.write_lsn);
        Err(Error::new(Kind::Protocol, message))
    }

    fn open_segment(&mut self) -> Result<()> {
        let segment = Segment::holding(self.timeline, self.write_lsn, self.size);
        // The rest of this segment is on its way already: nobody waits for a part of it.
        let comes_whole = self.server_end.0.saturating_sub(self.write_lsn.0) >= self.size.bytes();
        let empty = match comes_whole {
            true => Empty::Reserved,
            false => Empty::Zeros,
        };
        let fork = self.fork.as_ref();
        match prepare(&self.fs, self.size, segment, fork, empty, &self.stop) {
            Err(e) if matches!(e.kind(), Kind::Full | Kind::Interrupted) => Err(e),
            other => {
                self.open = Some(self.or_poison(other)?);
                self.fork = None;
                Ok(())
            }
        }
    }

    /// Writes within the open segment.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let offset = self.offset();
        let open = self.open.as_ref().expect("append opened it");
        let written = open.file.write_at(offset, bytes);
        let written = written.map_err(|e| failed("write", &open.name(), e));
        self.or_poison(written)?;
        self.write_lsn.0 += bytes.len() as u64;
        if self.offset() == 0 {
            let sealed = self.seal();
            return self.or_poison(sealed);
        }
        let shown = self.show_if_reached();
        self.or_poison(shown)
    }

    /// Names a hidden segment as soon as it has what the parent timeline's file had.
    fn show_if_reached(&mut self) -> Result<()> {
        if let Some(open) = &mut self.open
            && open.hidden_until.is_some_and(|lsn| lsn <= self.write_lsn)
        {
            let name = open.name();
            let synced = open.file.sync_data();
            synced.map_err(|e| failed("sync", &name, e))?;
            rename(&self.fs, &name, &partial_name(open.segment))?;
            sync_dir(&self.fs)?;
            open.hidden_until = None;
            self.flush_lsn = self.write_lsn;
        }
        Ok(())
    }

    /// The segment is full: its bytes durable, then its name, then the name durable.
    fn seal(&mut self) -> Result<()> {
        let open = self.open.take().expect("it has just been written");
        let name = open.name();
        let synced = open.file.sync_data();
        synced.map_err(|e| failed("sync", &name, e))?;
        rename(&self.fs, &name, &open.segment.to_string())?;
        sync_dir(&self.fs)?;
        self.flush_lsn = self.write_lsn;
        Ok(())
    }

    fn check_sound(&self) -> Result<()> {
        if self.poisoned {
            return Err(Error::new(Kind::Io, "an earlier write to the spool failed")
                .detail("What is on the disk is unknown until the segment is received again.")
                .hint("Look for the first error, and start seawall again."));
        }
        Ok(())
    }

    fn or_poison<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|e| {
            self.poisoned = true;
            // `Kind::Full` would invite to try again.
            match e.kind() {
                Kind::Full => e.with_kind(Kind::Io),
                _ => e,
            }
        })
    }

    fn bad_switch(&self, next: TimelineId, switch: Lsn) -> Error {
        let message = format!(
            "the server ended timeline {} at {switch} in favour of timeline {next}",
            self.timeline
        );
        Error::new(Kind::Protocol, message).detail(format!(
            "WAL was received up to {}, which does not fit.",
            self.write_lsn
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::os::OsDir;
    use crate::disk::sim::{SimFs, Weather};

    const SIZE: SegmentSize = SegmentSize::tiny(0x1000);
    const TLI: TimelineId = TimelineId(1);
    const FIRST: &str = "000000010000000000000003";
    const FIRST_PARTIAL: &str = "000000010000000000000003.partial";

    fn writer(fs: &SimFs) -> SegmentWriter<SimFs> {
        SegmentWriter::begin(fs.clone(), SIZE, TLI, Lsn(0x3000)).unwrap()
    }

    fn file(fs: &SimFs, name: &str, bytes: &[u8]) {
        let file = fs.create_new(name.as_ref()).unwrap();
        file.write_at(0, bytes).unwrap();
    }

    #[test]
    fn segments_are_filled_and_sealed() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        assert_eq!(writer.flush().unwrap(), Lsn(0x3000));
        assert_eq!(fs.names(), [""; 0], "nothing before the first byte");
        writer.append(Lsn(0x3000), &[1; 0x800]).unwrap();
        assert_eq!(
            (writer.write_lsn(), writer.flush_lsn()),
            (Lsn(0x3800), Lsn(0x3000))
        );
        let mut expected = vec![1; 0x800];
        expected.resize(0x1000, 0);
        assert_eq!(fs.read(FIRST_PARTIAL).unwrap(), expected);
        assert_eq!(writer.flush().unwrap(), Lsn(0x3800));
        // One message may complete a segment, and more than one.
        writer.append(Lsn(0x3800), &[2; 0x2000]).unwrap();
        assert_eq!(writer.flush_lsn(), Lsn(0x5000), "sealed is flushed");
        assert_eq!(writer.flush().unwrap(), Lsn(0x5800));
        let names = [
            FIRST,
            "000000010000000000000004",
            "000000010000000000000005.partial",
        ];
        assert_eq!(fs.names(), names);
        writer.append(Lsn(0x5800), &[]).unwrap();
    }

    #[test]
    fn what_comes_whole_is_not_written_twice() {
        const LARGE: SegmentSize = SegmentSize::tiny(4 << 20);
        let start = Lsn(3 << 22);
        let mut operations = Vec::new();
        for server_end in [start.0 + (4 << 20) - 1, start.0 + (4 << 20)] {
            let fs = SimFs::default();
            let mut writer = SegmentWriter::begin(fs.clone(), LARGE, TLI, start).unwrap();
            writer.server_reaches(Lsn(server_end));
            writer.append(start, &[1; 0x10]).unwrap();
            let mut expected = vec![1; 0x10];
            expected.resize(4 << 20, 0);
            assert!(fs.read("000000010000000000000003.partial").unwrap() == expected);
            operations.push(fs.operations());
        }
        assert!(operations[1] + 2 < operations[0], "{operations:?}");
    }

    #[test]
    fn a_stop_ends_the_making_of_a_file_and_does_no_harm() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        let stop = Stop::new();
        writer.heed(&stop);
        writer.append(Lsn(0x3000), &[1; 0x800]).unwrap();
        stop.set();
        // What is there already is still filled and sealed, and the next one is not begun.
        let error = writer.append(Lsn(0x3800), &[2; 0x1000]).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
        assert_eq!(writer.flush().unwrap(), Lsn(0x4000));
        assert_eq!(fs.names(), [FIRST]);
        writer.heed(&Stop::new());
        writer.append(Lsn(0x3800), &[2; 0x1000]).unwrap();
        assert_eq!(writer.flush().unwrap(), Lsn(0x4800));
    }

    #[test]
    fn what_does_not_follow_is_refused_and_does_no_harm() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[1; 0x10]).unwrap();
        for lsn in [0x3011, 0x300F, 0x3000, 0x2000, 0x4010] {
            let error = writer.append(Lsn(lsn), &[1; 0x20]).unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol);
            let both = format!("WAL at 0/3010 was expected, not at {}", Lsn(lsn));
            assert_eq!(error.message(), both);
        }
        writer.append(Lsn(0x3010), &[1; 0x10]).unwrap();
        let unaligned = SegmentWriter::begin(fs, SIZE, TLI, Lsn(0x3001));
        assert_eq!(unaligned.err().unwrap().kind(), Kind::Bug);
    }

    #[test]
    fn a_full_disk_leaves_nothing_and_the_same_bytes_come_again() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[1; 0x800]).unwrap();
        let full = Weather {
            full: 100,
            ..Weather::default()
        };
        for _ in 0..3 {
            fs.set_weather(full, 1);
            let error = writer.append(Lsn(0x3800), &[2; 0x1000]).unwrap_err();
            assert_eq!(error.kind(), Kind::Full);
            assert!(error.hint_text().is_some());
            assert_eq!(fs.names(), [FIRST], "sealed, and nothing begun");
            assert_eq!(writer.flush().unwrap(), Lsn(0x4000));
        }
        let gap = writer.append(Lsn(0x3400), &[2; 0x1000]).unwrap_err();
        assert_eq!(gap.kind(), Kind::Protocol, "only the same bytes");
        fs.set_weather(Weather::default(), 1);
        writer.append(Lsn(0x3800), &[2; 0x1000]).unwrap();
        assert_eq!(writer.flush().unwrap(), Lsn(0x4800));
        let late = writer.append(Lsn(0x3800), &[2; 0x1000]).unwrap_err();
        assert_eq!(late.kind(), Kind::Protocol, "once");
    }

    #[test]
    fn space_that_ends_while_a_file_is_filled_leaves_nothing_either() {
        let (mut created, fs) = (false, SimFs::default());
        for seed in 0..20 {
            let half = Weather {
                full: 50,
                ..Weather::default()
            };
            fs.set_weather(half, seed);
            let before = fs.operations();
            match writer(&fs).append(Lsn(0x3000), &[1]) {
                Err(e) => {
                    assert_eq!(e.kind(), Kind::Full);
                    assert_eq!(fs.names(), [""; 0]);
                    created |= fs.operations() - before > 1;
                }
                Ok(()) => fs.remove(FIRST_PARTIAL.as_ref()).unwrap(),
            }
        }
        assert!(created, "the file was there and was removed");
    }

    #[test]
    fn after_a_failed_write_or_sync_nothing_goes_on() {
        let calm = Weather::default();
        let cases = [
            Weather { write: 100, ..calm },
            Weather {
                data_sync: 100,
                ..calm
            },
        ];
        for weather in cases {
            let fs = SimFs::default();
            let mut writer = writer(&fs);
            writer.append(Lsn(0x3000), &[1; 0x800]).unwrap();
            fs.set_weather(weather, 1);
            let failed = writer
                .append(Lsn(0x3800), &[2; 0x10])
                .and_then(|()| writer.flush());
            assert_eq!(failed.unwrap_err().kind(), Kind::Io);
            fs.set_weather(calm, 1);
            let lsn = writer.write_lsn();
            let refused = writer.append(lsn, &[2]).unwrap_err();
            assert!(refused.hint_text().is_some());
            assert_eq!(refused.kind(), Kind::Io);
            assert_eq!(writer.flush().unwrap_err().kind(), Kind::Io);
            let switched = writer.switch_timeline(TimelineId(2), Lsn(0x3400));
            assert_eq!(switched.unwrap_err().kind(), Kind::Io);
            assert_eq!(writer.flush_lsn(), Lsn(0x3000));
        }
    }

    #[test]
    fn a_partial_of_an_earlier_life_is_received_again_in_place() {
        let fs = SimFs::default();
        file(&fs, FIRST_PARTIAL, &[7; 0x1000]);
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[7; 0x10]).unwrap();
        let after = fs.copy().power_loss(&mut Default::default(), 0);
        assert_eq!(after.read(FIRST_PARTIAL).unwrap(), [7; 0x1000]);
    }

    #[test]
    fn a_partial_of_another_length_is_replaced_only_if_it_never_held_wal() {
        let allocated = [&[1; 0x10][..], &[0; 0xFF0][..]].concat();
        for short in [0, 1, 0xFFF] {
            let fs = SimFs::default();
            file(&fs, FIRST_PARTIAL, &vec![0; short]);
            writer(&fs).append(Lsn(0x3000), &[1; 0x10]).unwrap();
            assert_eq!(fs.read(FIRST_PARTIAL).unwrap(), allocated);
            assert_eq!(fs.names(), [FIRST_PARTIAL]);
        }
        let cut = [&[0; 0x200][..], &[7][..]].concat();
        for bytes in [cut, vec![0; 0x1001], vec![7; 0x2000]] {
            let fs = SimFs::default();
            file(&fs, FIRST_PARTIAL, &bytes);
            let error = writer(&fs).append(Lsn(0x3000), &[1; 0x10]).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.message().contains(FIRST_PARTIAL), "{error}");
            assert_eq!(fs.read(FIRST_PARTIAL).unwrap(), bytes, "left alone");
        }
    }

    #[test]
    fn what_a_life_left_in_the_making_is_made_anew() {
        let fs = SimFs::default();
        file(&fs, "000000010000000000000003.partial.tmp", &[9; 0x800]);
        writer(&fs).append(Lsn(0x3000), &[1; 0x10]).unwrap();
        let allocated = [&[1; 0x10][..], &[0; 0xFF0][..]].concat();
        assert_eq!(fs.read(FIRST_PARTIAL).unwrap(), allocated);
        assert_eq!(fs.names(), [FIRST_PARTIAL]);
    }

    #[test]
    fn a_new_timeline_begins_with_what_we_have_of_the_old_one() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[1; 0x900]).unwrap();
        writer.switch_timeline(TimelineId(2), Lsn(0x3800)).unwrap();
        assert_eq!(
            (writer.timeline(), writer.write_lsn()),
            (TimelineId(2), Lsn(0x3000))
        );
        writer.append(Lsn(0x3000), &[1; 0x10]).unwrap();
        let child = "000000020000000000000003.partial";
        assert_eq!(fs.names(), [FIRST_PARTIAL, child]);
        let copied = [&[1; 0x800][..], &[0; 0x800][..]].concat();
        assert_eq!(fs.read(child).unwrap(), copied);
        assert_eq!(fs.read(FIRST_PARTIAL).unwrap()[..0x900], [1; 0x900]);
    }

    #[test]
    fn without_the_old_one_it_is_hidden_until_the_switch() {
        let fs = SimFs::default();
        let mut writer = SegmentWriter::begin(fs.clone(), SIZE, TLI, Lsn(0x4000)).unwrap();
        writer.append(Lsn(0x4000), &[1; 0x10]).unwrap();
        // A stale `.partial` may be shorter than what the server sent: it is no source.
        file(&fs, FIRST_PARTIAL, &[0; 0x1000]);
        writer.switch_timeline(TimelineId(2), Lsn(0x3800)).unwrap();
        writer.append(Lsn(0x3000), &[1; 0x7FF]).unwrap();
        assert_eq!(
            writer.flush().unwrap(),
            Lsn(0x3000),
            "not to be acknowledged"
        );
        let hidden = "000000020000000000000003.partial.tmp";
        assert!(fs.names().contains(&hidden.to_string()));
        let early = writer.switch_timeline(TimelineId(3), Lsn(0x3400));
        assert_eq!(early.unwrap_err().kind(), Kind::Protocol);
        writer.append(Lsn(0x37FF), &[1; 0x11]).unwrap();
        assert_eq!(writer.flush_lsn(), Lsn(0x3810));
        let shown = "000000020000000000000003.partial";
        let after = fs.copy().power_loss(&mut Default::default(), 0);
        assert_eq!(after.read(shown).unwrap()[..0x810], [1; 0x810]);
        assert_eq!(after.read(hidden), None);
    }

    #[test]
    fn a_whole_segment_of_the_old_timeline_is_a_source_too() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[1; 0x1010]).unwrap();
        writer.switch_timeline(TimelineId(2), Lsn(0x3800)).unwrap();
        writer.append(Lsn(0x3000), &[1]).unwrap();
        let child = fs.read("000000020000000000000003.partial").unwrap();
        assert_eq!(child, [&[1; 0x800][..], &[0; 0x800][..]].concat());
    }

    #[test]
    fn a_switch_at_a_border_needs_no_copy() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[1; 0x1000]).unwrap();
        writer.switch_timeline(TimelineId(2), Lsn(0x4000)).unwrap();
        writer.switch_timeline(TimelineId(3), Lsn(0x4000)).unwrap();
        writer.append(Lsn(0x4000), &[3; 0x10]).unwrap();
        assert_eq!(fs.names(), [FIRST, "000000030000000000000004.partial"]);
    }

    #[test]
    fn a_switch_that_does_not_fit_is_refused() {
        let fs = SimFs::default();
        let mut writer = writer(&fs);
        writer.append(Lsn(0x3000), &[1; 0x10]).unwrap();
        let cases = [(1, 0x3010), (2, 0x3011), (0, 0x3000)];
        for (next, switch) in cases {
            let error = writer.switch_timeline(TimelineId(next), Lsn(switch));
            assert_eq!(error.unwrap_err().kind(), Kind::Protocol);
        }
        writer.switch_timeline(TimelineId(2), Lsn(0x3008)).unwrap();
        let again = writer.switch_timeline(TimelineId(3), Lsn(0x3000));
        assert_eq!(again.unwrap_err().kind(), Kind::Protocol);
        assert_eq!(writer.timeline(), TimelineId(2));
    }

    /// Segments larger than the copy buffer, on a real file system.
    #[test]
    fn a_real_directory_gets_real_segments() {
        let dir = tempfile::tempdir().unwrap();
        let fs = OsDir::open(dir.path(), 0o600).unwrap();
        let size = SegmentSize::new(1 << 20).unwrap();
        let mib = 1 << 20;
        let start = Lsn(3 * mib);
        let wal: Vec<u8> = (0..2 * mib).map(|at| (at % 251) as u8 | 1).collect();
        let mut writer = SegmentWriter::begin(&fs, size, TLI, start).unwrap();
        let mut lsn = start;
        for chunk in wal[..mib as usize + 700_000].chunks(100_001) {
            writer.append(lsn, chunk).unwrap();
            lsn.0 += chunk.len() as u64;
        }
        assert_eq!(writer.flush().unwrap(), lsn);
        let switch = Lsn(4 * mib + 600_000);
        writer.switch_timeline(TimelineId(2), switch).unwrap();
        writer.append(Lsn(4 * mib), &wal[..1]).unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!(read(FIRST), wal[..mib as usize]);
        let mut child = wal[mib as usize..mib as usize + 600_000].to_vec();
        child[0] = wal[0];
        child.resize(mib as usize, 0);
        assert_eq!(read("000000020000000000000004.partial"), child);
        let names = [
            FIRST,
            "000000010000000000000004.partial",
            "000000020000000000000004.partial",
        ];
        assert_eq!(fs.list().unwrap(), names);
    }
}
