//! ControlFile: what `global/pg_control` says about a cluster. Nothing is believed before its CRC-32C fits.
//!
//! The layout (PostgreSQL, `pg_control.h`, `struct ControlFileData`) has stood still since 13 up to the page
//! checksum version; 18 inserted one byte there, so only the place of the CRC depends on the version. Numbers are
//! little endian: a cluster of a big-endian machine is named and refused.

use super::version::{self, MAJOR_MAX, MAJOR_MIN};
use super::wal_record::Layout;
use super::{Lsn, SegmentSize, SystemId, TimelineId, Timestamp};
use crate::error::{Error, Kind, Result};

/// Size of the file; all but the first 300 bytes are zeros.
pub const CONTROL_FILE_BYTES: usize = 8192;

/// What the cluster was doing when pg_control was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting, before it has done anything.
    Starting,
    /// Cleanly shut down: the last record of the WAL is the shutdown checkpoint.
    ShutDown,
    /// A standby, cleanly shut down.
    ShutDownInRecovery,
    /// Shutting down, or killed while it was.
    ShuttingDown,
    /// Recovering from a crash.
    CrashRecovery,
    /// Recovering from an archive, or a standby.
    ArchiveRecovery,
    /// Running, or killed while it was.
    InProduction,
}

/// The facts of pg_control that backup and restore need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identifier.
    pub system_id: SystemId,
    /// The layout's version, 1300 to 1800.
    pub control_version: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
    /// The server's major version, 13 to 18.
    pub major: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// When the file was written, to the second.
    pub modified: Timestamp,
    /// Where the last checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the last checkpoint.
    pub timeline: TimelineId,
    /// Replay must come at least this far before the cluster is consistent; `0/0` outside recovery.
    pub min_recovery: Lsn,
    /// The timeline of `min_recovery`; `None` outside recovery.
    pub min_recovery_timeline: Option<TimelineId>,
    /// Size of the WAL segments.
    pub segment_size: SegmentSize,
    /// Size of a data page in bytes, 8192 unless built otherwise.
    pub block_size: u32,
    /// Pages in one file of a relation, 131072 unless built otherwise.
    pub blocks_per_file: u32,
    /// Size of a WAL page in bytes, 8192 unless built otherwise.
    pub wal_block_size: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

impl ControlFile {
    /// Parses pg_control. A file whose CRC does not fit is `Kind::Corrupt`; while a server runs that may be a
    /// torn read, and reading again helps. Zeros at the end may be missing.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile> {
        let control_version = u32_at(bytes, 8)?;
        let crc_at = crc_offset(control_version)?;
        let stored = u32_at(bytes, crc_at)?;
        let computed = crc32c::crc32c(&bytes[..crc_at]);
        if stored != computed {
            return Err(damaged(format!(
                "Its CRC-32C is {computed:08x} and the file says {stored:08x}."
            )));
        }
        let catalog_version = u32_at(bytes, 12)?;
        let release = version::by_control(control_version, catalog_version).ok_or_else(|| {
            unsupported(format!(
                "It has control version {control_version} with catalog version {catalog_version}, which is no release."
            ))
        })?;
        let blocks = PageSizes::parse(bytes)?;
        Ok(ControlFile {
            system_id: SystemId(u64_at(bytes, 0)?),
            control_version,
            catalog_version,
            major: release.major,
            state: state(u32_at(bytes, 16)?)?,
            modified: Timestamp::from_secs(u64_at(bytes, 24)?.cast_signed()),
            checkpoint: Lsn(u64_at(bytes, 32)?),
            redo: Lsn(u64_at(bytes, 40)?),
            timeline: timeline(u32_at(bytes, 48)?)
                .ok_or_else(|| damaged("Its timeline is 0.".to_string()))?,
            min_recovery: Lsn(u64_at(bytes, 136)?),
            min_recovery_timeline: timeline(u32_at(bytes, 144)?),
            segment_size: SegmentSize::new(u64::from(u32_at(bytes, 228)?))?,
            block_size: blocks.data,
            blocks_per_file: blocks.per_file,
            wal_block_size: blocks.wal,
            data_checksums: u32_at(bytes, 252)? != 0,
        })
    }

    /// Where the last checkpoint's record ends: in a cluster that was shut down, the end of its WAL.
    ///
    /// The record is 114 bytes in every version (24 of header, 2 of data header, 88 of checkpoint), padded to 8.
    pub fn checkpoint_end(&self) -> Lsn {
        const RECORD_BYTES: u64 = 120;
        let layout = Layout {
            page_bytes: u64::from(self.wal_block_size),
            segment_size: self.segment_size,
        };
        layout.behind(self.checkpoint, RECORD_BYTES)
    }
}

