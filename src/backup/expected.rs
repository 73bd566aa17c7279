//! What the manifest expects of each file, in few bytes per file, checked while the files are written.

use crate::error::{Error, Kind, Result};
use crate::pg::manifest::{FileChecksum, Manifest};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;
use std::path::Path;
use std::sync::Mutex;

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Files that match the manifest.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The files of a manifest by the hash of their names: 32 bytes and the table's room to grow each, so 40 to 80, as the
/// manual says: up to 8 MB for 10^5 files.
pub struct Expected(Mutex<State>);

struct State {
    files: HashMap<u64, File>,
    seen: u64,
    bytes: u64,
}

struct File {
    size: u64,
    crc32c: Option<u32>,
    seen: bool,
}

const UNPOISONED: &str = "no thread panics while it counts files";

impl Expected {
    /// Reads a manifest and verifies its own checksum; `each` sees the names and sizes.
    pub fn read(manifest: impl BufRead, each: &mut dyn FnMut(&Path, u64)) -> Result<Expected> {
        let mut expected = Expected(Mutex::new(State {
            files: HashMap::new(),
            seen: 0,
            bytes: 0,
        }));
        Manifest::read(manifest, &mut |file| {
            each(&file.path, file.size);
            let crc32c = match file.checksum {
                FileChecksum::Crc32c(crc) => Some(crc),
                FileChecksum::None => None,
                other => {
                    return Err(Error::new(
                        Kind::Unavailable,
                        "the manifest has checksums of a kind that seawall does not write",
                    )
                    .detail(format!("They are {}.", other.algorithm().unwrap_or("none"))));
                }
            };
            expected.add(&file.path, file.size, crc32c)
        })?;
        Ok(expected)
    }

    /// Expects one more file: WAL that travels inside the backup of a server that was shut down is not in its
    /// manifest, and has checksums of its own.
    pub fn add(&mut self, name: &Path, size: u64, crc32c: Option<u32>) -> Result<()> {
        let file = File {
            size,
            crc32c,
            seen: false,
        };
        let state = self.0.get_mut().expect(UNPOISONED);
        match state.files.insert(hash(name), file) {
            None => Ok(()),
            Some(_) => Err(Error::new(
                Kind::Corrupt,
                format!("the manifest names \"{}\" twice", name.display()),
            )),
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let state = self.0.lock().expect(UNPOISONED);
        state.files.values().map(|file| file.size).sum()
    }

    /// Compares a file that was written with what is expected of it.
    pub fn check(&self, name: &Path, size: u64, crc32c: u32) -> Result<()> {
        let mut state = self.0.lock().expect(UNPOISONED);
        let unexpected = |why: &str| {
            Error::new(
                Kind::Corrupt,
                format!("file \"{}\" does not match the manifest", name.display()),
            )
            .detail(why)
        };
        let file = state
            .files
            .get_mut(&hash(name))
            .ok_or_else(|| unexpected("The manifest does not name it."))?;
        if file.seen {
            return Err(unexpected("The backup contains it twice."));
        }
        if file.size != size {
            return Err(unexpected(&format!(
                "It has {size} bytes instead of {}.",
                file.size
            )));
        }
        if file.crc32c.is_some_and(|expected| expected != crc32c) {
            return Err(unexpected("Its CRC-32C is another one."));
        }
        file.seen = true;
        state.seen += 1;
        state.bytes += size;
        Ok(())
    }

    /// Every file of the manifest must have come.
    pub fn all_seen(&self) -> Result<Restored> {
        let state = self.0.lock().expect(UNPOISONED);
        let missing = state.files.len() as u64 - state.seen;
        if missing > 0 {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{missing} files that the backup needs are not in it"),
            ));
        }
        Ok(Restored {
            files: state.seen,
            bytes: state.bytes,
        })
    }
}

fn hash(name: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.as_os_str().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_comes_as_it_is_needed_and_no_other() {
        let mut expected = Expected(Mutex::new(State {
            files: HashMap::new(),
            seen: 0,
            bytes: 0,
        }));
        let needed = Path::new("pg_wal/000000010000000000000002");
        expected.add(needed, 1 << 20, None).unwrap();
        for other in [
            "pg_wal/extra",
            "pg_wal/000000010000000000000003",
            "pg_wal/archive_status/000000010000000000000002.ready",
        ] {
            let refused = expected.check(Path::new(other), 1 << 20, 0).unwrap_err();
            assert_eq!(refused.kind(), Kind::Corrupt, "{other}");
        }
        assert!(expected.check(needed, 1, 0).is_err());
        assert!(expected.all_seen().is_err());
        expected.check(needed, 1 << 20, 7).unwrap();
        assert_eq!(expected.all_seen().unwrap().files, 1);
    }
}
