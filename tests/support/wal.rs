//! Real WAL for tests that need no running server: made once, by a real cluster with 1 MiB segments.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::Scratch;
use super::cluster::{Cluster, Stop};

/// A file of `pg_wal`.
#[derive(Clone)]
pub struct WalFile {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// What one cluster wrote.
pub struct Wal {
    /// Five complete segments of timeline 1, one after the other.
    pub segments: Vec<WalFile>,
    /// The backup history file of a backup that began in one of them.
    pub backup_history: WalFile,
    /// `global/pg_control`.
    pub control: Vec<u8>,
    /// The system identifier.
    pub system_id: u64,
}

/// Where the long header of a segment's first page has the system identifier and the segment size.
const SYSTEM_ID: std::ops::Range<usize> = 24..32;
const SEGMENT_SIZE: std::ops::Range<usize> = 32..36;

impl Wal {
    /// The same for the whole test program.
    pub fn shared() -> &'static Wal {
        static SHARED: OnceLock<Wal> = OnceLock::new();
        SHARED.get_or_init(Wal::make)
    }

    fn make() -> Wal {
        let scratch = Scratch::new();
        // What waits for an archiver without a command stays in pg_wal; else the checkpoints would remove it.
        let mut cluster = Cluster::builder(&scratch, "origin")
            .archive_command("")
            .start();
        cluster.switch_wal();
        cluster.execute("create table t as select n, md5(n::text) from generate_series(1, 3000) n");
        let old = cluster.major() < 15;
        // Backup mode ends with the session that began it.
        let mut client = cluster.client();
        let backup = match old {
            true => {
                "select pg_start_backup('test', true, false); select pg_stop_backup(false, false)"
            }
            false => "select pg_backup_start('test', true); select pg_backup_stop(false)",
        };
        client.batch_execute(backup).expect("a backup");
        let names: Vec<String> = (0..5)
            .map(|_| {
                cluster
                    .execute("insert into t select n, md5(n::text) from generate_series(1, 500) n");
                cluster.switch_wal()
            })
            .collect();
        cluster.stop(Stop::Fast);
        let file = |name: &str| WalFile {
            name: name.to_string(),
            bytes: fs::read(cluster.data().join("pg_wal").join(name)).expect("a WAL file"),
        };
        let entries = fs::read_dir(cluster.data().join("pg_wal")).expect("pg_wal");
        let history = entries
            .map(|entry| entry.expect("an entry").file_name().into_string())
            .find_map(|name| name.ok().filter(|name| name.ends_with(".backup")));
        let segments: Vec<WalFile> = names.iter().map(|name| file(name)).collect();
        let header = &segments[0].bytes[SYSTEM_ID];
        Wal {
            backup_history: file(&history.expect("a backup history file")),
            control: fs::read(cluster.data().join("global/pg_control")).expect("pg_control"),
            system_id: u64::from_le_bytes(header.try_into().expect("eight bytes")),
            segments,
        }
    }

    /// The name of the segment that comes after the last one.
    pub fn next_name(&self) -> String {
        next_name(&self.segments.last().expect("five").name)
    }

    /// A directory that looks like the cluster's PGDATA to a command that runs in it: `global/pg_control`, and
    /// `pg_wal` with all files.
    pub fn data_dir(&self, scratch: &Scratch, name: &str) -> PathBuf {
        let data = scratch.dir(name);
        scratch.dir(format!("{name}/global"));
        scratch.dir(format!("{name}/pg_wal"));
        scratch.file(format!("{name}/global/pg_control"), &self.control);
        for file in self.segments.iter().chain([&self.backup_history]) {
            scratch.file(format!("{name}/pg_wal/{}", file.name), &file.bytes);
        }
        data
    }
}

impl WalFile {
    /// The same segment as another cluster would have written it.
    pub fn of_another_cluster(&self) -> WalFile {
        let mut other = self.clone();
        let id = u64::from_le_bytes(other.bytes[SYSTEM_ID].try_into().expect("eight bytes"));
        other.bytes[SYSTEM_ID].copy_from_slice(&(id + 1).to_le_bytes());
        other
    }

    /// The same segment with other records: the header is right.
    pub fn with_other_bytes(&self) -> WalFile {
        let mut other = self.clone();
        let middle = other.bytes.len() / 2;
        other.bytes[middle] ^= 1;
        other
    }

    /// A segment of so many MiB that no codec makes smaller, of the same cluster and with a header that fits.
    pub fn incompressible(&self, mib: u32) -> WalFile {
        let size = mib << 20;
        let mut bytes = noise(size as usize, 1);
        bytes[..40].copy_from_slice(&self.bytes[..40]);
        bytes[8..16].copy_from_slice(&u64::from(size).to_le_bytes());
        bytes[SEGMENT_SIZE].copy_from_slice(&size.to_le_bytes());
        WalFile {
            name: "000000010000000000000001".into(),
            bytes,
        }
    }
}

/// The name after this one, within one of the 4 GiB that the middle digits count.
pub fn next_name(name: &str) -> String {
    let number = u32::from_str_radix(&name[16..24], 16).expect("a segment's name");
    format!("{}{:08X}", &name[..16], number + 1)
}

/// pg_control of another cluster: a system identifier of its own, and the checksum to go with it.
pub fn control_of_another(control: &[u8]) -> Vec<u8> {
    let stored = |end: usize| u32::from_le_bytes(control[end..end + 4].try_into().expect("four"));
    let end = (200..400)
        .find(|&end| crc32c::crc32c(&control[..end]) == stored(end))
        .expect("pg_control has a checksum");
    let mut other = control.to_vec();
    other[0] ^= 1;
    let sum = crc32c::crc32c(&other[..end]).to_le_bytes();
    other[end..end + 4].copy_from_slice(&sum);
    other
}

/// Bytes without a pattern, the same for the same seed (xorshift64*).
pub fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}
