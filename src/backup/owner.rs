//! `owner.json`: who writes a backup. Two backups can have one name (a restartpoint, a shut-down server); a
//! complete one is never touched, a living owner's parts are never removed, a dead owner's are.

use crate::archive::Archive;
use crate::archive::keys::BackupId;
use crate::codec::digest::hex;
use crate::disk;
use crate::disk::lock::Lock;
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Host name.
    pub host: String,
    /// Identifies the boot of the host, so that process numbers of an earlier one do not count.
    pub boot: String,
    /// The namespace in which `pid` is a number, so that those of other containers do not count; empty if unknown.
    #[serde(default)]
    pub pid_namespace: String,
    /// Process number.
    pub pid: u32,
    /// Start of the process in clock ticks since boot, so that a reused number does not count; 0 if unknown.
    pub process_start: u64,
    /// RFC 3339, UTC.
    pub started: String,
    /// Random, so that an owner recognises its own document.
    pub id: String,
}

impl Owner {
    /// This process.
    pub fn current(now: Timestamp) -> Result<Owner> {
        let pid = std::process::id();
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::io("could not get random bytes", e.into()))?;
        Ok(Owner {
            host: host_name(),
            boot: boot_id(),
            pid_namespace: pid_namespace(),
            pid,
            process_start: process_start(pid).unwrap_or(0),
            started: now.to_string(),
            id: hex(&id),
        })
    }

    /// Whether the owner is certainly gone. That can be told only where its process would be seen: two hosts may have
    /// one name, and containers of one host number their processes each for itself.
    fn is_dead(&self) -> bool {
        let (boot, namespace) = (boot_id(), pid_namespace());
        let here = self.host == host_name() && self.boot == boot && self.pid_namespace == namespace;
        if !here || boot.is_empty() || namespace.is_empty() {
            return false;
        }
        // The kernel is asked, because /proc may hide the processes of other users.
        let exists = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(test_kill_process);
        match exists {
            None => false,
            Some(Err(Errno::SRCH)) => true,
            Some(_) => {
                let reused = |start| self.process_start != 0 && start != self.process_start;
                process_start(self.pid).is_some_and(reused)
            }
        }
    }
}

/// Takes the name of a backup: creates `owner.json`, after removing what a dead owner left. Refused when the
/// backup is complete (`Kind::Exists`) or its owner may be alive (`Kind::Locked`).
pub fn take(archive: &Archive, id: &BackupId, owner: &Owner) -> Result<()> {
    if archive.exists(&id.sentinel())? {
        return Err(Error::new(Kind::Exists, format!("backup {id} is complete already"))
            .detail("A backup from the same checkpoint has the same name; the existing one is not touched.")
            .hint("Nothing is lost. Begin another backup when the server has moved on."));
    }
    let bytes = serde_json::to_vec_pretty(owner).expect("plain fields");
    match archive.create(&id.owner(), &bytes) {
        Err(e) if e.kind() == Kind::Exists => {}
        other => return other,
    }
    // Only owners of this host are known to be dead, so a lock of this host lets one take over at a time: the other
    // would remove what the first one has stored since.
    let _alone = match archive.state.directory() {
        Some(directory) => Some(Lock::try_acquire(&directory.join("takeover.lock"))?),
        None => None,
    };
    match archive.read_document(&id.owner()) {
        Ok(bytes) => refuse_the_living(id, owner, &bytes)?,
        Err(e) if matches!(e.kind(), Kind::Missing | Kind::Hole) => {} // it was given up meanwhile
        Err(e) => return Err(e),
    }
    if archive.exists(&id.sentinel())? {
        return Err(Error::new(
            Kind::Exists,
            format!("backup {id} is complete already"),
        ));
    }
    remove_all(archive, id)?;
    archive.create(&id.owner(), &bytes)
}

fn refuse_the_living(id: &BackupId, us: &Owner, bytes: &[u8]) -> Result<()> {
    let other: Owner = serde_json::from_slice(bytes).map_err(|e| {
        Error::new(
            Kind::Locked,
            format!("backup {id} has an owner that cannot be read"),
        )
        .because(e)
        .hint("If no other backup runs, remove the objects below its directory.")
    })?;
    if other.id == us.id {
        return Ok(());
    }
    if !other.is_dead() {
        return Err(Error::new(Kind::Locked, format!("backup {id} is being taken by another process"))
            .detail(format!("Process {} on host {} began it at {}.", other.pid, other.host, other.started))
            .hint("Wait for it. If that process is gone for good, after a crash of its host or with its container, remove the objects below the backup's directory."));
    }
    log::info!(
        "removing what an interrupted backup {id} left (process {} on {})",
        other.pid,
        other.host
    );
    Ok(())
}

/// Removes everything of our unfinished backup, if the name is still ours and has not become a complete backup.
pub fn give_up(archive: &Archive, id: &BackupId, us: &Owner) -> Result<()> {
    let bytes = match archive.read_document(&id.owner()) {
        Err(e) if matches!(e.kind(), Kind::Missing | Kind::Hole) => return Ok(()),
        other => other?,
    };
    let ours = serde_json::from_slice(&bytes).is_ok_and(|owner: Owner| owner.id == us.id);
    if !ours || archive.exists(&id.sentinel())? {
        return Ok(());
    }
    remove_all(archive, id)
}

