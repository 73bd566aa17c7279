//! Restoring a base backup.
//!
//! P6: everything is written, checked against the manifest and synced before `global/pg_control` gets its name,
//! so a restore that was interrupted at any moment cannot be started.

use super::expected::{Expected, Restored};
use super::progress::Progress;
use super::recovery;
use super::spec::{self, Placement};
use super::target::{Room, Target, plain_name};
use crate::archive::Archive;
use crate::archive::catalog::Backup;
use crate::archive::sentinel::{Details, Mode, Object};
use crate::codec::digest::{Crc32c, Sha256, hex};
use crate::codec::tar::{self, EntryKind};
use crate::codec::{self, Method};
use crate::disk;
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::pg::control::ControlFile;
use crate::pg::version::ServerVersion;
use crate::store::Key;
use crate::work::pool;
use crate::work::read_ahead::ReadAhead;
use crate::work::stop::Stop;
use crate::work::thread_name;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Parts that are fetched side by side.
    pub threads: usize,
    /// Where tablespaces go.
    pub placement: Placement,
    /// Where `pg_wal` goes, if not into the data directory.
    pub waldir: Option<PathBuf>,
    /// What is written into the copy's configuration.
    pub settings: recovery::Settings,
}

/// Buffers of decoded bytes that wait for the disk, per worker.
const DECODED_AHEAD: usize = 4;

/// The file that a server cannot be started without.
const CONTROL: &str = "global/pg_control";

/// What the workers share.
struct Restore<'a> {
    archive: &'a Archive,
    target: Target,
    expected: Expected,
    progress: &'a dyn Progress,
    stop: &'a Stop,
    control: Mutex<Option<Vec<u8>>>,
}

