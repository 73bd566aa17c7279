//! Archiving one file of `pg_wal`.

use super::check::{Expect, Inspector};
use super::forks::unreadable;
use super::pack;
use crate::archive::object::{FrameWriter, ObjectWriter};
use crate::archive::{Archive, keys};
use crate::codec::digest::{Sha256, hex, sha256};
use crate::codec::{self, Compression, Method};
use crate::disk::{self, File, Stat};
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::pg::{TimelineId, WalName};
use crate::store::Key;
use crate::work::stop::Stop;
use crate::work::{self, crew};
use crossbeam_channel::bounded;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

/// What `put` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is new; so many bytes are stored.
    Stored(u64),
    /// The same bytes were archived before, and are durable.
    AlreadyThere,
}

impl Archive {
    /// Archives the file at `path` under `name`. `Ok` means that the store acknowledged the whole object and
    /// shows it. An archived file with other bytes is never touched: `Kind::Mismatch` with both digests, but a
    /// `.partial` segment goes beside it.
    ///
    /// `permit` (whose archive is this?) and the look for an existing object run beside the compression; nothing
    /// is sent before both have answered.
    pub fn put_wal(
        &self,
        name: WalName,
        path: &Path,
        expect: Expect,
        permit: impl FnOnce() -> Result<()> + Send,
    ) -> Result<Put> {
        let source = Source::open(path)?;
        source.inspect(name, expect)?;
        let key = keys::wal(&name.to_string(), Some(self.compression.method));
        let existing = OnceLock::new();
        let sent = crew::run(&Stop::new(), |crew| {
            let (answer, look) = bounded(1);
            crew.spawn("look", move || {
                permit()?;
                let _ = answer.send(self.find_wal(name)?);
                Ok(())
            })?;
            let sent = self.send(&key, &source, || match look.recv() {
                Ok(None) => Ok(()),
                Ok(Some(found)) => Err(existing_object(existing.get_or_init(|| found))),
                // The look has failed; its own error is the one that counts.
                Err(_) => Err(Error::new(Kind::Interrupted, "nothing was sent")),
            });
            sent.map_err(|e| match e.kind() {
                Kind::Exists | Kind::Interrupted => e,
                _ => e.context(format!("could not archive {name}")),
            })
        });
        match sent {
            // Archived before; or another pusher was faster, or our own first try was acknowledged and the answer
            // lost.
            Err(e) if e.kind() == Kind::Exists => {
                self.compare(name, existing.get().unwrap_or(&key), &source)
            }
            other => other.map(Put::Stored),
        }
    }

    /// Archives the text of a timeline's history file, as `put_wal` does with the file itself.
    pub fn put_history(&self, timeline: TimelineId, text: &[u8]) -> Result<Put> {
        let name = WalName::History(timeline);
        let ours = sha256(text);
        if let Some(existing) = self.find_wal(name)? {
            return self.same_text(name, &existing, ours);
        }
        let key = keys::wal(&name.to_string(), Some(self.compression.method));
        let mut writer = ObjectWriter::new(&*self.store, key.clone(), self.compression)?;
        let sent = writer
            .write_all(text)
            .map_err(|e| from_io("could not send the object", e))
            .and_then(|()| writer.finish());
        match sent {
            Err(e) if e.kind() == Kind::Exists => self.same_text(name, &key, ours),
            other => other
                .map(|object| Put::Stored(object.stored_bytes))
                .map_err(|e| e.context(format!("could not archive {name}"))),
        }
    }

    /// The object that holds `name`, under whatever codec; one in a form that cannot be read cannot be compared
    /// either. One LIST tells more than a HEAD, and tells it on stores that ignore `If-None-Match` too.
    pub(in crate::archive) fn find_wal(&self, name: WalName) -> Result<Option<Key>> {
        let prefix = format!("{}{name}", keys::WAL);
        let (mut found, mut strange) = (None, None);
        self.store
            .list(&prefix, "", &mut |object| {
                let key = object.key;
                if keys::parse_wal(&key).is_some_and(|(there, _)| there == name) {
                    found = Some(key);
                } else if keys::wal_in_any_form(&key) == Some(name) && !keys::is_beside(&key) {
                    strange = Some(key);
                }
                Ok(found.is_none())
            })
            .map_err(|e| e.context(format!("could not see whether {name} is archived already")))?;
        match strange.filter(|_| found.is_none()) {
            Some(key) => Err(unreadable(name, &key).also(
                "Nobody can say whether it holds the same bytes, so nothing was stored beside it.",
            )),
            None => Ok(found),
        }
    }