/// Removes everything of an unfinished backup, its owner last.
fn remove_all(archive: &Archive, id: &BackupId) -> Result<()> {
    let mut keys = Vec::new();
    archive.store.list(&id.directory(), "", &mut |object| {
        keys.push(object.key);
        Ok(true)
    })?;
    keys.sort_by_key(|key| *key == id.owner());
    keys.iter().try_for_each(|key| archive.store.delete(key))
}

/// This host's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// As in `pid:[4026531836]`; empty where /proc is not there or not that of our namespace.
fn pid_namespace() -> String {
    let read = |name: &str| disk::read_link(&Path::new("/proc/self").join(name));
    let own = disk::read_link(Path::new("/proc/self"));
    match (own, read("ns/pid")) {
        (Ok(pid), Ok(namespace)) if pid.to_str() == Some(&std::process::id().to_string()) => {
            namespace.to_string_lossy().into_owned()
        }
        _ => String::new(),
    }
}

fn boot_id() -> String {
    let bytes = disk::read_small(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_string()
}

/// Field 22 of `/proc/<pid>/stat`; the command's name, in parentheses, may contain anything.
fn process_start(pid: u32) -> Option<u64> {
    let bytes = disk::read_small(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::state::State;
    use crate::codec::{Compression, Method};
    use crate::store::mem::MemStore;
    use crate::store::{Key, When};

    fn archive() -> Archive {
        let compression = Compression::new(Method::Zstd, None).unwrap();
        Archive {
            store: Box::new(MemStore::new()),
            compression,
            state: State::none(),
        }
    }

    fn id() -> BackupId {
        "base_000000010000000000000002_00000040".parse().unwrap()
    }

    #[test]
    fn a_living_owner_is_never_disturbed() {
        let archive = archive();
        let first = Owner::current(Timestamp(0)).unwrap();
        take(&archive, &id(), &first).unwrap();
        let second = Owner::current(Timestamp(0)).unwrap();
        assert_eq!(
            take(&archive, &id(), &second).unwrap_err().kind(),
            Kind::Locked
        );

        // Nobody here can tell of these whether they live, although no process here has the number.
        let gone = Owner {
            pid: gone_pid(),
            ..first
        };
        for elsewhere in [
            Owner {
                host: "elsewhere".into(),
                ..gone.clone()
            },
            Owner {
                boot: "another host of that name".into(),
                ..gone.clone()
            },
            Owner {
                pid_namespace: "pid:[1]".into(),
                ..gone.clone()
            },
        ] {
            let archive = archive_with(&elsewhere);
            let refused = take(&archive, &id(), &second).unwrap_err();
            assert_eq!(refused.kind(), Kind::Locked, "{elsewhere:?}");
        }
        // A document of an earlier version does not say in which namespace.
        let mut earlier = serde_json::to_value(&gone).unwrap();
        earlier.as_object_mut().unwrap().remove("pid_namespace");
        let earlier: Owner = serde_json::from_value(earlier).unwrap();
        let refused = take(&archive_with(&earlier), &id(), &second).unwrap_err();
        assert_eq!(refused.kind(), Kind::Locked);
    }

    /// A number that no process has: that of a child which has ended and was waited for.
    fn gone_pid() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn what_a_dead_owner_left_is_removed() {
        let us = Owner::current(Timestamp(0)).unwrap();
        for dead in [
            Owner {
                pid: gone_pid(),
                ..us.clone()
            },
            Owner {
                process_start: us.process_start + 1,
                ..us.clone()
            },
        ] {
            let archive = archive_with(&Owner {
                id: "theirs".into(),
                ..dead
            });
            take(&archive, &id(), &us).unwrap();
            let mut keys = Vec::new();
            archive
                .store
                .list(&id().directory(), "", &mut |o| {
                    keys.push(o.key);
                    Ok(true)
                })
                .unwrap();
            assert_eq!(keys, [id().owner()]);
        }
    }

    #[test]
    fn one_takes_over_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let us = Owner::current(Timestamp(0)).unwrap();
        let mut archive = archive_with(&Owner {
            pid: gone_pid(),
            ..us.clone()
        });
        archive.state = State::in_directory(dir.path().into());
        let other = Lock::try_acquire(&dir.path().join("takeover.lock")).unwrap();
        assert_eq!(take(&archive, &id(), &us).unwrap_err().kind(), Kind::Locked);
        let part = id().part(0, Method::Zstd);
        assert!(archive.store.head(&part).unwrap().is_some());
        drop(other);
        take(&archive, &id(), &us).unwrap();
        assert!(archive.store.head(&part).unwrap().is_none());
    }

    #[test]
    fn a_complete_backup_is_not_touched() {
        let us = Owner::current(Timestamp(0)).unwrap();
        let archive = archive_with(&Owner {
            pid: gone_pid(),
            ..us.clone()
        });
        archive
            .store
            .put(&id().sentinel(), b"{}", When::Absent)
            .unwrap();
        assert_eq!(take(&archive, &id(), &us).unwrap_err().kind(), Kind::Exists);
        assert!(
            archive
                .store
                .head(&id().part(0, Method::Zstd))
                .unwrap()
                .is_some()
        );
    }

    fn archive_with(owner: &Owner) -> Archive {
        let archive = archive();
        let put = |key: &Key, bytes: &[u8]| archive.store.put(key, bytes, When::Absent).unwrap();
        put(&id().owner(), &serde_json::to_vec(owner).unwrap());
        put(&id().part(0, Method::Zstd), b"left over");
        archive
    }
}
