//! Taking a base backup through one BASE_BACKUP stream: no file of the server's host is touched. The server's tar
//! archives are taken apart and put together again as our parts; its manifest is kept as it came.

use super::pack::{BAD_PAGES_NAMED, Packing};
use super::plan::{Plan, Submit};
use super::push::{Facts, Job, Stored, Taken, finished_parts};
use super::scan::{Tablespace, is_servers_own};
use super::{history, spec};
use crate::archive::identity::Identity;
use crate::archive::keys::BackupId;
use crate::archive::object::ObjectWriter;
use crate::archive::sentinel::{Mode, PageChecksums};
use crate::codec::tar::{self, EntryKind, Event, Header, Splitter};
use crate::error::{Error, Kind, Result, from_io};
use crate::pg::label::BackupLabel;
use crate::pg::{Lsn, TimelineId};
use crate::wire::Conn;
use crate::wire::base_backup::{BackupEvent, BackupRequest, BaseBackup};
use crate::work::now;
use crate::work::pool;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A stream that has begun.
struct Stream<'c> {
    backup: BaseBackup<'c>,
    /// The mode of the data directory.
    mode: u32,
    /// Whether the server looks at page checksums.
    checks_pages: bool,
}

/// The end of the stream.
struct Streamed<'a> {
    stop: Lsn,
    label: BackupLabel,
    manifest: ObjectWriter<'a>,
    findings: PageChecksums,
}

impl Job<'_> {
    /// Backs up the server at the other end of `conn`, a replication session.
    pub fn remote(&self, conn: &mut Conn) -> Result<Taken> {
        let system = conn.identify_system()?;
        let version = conn.server_version();
        let history = history::of_server(conn, system.timeline)?;
        let segment_size = conn.wal_segment_size()?;
        let mode = conn.data_directory_mode()?;
        if is_standby(conn)? {
            return Err(standby());
        }
        let checks_pages = self.options.verify_checksums && conn.show("data_checksums")? == "on";
        // Only a superuser may know it; for others the sentinel does not say.
        let data_directory = conn.show("data_directory").unwrap_or_default();
        let identity = Identity {
            system_id: system.system_id,
            major: version.major(),
            segment_size,
        };
        self.archive.claim(&identity, now())?;
        let start_time = now();
        log::info!("waiting for the server's checkpoint");
        let request = BackupRequest {
            label: self.options.label.clone(),
            fast: true,
            max_rate_kib: self.options.rate_limit.map(|bytes| {
                u32::try_from(bytes / 1024)
                    .unwrap_or(1 << 20)
                    .clamp(32, 1 << 20)
            }),
            verify_checksums: checks_pages,
            ..BackupRequest::default()
        };
        let backup = BaseBackup::start(conn, &request)?;
        let id = BackupId::new(backup.timeline, backup.start, segment_size);
        log::info!(
            "backup {id} starts at {} on timeline {}",
            backup.start,
            backup.timeline
        );
        let facts = Facts {
            id,
            mode: Mode::Remote,
            version,
            identity,
            timeline: backup.timeline,
            start: backup.start,
            start_time,
        };
        self.owned(&facts, |job| {
            job.archive_history(&facts, history)?;
            let mut stream = Stream {
                backup,
                mode,
                checks_pages,
            };
            job.streamed(&mut stream, &facts, Path::new(&data_directory))
        })
    }

    fn streamed(&self, stream: &mut Stream<'_>, facts: &Facts, data: &Path) -> Result<Taken> {
        let backup = &stream.backup;
        let spaces = backup.tablespaces.iter().map(|space| Tablespace {
            oid: space.oid,
            location: PathBuf::from(&space.location),
        });
        let spec = spec::of(data, &spaces.collect::<Vec<_>>())?;
        let total = 1024
            * (backup.main_size_kib
                + backup
                    .tablespaces
                    .iter()
                    .map(|space| space.size_kib)
                    .sum::<u64>());
        self.progress.expect(total);
        let packing = Packing::new(
            self.archive.compression,
            self.options.threads,
            None,
            None,
            self.progress,
            self.stop,
        )?;
        let mut plan = self.plan(facts, total);
        let streamed = pool::run(
            "backup",
            self.options.threads,
            self.stop,
            |submit| {
                let modified = facts.start_time.secs();
                plan.directory(Path::new("."), stream.mode, modified, submit)?;
                let streamed = self.receive(stream, &mut plan, facts, submit)?;
                plan.close(submit)?;
                Ok(streamed)
            },
            |worker, chunk| packing.pack(worker, chunk),
        )?;
        drop(packing);
        log::info!("all files are stored; the backup ends at {}", streamed.stop);
        self.wait_for_wal(facts, streamed.stop, None)?;
        self.refuse_foreign_wal(facts, streamed.label.checkpoint, streamed.stop)?;
        let stored = Stored {
            parts: finished_parts(&plan)?,
            manifest: streamed.manifest.finish()?,
            file_bytes: plan.file_bytes,
            findings: streamed.findings,
        };
        self.complete(
            facts,
            streamed.stop,
            spec,
            stored,
            &format!("PostgreSQL {}", facts.version),
        )
    }

    /// Reads the stream to its end.
    fn receive<'p>(
        &'p self,
        stream: &mut Stream<'_>,
        plan: &mut Plan<'p>,
        facts: &Facts,
        submit: Submit<'_, 'p>,
    ) -> Result<Streamed<'p>> {
        let compression = self.archive.compression;
        let key = facts.id.manifest(compression.method);
        let mut manifest = ObjectWriter::new(&*self.archive.store, key, compression)?;
        let mut members = Members::new(None, stream.mode);
        let mut label = None;
        loop {
            self.stop.check()?;
            match stream.backup.next_event().map_err(explained)? {
                BackupEvent::Archive { tablespace } => {
                    members.end()?;
                    label = members.backup.take().or(label);
                    members = Members::new(tablespace, stream.mode);
                    members.begin(plan, submit)?;
                }
                BackupEvent::Data(bytes) => members.feed(bytes, plan, submit)?,
                BackupEvent::Manifest => members.end()?,
                BackupEvent::ManifestData(bytes) => {
                    manifest
                        .write_all(bytes)
                        .map_err(|e| from_io("could not send the manifest", e))?;
                }
                BackupEvent::Progress(_) => {}
                BackupEvent::End {
                    stop,
                    timeline,
                    findings,
                    notices,
                } => {
                    members.end()?;
                    refuse_promotion(facts.timeline, timeline)?;
                    notices.iter().try_for_each(|n| refuse_gap(&n.message))?;
                    let said = notices.into_iter().map(|notice| notice.message);
                    let found = match findings {
                        true => bad_pages(said.collect()),
                        false => PageChecksums::default(),
                    };
                    let findings = PageChecksums {
                        checked: stream.checks_pages,
                        ..found
                    };
                    let label = members.backup.take().or(label);
                    return Ok(Streamed {
                        stop,
                        label: label.ok_or_else(no_label)?,
                        manifest,
                        findings,
                    });
                }
            }
        }
    }
}