/// Restores `backup` into `data`, which must not exist or be empty.
pub fn fetch(
    archive: &Archive,
    backup: &Backup,
    data: &Path,
    options: &Options,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<Restored> {
    let details = backup.sentinel.details(&backup.id)?;
    let places = spec::place(&backup.sentinel.spec, &options.placement)?;
    let has_tablespaces = !backup.sentinel.spec.tablespaces.is_empty();
    let mut settings = options.settings.clone();
    if options.placement.blind && has_tablespaces {
        check_blind(details)?;
        settings.in_place_tablespaces = true;
    }
    let target = Target::new(data, places, options.waldir.clone());
    target.refuse_used()?;
    let mut room = Room::new(&target);
    let mut expected = read_manifest(archive, &details.manifest, &mut room)?;
    let total = backup.sentinel.expanded_size_bytes;
    room.add(Path::new("pg_wal"), total.saturating_sub(expected.bytes()));
    room.refuse_small()?;
    if details.mode == Mode::Offline {
        for segment in details.segments()? {
            let name = Path::new("pg_wal").join(segment.to_string());
            expected.add(&name, details.segment_size, None)?;
        }
    }
    progress.expect(total);
    target.create()?;
    let restore = Restore {
        archive,
        target,
        expected,
        progress,
        stop,
        control: Mutex::new(None),
    };
    let restored = restore
        .parts(details, options.threads)
        .and_then(|()| restore.finish(details, settings));
    restored.map_err(|e| {
        let shown = data.display();
        let e = e
            .context(format!("backup {} was not restored", backup.id))
            .also(match disk::lstat(&data.join(CONTROL)) {
                Ok(None) => {
                    format!("\"{shown}\" is incomplete and cannot be started: it has no {CONTROL}.")
                }
                _ => format!("\"{shown}\" may be incomplete: do not start it."),
            });
        match e.hint_text() {
            Some(_) => e,
            None => e.hint("Remove what is there before you try again."),
        }
    })
}

/// Whether the server knows allow_in_place_tablespaces; one that does not would not start with it. pg_control of a
/// server that is shut down does not tell the minor release, so an offline backup of 13 or 14 can only be warned about.
fn knows_in_place_tablespaces(details: &Details) -> bool {
    ServerVersion(details.server_version).has_in_place_tablespaces()
        || details.mode == Mode::Offline
}

fn check_blind(details: &Details) -> Result<()> {
    if knows_in_place_tablespaces(details) {
        return Ok(());
    }
    let version = ServerVersion(details.server_version);
    Err(Error::new(
        Kind::Refused,
        "a blind restore of this backup would not start: it has tablespaces",
    )
    .detail(format!(
        "It was taken from PostgreSQL {version}, which has no allow_in_place_tablespaces; 13.8, 14.5 and 15 have."
    ))
    .hint("Give the tablespaces places with --tablespace-mapping OLD=NEW or --restore-spec."))
}

fn tell_of_in_place_tablespaces(details: &Details) {
    log::info!(
        "tablespaces are plain directories below pg_tblspc; allow_in_place_tablespaces is set, without which the server \
         would not recover"
    );
    if !ServerVersion(details.server_version).has_in_place_tablespaces() {
        log::warn!(
            "allow_in_place_tablespaces is known since PostgreSQL 13.8 and 14.5; an older server will not start"
        );
    }
}

/// Reads the manifest for what a worker must check per file; its text is fetched again for the copy, because it
/// may be large. Adds up the room that the files need.
fn read_manifest(archive: &Archive, object: &Object, room: &mut Room<'_>) -> Result<Expected> {
    let mut reader = BufReader::new(StoredObject::open(archive, object)?);
    let expected = Expected::read(&mut reader, &mut |name, size| room.add(name, size))
        .map_err(|e| present(e).context(format!("could not use the manifest {}", object.key)))?;
    finish(reader)?;
    Ok(expected)
}

impl Restore<'_> {
    fn parts(&self, details: &Details, threads: usize) -> Result<()> {
        pool::run(
            "restore",
            threads,
            self.stop,
            |submit| details.parts.iter().try_for_each(submit),
            |_, part: &Object| {
                self.part(part)
                    .map_err(|e| present(e).context(format!("could not restore {}", part.key)))
            },
        )
    }

    fn part(&self, object: &Object) -> Result<()> {
        let stored = StoredObject::open(self.archive, object)?;
        // Decoding and writing take turns on no thread: the disk would wait for the one, the processor for the other.
        let name = format!("{}-ahead", thread_name());
        let reader = ReadAhead::start(&name, stored, DECODED_AHEAD, limits::COPY_BUFFER_BYTES)?;
        let mut archive = tar::Reader::new(reader);
        let mut buffer = vec![0; limits::COPY_BUFFER_BYTES];
        while let Some(header) = archive.next_member()? {
            self.stop.check()?;
            let name = plain_name(&header.path)?;
            match header.kind {
                EntryKind::Directory => self.target.directory(&name, header.mode)?,
                EntryKind::File => self.file(&name, &header, &mut archive, &mut buffer)?,
                _ => {
                    return Err(Error::new(
                        Kind::Corrupt,
                        format!(
                            "member \"{}\" is neither a file nor a directory",
                            header.path.display()
                        ),
                    )
                    .detail("Backups of seawall contain no links."));
                }
            }
        }
        finish(archive.into_inner())
    }

    fn file(
        &self,
        name: &Path,
        header: &tar::Header,
        body: &mut impl Read,
        buffer: &mut [u8],
    ) -> Result<()> {
        if name == Path::new(CONTROL) {
            return self.hold_control(header, body);
        }
        // A signal file of the source would start a recovery or a standby that nobody asked for.
        let skipped = ["recovery.signal", "standby.signal"]
            .iter()
            .any(|signal| name == Path::new(signal));
        let mut file = if skipped {
            None
        } else {
            Some(self.target.create_file(name, header.mode, header.size)?)
        };
        let mut crc = Crc32c::new();
        loop {
            let count = body
                .read(buffer)
                .map_err(|e| from_io("could not read the backup", e))?;
            if count == 0 {
                break;
            }
            crc.update(&buffer[..count]);
            if let Some(file) = &mut file {
                file.write(&buffer[..count])?;
            }
            self.progress.add(count as u64);
            self.stop.check()?;
        }
        if let Some(file) = file {
            file.close(header.modified_secs)?;
        }
        self.expected.check(name, header.size, crc.value())
    }

    /// pg_control waits in memory until everything else is safe.
    fn hold_control(&self, header: &tar::Header, body: &mut impl Read) -> Result<()> {
        let mut bytes = Vec::new();
        body.take(limits::SMALL_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| from_io("could not read the backup", e))?;
        let mut crc = Crc32c::new();
        crc.update(&bytes);
        self.expected
            .check(Path::new(CONTROL), header.size, crc.value())?;
        ControlFile::parse(&bytes)?;
        *self.control.lock().expect("only stored and taken") = Some(bytes);
        Ok(())
    }

    fn finish(&self, details: &Details, mut settings: recovery::Settings) -> Result<Restored> {
        let restored = self.expected.all_seen()?;
        let control = self.control.lock().expect("only stored and taken").take();
        let control = control
            .ok_or_else(|| Error::new(Kind::Corrupt, "the backup has no global/pg_control"))?;
        self.target.links()?;
        let mut reader = StoredObject::open(self.archive, &details.manifest)?;
        self.target.write_new("backup_manifest", &mut reader)?;
        finish(reader)?;
        settings.in_place_tablespaces |=
            self.target.has_in_place_tablespaces() && knows_in_place_tablespaces(details);
        if settings.in_place_tablespaces {
            tell_of_in_place_tablespaces(details);
        }
        recovery::write(self.target.data(), &settings)?;
        self.stop.check()?;
        log::info!("syncing {} files", restored.files);
        self.target.sync()?;
        self.target.write_new(CONTROL, &mut control.as_slice())?;
        Ok(restored)
    }
}