/// Sizes that other rooms compute with, so they must make sense.
struct PageSizes {
    data: u32,
    per_file: u32,
    wal: u32,
}

impl PageSizes {
    fn parse(bytes: &[u8]) -> Result<PageSizes> {
        let sizes = PageSizes {
            data: u32_at(bytes, 216)?,
            per_file: u32_at(bytes, 220)?,
            wal: u32_at(bytes, 224)?,
        };
        let page = |size: u32| size.is_power_of_two() && (1024..=65_536).contains(&size);
        if page(sizes.data) && page(sizes.wal) && sizes.per_file > 0 {
            return Ok(sizes);
        }
        Err(damaged(format!(
            "It says pages of {} bytes, {} to a file, and WAL pages of {} bytes.",
            sizes.data, sizes.per_file, sizes.wal
        )))
    }
}

/// Where the CRC stands; everything before it is covered.
fn crc_offset(control_version: u32) -> Result<usize> {
    match control_version {
        1300 | 1700 => Ok(288),
        1800 => Ok(292),
        swapped if (1000..3000).contains(&swapped.swap_bytes()) => Err(unsupported(
            "It was written by a machine of the other byte order.".to_string(),
        )),
        other => Err(unsupported(format!("It has control version {other}."))),
    }
}

fn state(number: u32) -> Result<ClusterState> {
    use ClusterState::*;
    const STATES: [ClusterState; 7] = [
        Starting,
        ShutDown,
        ShutDownInRecovery,
        ShuttingDown,
        CrashRecovery,
        ArchiveRecovery,
        InProduction,
    ];
    let state = STATES.get(number as usize).copied();
    state.ok_or_else(|| damaged(format!("It has the unknown cluster state {number}.")))
}