/// The members of one of the server's archives on their way into our parts.
struct Members {
    tablespace: Option<u32>,
    /// Of directories that the stream does not describe.
    mode: u32,
    splitter: Splitter,
    /// Bytes of the current member: its size, for the padding; `None` while it is left out.
    current: Option<u64>,
    label: Option<Vec<u8>>,
    /// What backup_label says, once it has passed.
    backup: Option<BackupLabel>,
}

impl Members {
    fn new(tablespace: Option<u32>, mode: u32) -> Members {
        Members {
            tablespace,
            mode,
            splitter: Splitter::new(),
            current: None,
            label: None,
            backup: None,
        }
    }

    /// A tablespace's archive does not name its own directory.
    fn begin<'p>(&self, plan: &mut Plan<'p>, submit: Submit<'_, 'p>) -> Result<()> {
        match self.tablespace {
            Some(oid) => plan.directory(
                &PathBuf::from(format!("pg_tblspc/{oid}")),
                self.mode,
                now().secs(),
                submit,
            ),
            None => Ok(()),
        }
    }

    fn feed<'p>(
        &mut self,
        bytes: &[u8],
        plan: &mut Plan<'p>,
        submit: Submit<'_, 'p>,
    ) -> Result<()> {
        let Members {
            tablespace,
            mode,
            splitter,
            current,
            label,
            backup,
        } = self;
        splitter.feed(bytes, &mut |event| match event {
            Event::Header(header) => {
                let name = header
                    .path
                    .strip_prefix(".")
                    .unwrap_or(&header.path)
                    .to_path_buf();
                *current = None;
                *label = (tablespace.is_none() && name == Path::new("backup_label")).then(Vec::new);
                match header.kind {
                    EntryKind::File => *current = Some(header.size),
                    // Links to tablespaces are in the spec; pg_wal as a link becomes a directory.
                    EntryKind::Symlink(_) if name == Path::new("pg_wal") => {
                        return plan.directory(&name, *mode, header.modified_secs, submit);
                    }
                    EntryKind::Directory => {}
                    _ => return Ok(()),
                }
                plan.close_if_large(submit)?;
                let path = match tablespace {
                    Some(oid) => PathBuf::from(format!("pg_tblspc/{oid}")).join(&name),
                    None => name,
                };
                if path.as_os_str().is_empty() {
                    return Ok(());
                }
                plan.header(
                    &Header {
                        path,
                        uid: 0,
                        gid: 0,
                        ..header
                    },
                    submit,
                )
            }
            Event::Data(bytes) => {
                if let Some(label) = label {
                    label.extend_from_slice(bytes);
                }
                if current.is_some() {
                    plan.bytes(bytes, submit)
                } else {
                    Ok(())
                }
            }
            Event::EndOfMember => {
                if let Some(label) = label.take() {
                    *backup = Some(of_primary(&label)?);
                }
                match current.take() {
                    Some(size) => plan.bytes(&[0; tar::BLOCK_BYTES][..tar::padding(size)], submit),
                    None => Ok(()),
                }
            }
        })
    }

    /// An archive that ends within a member is not an archive.
    fn end(&self) -> Result<()> {
        match self.splitter.at_border() {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Protocol,
                "the server ended an archive in the middle of a file",
            )),
        }
    }
}