    /// Compresses and stores once `ready` allows it; answers the stored bytes.
    fn send(
        &self,
        key: &Key,
        source: &Source<'_>,
        ready: impl FnOnce() -> Result<()> + Send,
    ) -> Result<u64> {
        let mut writer = FrameWriter::held(&*self.store, key.clone(), ready);
        source.frames(self.compression, &mut |frame| writer.frame(frame))?;
        writer.finish()
    }

    /// Same bytes: success, after what is there was made durable. Other bytes: refused with both digests.
    fn compare(&self, name: WalName, existing: &Key, source: &Source<'_>) -> Result<Put> {
        let mut ours = Sha256::new();
        source.copy(&mut |bytes| {
            ours.update(bytes);
            Ok(())
        })?;
        let ours = ours.finish();
        match (self.differing(existing, ours)?, name) {
            (None, _) => Ok(Put::AlreadyThere),
            (Some(_), WalName::Partial(segment)) => {
                let beside = keys::partial_beside(segment, &hex(&ours), self.compression.method);
                self.put_beside(name, &beside, ours, source)
            }
            (Some(theirs), _) => Err(self.other_bytes(name, existing, theirs, ours)),
        }
    }

    /// The digest of what is there if it is another one; the same is made durable before it is believed.
    fn differing(&self, existing: &Key, ours: [u8; 32]) -> Result<Option<[u8; 32]>> {
        let (_, method) = keys::parse_wal(existing).expect("listed or made by us");
        let theirs = self.digest_object(existing, method)?;
        if theirs != ours {
            return Ok(Some(theirs));
        }
        self.store.settle(existing).map(|()| None)
    }

    fn same_text(&self, name: WalName, existing: &Key, ours: [u8; 32]) -> Result<Put> {
        match self.differing(existing, ours)? {
            None => Ok(Put::AlreadyThere),
            Some(theirs) => Err(self.other_bytes(name, existing, theirs, ours)),
        }
    }

    /// Each server that leaves the same timeline may archive another `.partial` of its last segment. None may be kept
    /// from archiving by the one that was faster.
    fn put_beside(
        &self,
        name: WalName,
        key: &Key,
        ours: [u8; 32],
        source: &Source<'_>,
    ) -> Result<Put> {
        let sent = match self.exists(key)? {
            true => Err(existing_object(key)),
            false => self.send(key, source, || Ok(())),
        };
        match sent {
            Err(e) if e.kind() == Kind::Exists => {
                let theirs = self.digest_object(key, Some(self.compression.method))?;
                if theirs != ours {
                    return Err(self.other_bytes(name, key, theirs, ours));
                }
                self.store.settle(key).map(|()| Put::AlreadyThere)
            }
            other => {
                let bytes = other.map_err(|e| e.context(format!("could not archive {name}")))?;
                log::warn!("{name} is archived already with other bytes; this one is {key}");
                Ok(Put::Stored(bytes))
            }
        }
    }

    fn other_bytes(
        &self,
        name: WalName,
        existing: &Key,
        theirs: [u8; 32],
        ours: [u8; 32],
    ) -> Error {
        Error::new(Kind::Mismatch, format!("{name} is archived already with other bytes"))
            .detail(format!(
                "Object {existing} in {} has SHA-256 {} (uncompressed), the local file has {}.",
                self.store.location(),
                hex(&theirs),
                hex(&ours)
            ))
            .hint(
                "Nothing was changed. Two servers archive to one prefix, or this is a copy of a server that \
                 archives here: give it a prefix of its own or set archive_mode = off.",
            )
    }