/// An object of a backup: decoded, and at its end compared with the digest in the sentinel.
struct StoredObject {
    key: String,
    decoded: Box<dyn Read + Send>,
    digest: Arc<Mutex<Sha256>>,
    sha256: String,
    checked: bool,
}

/// Counts the stored bytes into a digest on their way to the decoder.
struct Hashed<R> {
    inner: R,
    digest: Arc<Mutex<Sha256>>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest
            .lock()
            .expect("one reader")
            .update(&buffer[..count]);
        Ok(count)
    }
}

impl StoredObject {
    fn open(archive: &Archive, object: &Object) -> Result<StoredObject> {
        let key = Key::new(object.key.clone())?;
        let method: Method = object.codec.parse()?;
        let body = archive.store.get(&key, 0).map_err(present)?;
        if body.size != object.stored_bytes {
            return Err(Error::new(
                Kind::Corrupt,
                format!("object {key} has another size than when it was stored"),
            )
            .detail(format!(
                "It has {} bytes instead of {}.",
                body.size, object.stored_bytes
            )));
        }
        let digest = Arc::new(Mutex::new(Sha256::new()));
        let decoded = codec::decoder(
            method,
            Hashed {
                inner: body.reader,
                digest: digest.clone(),
            },
        );
        Ok(StoredObject {
            key: object.key.clone(),
            decoded,
            digest,
            sha256: object.sha256.clone(),
            checked: false,
        })
    }

    fn check(&mut self) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        let digest = std::mem::take(&mut *self.digest.lock().expect("one reader"));
        let found = hex(&digest.finish());
        self.checked = found == self.sha256;
        if self.checked {
            return Ok(());
        }
        Err(Error::new(
            Kind::Corrupt,
            format!("object {} is not the one that was stored", self.key),
        )
        .detail(format!(
            "Its SHA-256 is {found}, the sentinel says {}.",
            self.sha256
        )))
    }
}

impl Read for StoredObject {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.decoded.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.check()?;
        }
        Ok(count)
    }
}

/// Reads what is left of a stored object, to the comparison at its end.
fn finish(mut reader: impl Read) -> Result<()> {
    std::io::copy(&mut reader, &mut std::io::sink())
        .map_err(|e| from_io("could not read the object", e))?;
    Ok(())
}

/// A part that is gone is a hole in the archive, not "no such backup".
fn present(error: Error) -> Error {
    match error.kind() {
        Kind::Missing => error.with_kind(Kind::Hole),
        _ => error,
    }
}