fn timeline(id: u32) -> Option<TimelineId> {
    (id > 0).then_some(TimelineId(id))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..).and_then(<[u8]>::first_chunk);
    four.map(|b| u32::from_le_bytes(*b))
        .ok_or_else(|| short(bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let eight = bytes.get(at..).and_then(<[u8]>::first_chunk);
    eight
        .map(|b| u64::from_le_bytes(*b))
        .ok_or_else(|| short(bytes))
}

fn short(bytes: &[u8]) -> Error {
    damaged(format!("It has only {} bytes.", bytes.len()))
}

fn damaged(detail: String) -> Error {
    Error::new(Kind::Corrupt, "pg_control is damaged").detail(detail)
}

fn unsupported(detail: String) -> Error {
    Error::new(
        Kind::Refused,
        "pg_control is not of a version that seawall knows",
    )
    .detail(format!(
        "{detail} Versions {MAJOR_MIN} to {MAJOR_MAX} of PostgreSQL are supported."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first 296 bytes of pg_control of running clusters.
    const FILES: [&[u8]; 6] = [
        include_bytes!("../../tests/fixtures/pg_control/13"),
        include_bytes!("../../tests/fixtures/pg_control/14"),
        include_bytes!("../../tests/fixtures/pg_control/15"),
        include_bytes!("../../tests/fixtures/pg_control/16"),
        include_bytes!("../../tests/fixtures/pg_control/17"),
        include_bytes!("../../tests/fixtures/pg_control/18"),
    ];

    #[test]
    fn real_files_of_every_version() {
        // As pg_control_system(), pg_control_checkpoint() and pg_control_init() of those servers answered.
        #[rustfmt::skip]
        let answers = [
            (13, 1300, 202007201, 7710471709302365717, "0/2167340", "0/2167308", 16, "2026-11-21T04:08:54.000000Z"),
            (14, 1300, 202107181, 7710471711948860978, "0/E68630", "0/E685F8", 1, "2026-11-21T04:08:55.000000Z"),
            (15, 1300, 202209061, 7710471715061091919, "0/2169718", "0/21696E0", 16, "2026-11-21T04:08:55.000000Z"),
            (16, 1300, 202307071, 7710471717545836139, "0/21762E8", "0/21762B0", 16, "2026-11-21T04:08:55.000000Z"),
            (17, 1700, 202406281, 7710471720394202759, "0/8174ED8", "0/8174E80", 64, "2026-11-21T04:08:55.000000Z"),
            (18, 1800, 202506291, 7710471724177034915, "0/21762F8", "0/21762A0", 16, "2026-11-21T04:08:55.000000Z"),
        ];
        for (file, answer) in FILES.iter().zip(answers) {
            let (major, control, catalog, system, checkpoint, redo, segment_mib, modified) = answer;
            let parsed = ControlFile::parse(file).unwrap();
            let expected = ControlFile {
                system_id: SystemId(system),
                control_version: control,
                catalog_version: catalog,
                major,
                state: ClusterState::InProduction,
                modified: Timestamp::parse_rfc3339(modified).unwrap(),
                checkpoint: checkpoint.parse().unwrap(),
                redo: redo.parse().unwrap(),
                timeline: TimelineId(1),
                min_recovery: Lsn(0),
                min_recovery_timeline: None,
                segment_size: SegmentSize::new(segment_mib << 20).unwrap(),
                block_size: 8192,
                blocks_per_file: 131_072,
                wal_block_size: 8192,
                data_checksums: true,
            };
            assert_eq!(parsed, expected, "{major}");
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        for file in FILES {
            let end = if file[8..10] == 1800u16.to_le_bytes() {
                296
            } else {
                292
            };
            for at in 0..end * 8 {
                let mut bad = file.to_vec();
                bad[at / 8] ^= 1 << (at % 8);
                assert!(ControlFile::parse(&bad).is_err(), "bit {at}");
            }
        }
    }

    #[test]
    fn every_cut_is_seen() {
        for at in 0..292 {
            let error = ControlFile::parse(&FILES[2][..at]).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "cut at {at}");
        }
        assert_eq!(
            ControlFile::parse(&[0; CONTROL_FILE_BYTES])
                .unwrap_err()
                .kind(),
            Kind::Refused
        );
    }

    #[test]
    fn the_other_byte_order_is_named() {
        let mut file = FILES[2].to_vec();
        file[8..12].copy_from_slice(&1300u32.to_be_bytes());
        let error = ControlFile::parse(&file).unwrap_err();
        assert!(error.to_string().contains("byte order"), "{error}");
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for (at, value) in [(216, 0u32), (216, 8191), (220, 0), (224, 3), (228, 4096)] {
            let mut file = FILES[2].to_vec();
            file[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32c::crc32c(&file[..288]);
            file[288..292].copy_from_slice(&crc.to_le_bytes());
            assert!(ControlFile::parse(&file).is_err(), "{value} at {at}");
        }
    }

    #[test]
    fn the_end_of_a_checkpoint_counts_page_headers() {
        let mut control = ControlFile::parse(FILES[2]).unwrap();
        let cases = [
            ("0/2000028", "0/20000A0"),
            ("0/2001F88", "0/2002000"),
            ("0/2001F90", "0/2002020"),
            ("0/2FFFFC8", "0/3000068"),
        ];
        for (start, end) in cases {
            control.checkpoint = start.parse().unwrap();
            assert_eq!(control.checkpoint_end().to_string(), end, "{start}");
        }
    }
}
