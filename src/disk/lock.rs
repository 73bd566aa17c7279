//! One seawall per directory: an advisory lock on a file that tells who holds it.
//!
//! The kernel drops the lock with the process, so a leftover file locks nothing. The file is never removed: who
//! removes it lets a third process lock a new file of that name beside the holder of the old one.

use super::{File, failed};
use crate::error::{Error, Kind, Result};
use std::fs::{OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock or fails at once with `Kind::Locked`, naming the process that holds it.
    pub fn try_acquire(path: &Path) -> Result<Lock> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed("open lock file", path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(path, &mut file)),
            Err(TryLockError::Error(e)) => return Err(failed("lock", path, e)),
        }
        note_owner(&mut file).map_err(|e| failed("write", path, e))?;
        Ok(Lock { _file: file })
    }

    /// Whether some process holds it now; the file alone says nothing. Whoever tries to take it in that very moment is
    /// refused, and should try once more.
    pub fn is_held(path: &Path) -> Result<bool> {
        let file = File::open(path).map_err(|e| failed("open lock file", path, e))?;
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(failed("lock", path, e)),
        }
    }
}

fn note_owner(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn held(path: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    // 32 bytes hold any process id; what cannot be read leaves the holder unnamed.
    let pid = match file.take(32).read_to_string(&mut text) {
        Ok(_) => text.trim().parse::<u32>().ok(),
        Err(_) => None,
    };
    let holder = pid.map_or("another process".to_string(), |pid| {
        format!("process {pid}")
    });
    Error::new(Kind::Locked, format!("{path:?} is locked by {holder}"))
        .hint("Wait until that process has ended, or stop it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "99999999 left by a process with a longer id").unwrap();
        let first = Lock::try_acquire(&path).unwrap();
        let refused = Lock::try_acquire(&path).unwrap_err();
        assert_eq!(refused.kind(), Kind::Locked);
        let holder = format!("is locked by process {}", std::process::id());
        assert!(refused.message().ends_with(&holder), "{refused}");
        assert!(Lock::is_held(&path).unwrap());
        drop(first);
        assert!(!Lock::is_held(&path).unwrap());
        Lock::try_acquire(&path).unwrap();
    }

    #[test]
    fn a_missing_directory_is_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Lock::try_acquire(&dir.path().join("absent/lock")).unwrap_err();
        assert_eq!(refused.kind(), Kind::Missing);
    }
}