    fn digest_object(&self, key: &Key, method: Option<Method>) -> Result<[u8; 32]> {
        let body = self.store.get(key, 0)?;
        let mut reader: Box<dyn Read> = match method {
            Some(method) => codec::decoder(method, body.reader),
            None => body.reader,
        };
        let mut digest = Sha256::new();
        let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
        loop {
            let count = reader.read(&mut buffer).map_err(|e| {
                from_io("could not read the object", e)
                    .context(format!("could not compare with object {key}"))
            })?;
            if count == 0 {
                return Ok(digest.finish());
            }
            digest.update(&buffer[..count]);
        }
    }
}

fn existing_object(key: &Key) -> Error {
    Error::new(Kind::Exists, format!("object {key} exists already"))
}

/// The file to archive, as it was when it was opened.
struct Source<'a> {
    file: File,
    path: &'a Path,
    stat: Stat,
}

impl Source<'_> {
    fn open(path: &Path) -> Result<Source<'_>> {
        let file = disk::open(path)?;
        let stat = disk::stat_open(&file, path)?;
        Ok(Source { file, path, stat })
    }

    /// Reads as much as decides, and judges it.
    fn inspect(&self, name: WalName, expect: Expect) -> Result<()> {
        let what = format!("file \"{}\"", self.path.display());
        let mut inspector = Inspector::new(name, expect);
        let size = usize::try_from(self.stat.size).unwrap_or(usize::MAX);
        let mut head = vec![0; inspector.head_bytes().min(size)];
        self.file
            .read_exact_at(&mut head, 0)
            .map_err(|e| Error::io(format!("could not read {what}"), e))?;
        inspector.pass(&head);
        inspector.judge(self.stat.size, &what).map(|_| ())
    }

    /// Hands out the whole file; one that somebody writes to meanwhile is refused. PostgreSQL does not touch a
    /// segment that waits to be archived, but a hand may.
    fn copy(&self, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
        let mut offset = 0;
        loop {
            let count = self
                .file
                .read_at(&mut buffer, offset)
                .map_err(|e| Error::io(format!("could not read {:?}", self.path), e))?;
            offset += count as u64;
            if count == 0 || offset > self.stat.size {
                break;
            }
            each(&buffer[..count])?;
        }
        self.check_unchanged(offset)
    }

    /// The same as frames, compressed by several threads.
    fn frames(
        &self,
        compression: Compression,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let threads = work::cores().min(limits::WAL_COMPRESS_THREADS_MAX);
        let found = pack::frames(&self.file, self.stat.size, compression, threads, each)?;
        self.check_unchanged(found)
    }

    /// So many bytes were read; are they the file?
    fn check_unchanged(&self, found: u64) -> Result<()> {
        let now = disk::stat_open(&self.file, self.path)?;
        if found == self.stat.size && now.modified == self.stat.modified {
            return Ok(());
        }
        Err(Error::new(
            Kind::Refused,
            format!("{:?} changed while it was read", self.path),
        )
        .detail(format!(
            "It had {} bytes, last changed at {}; now it has {}, last changed at {}.",
            self.stat.size, self.stat.modified, now.size, now.modified
        ))
        .hint("Push a file that nobody writes to any more."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tree;
    use crate::pg::timestamp::Timestamp;

    #[test]
    fn a_source_that_is_written_to_meanwhile_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        type Change = (&'static str, fn(&Path), bool);
        let changes: [Change; 4] = [
            ("nothing", |_| {}, true),
            (
                "longer",
                |path| std::fs::write(path, "longer").unwrap(),
                false,
            ),
            ("shorter", |path| std::fs::write(path, "s").unwrap(), false),
            (
                "same length",
                |path| tree::set_modified(path, Timestamp(0)).unwrap(),
                false,
            ),
        ];
        for (what, change, fine) in changes {
            std::fs::write(&path, "bytes").unwrap();
            let source = Source::open(&path).unwrap();
            change(&path);
            let zstd = Compression::new(Method::Zstd, None).unwrap();
            for copied in [
                source.copy(&mut |_| Ok(())),
                source.frames(zstd, &mut |_| Ok(())),
            ] {
                assert_eq!(copied.is_ok(), fine, "{what}");
                if let Err(error) = copied {
                    assert_eq!(error.kind(), Kind::Refused, "{what}");
                }
            }
        }
    }
}