/// The label's word counts, whatever the settings said.
fn of_primary(label: &[u8]) -> Result<BackupLabel> {
    let label = BackupLabel::parse(&String::from_utf8_lossy(label))?;
    if !label.from_standby {
        return Ok(label);
    }
    Err(standby())
}

fn no_label() -> Error {
    Error::new(Kind::Protocol, "the server sent no backup_label")
}

/// A standby's transactions are read only whatever the default is; version 14 has a word for it.
fn is_standby(conn: &mut Conn) -> Result<bool> {
    if conn.server_version().major() >= 14 {
        return Ok(conn.show("in_hot_standby")? == "on");
    }
    let by_default = conn.show("default_transaction_read_only")? == "on";
    Ok(conn.show("transaction_read_only")? == "on" && !by_default)
}

fn standby() -> Error {
    Error::new(Kind::Refused, "the server is a standby")
        .detail("Base backups are taken from the primary in this release.")
        .hint("Connect to the primary: set PGHOST.")
}

/// The server's tar has room for names and link targets of 99 bytes; ours has no such bound.
fn explained(error: Error) -> Error {
    match error.message().contains("too long for tar format") {
        true => error.hint(
            "A streamed backup cannot hold it. Rename it, or run backup-push PGDATA on the server's host.",
        ),
        false => error,
    }
}

/// What the server said about bad pages (basebackup.c): up to five warnings a file that name a block, the number of
/// each file, and the number of all. In a language that we do not know, the sentences are kept as they are.
fn bad_pages(said: Vec<String>) -> PageChecksums {
    let mut named: Vec<String> = said.iter().filter_map(|text| bad_page(text)).collect();
    let total = said.iter().rev().find_map(|text| {
        let number = text.strip_suffix(" total checksum verification failures")?;
        number.parse::<u64>().ok()
    });
    if named.is_empty() {
        named = said;
    }
    let bad_pages = total.unwrap_or(0).max(named.len() as u64).max(1);
    named.truncate(BAD_PAGES_NAMED);
    PageChecksums {
        checked: true,
        bad_pages,
        first_bad: named,
    }
}

/// `base/5/16384, block 3` of a warning that names a block.
fn bad_page(text: &str) -> Option<String> {
    let rest = text.strip_prefix("checksum verification failed in file \"")?;
    let (file, rest) = rest.split_once("\", block ")?;
    let block = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let file = file.strip_prefix("./").unwrap_or(file);
    Some(format!("{file}, block {block}"))
}

/// The server passes over links and warns (basebackup.c). One among its own files is a database, or a part of one, that
/// the backup does not have.
fn refuse_gap(warning: &str) -> Result<()> {
    let name = warning
        .strip_prefix("skipping special file \"./")
        .and_then(|rest| rest.strip_suffix('"'));
    match name {
        Some(name) if is_servers_own(Path::new(name)) => Err(Error::new(
            Kind::Refused,
            format!("the server left \"{name}\" out of the backup"),
        )
        .detail("It is a link, which the server follows for itself and does not stream.")
        .hint(
            "Run backup-push PGDATA on the server's host, which follows it, or use a tablespace.",
        )),
        _ => Ok(()),
    }
}

fn refuse_promotion(start: TimelineId, stop: TimelineId) -> Result<()> {
    if start == stop {
        return Ok(());
    }
    Err(
        Error::new(Kind::Refused, "the server was promoted during the backup")
            .detail(format!("It began on timeline {start} and ended on {stop}."))
            .hint("Begin again."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_pages_are_counted_as_the_server_counts_them() {
        let block = |n: u32| {
            format!(
                "checksum verification failed in file \"./base/5/1\", block {n}: calculated 41B6 but expected 6023"
            )
        };
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        let one = bad_pages(vec![block(3)]);
        assert_eq!(
            (one.bad_pages, one.first_bad),
            (1, texts(&["base/5/1, block 3"]))
        );
        let many = bad_pages(vec![
            block(3),
            block(4),
            "file \"./base/5/1\" has a total of 9 checksum verification failures".into(),
            "12 total checksum verification failures".into(),
        ]);
        let named = texts(&["base/5/1, block 3", "base/5/1, block 4"]);
        assert_eq!((many.bad_pages, many.first_bad), (12, named));
        let foreign = bad_pages(texts(&["Prüfsummen"]));
        assert_eq!(
            (foreign.bad_pages, foreign.first_bad),
            (1, texts(&["Prüfsummen"]))
        );
        assert_eq!(bad_pages(Vec::new()).bad_pages, 1);
    }

    #[test]
    fn what_the_server_leaves_out_of_its_own_files_is_no_backup() {
        for (warning, refused) in [
            ("skipping special file \"./base/16384\"", true),
            ("skipping special file \"./base/5/16390\"", true),
            ("skipping special file \"./log\"", false),
            ("skipping special file \"./pg_tblspc/note\"", false),
            ("could not stat file", false),
        ] {
            assert_eq!(refuse_gap(warning).is_err(), refused, "{warning}");
        }
    }
}
