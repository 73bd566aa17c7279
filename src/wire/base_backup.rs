//! BASE_BACKUP as a stream of events, the same for both forms of the protocol.
//!
//! Since version 15 everything comes in one copy whose messages carry a type byte; before, each archive is a copy of
//! its own, nameless and without the two zero blocks that end a tar file, and the manifest is a last copy.
//!
//! 1. `End` is given only after CommandComplete and ReadyForQuery: a stop position alone proves nothing.
//! 2. An error ends the backup, save one: pages that fail their checksum (XX001) after the stop position, when
//!    everything has been delivered. That is a complete backup with findings.
//! 3. The bytes of archives and manifest are handed on where they lie, unchanged.

use super::codec;
use super::command;
use super::conn::Conn;
use super::notice::Notice;
use super::sql::{Rows, unsendable};
use crate::error::{Error, Kind, Result};
use crate::pg::version::CommandForm;
use crate::pg::{Lsn, TimelineId};
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

/// What ends a tar file; servers before 15 leave it to the client.
const TAR_END: &[u8] = &[0; 1024];

/// What to ask for.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The label in backup_label.
    pub label: String,
    /// Checkpoint at once rather than spread.
    pub fast: bool,
    /// The server's own limit of its rate, KiB per second; 32 to 1048576.
    pub max_rate_kib: Option<u32>,
    /// Whether to send a manifest.
    pub manifest: bool,
    /// Its checksums: NONE, CRC32C, SHA224…
    pub manifest_checksums: String,
    /// Whether the server verifies page checksums while it reads.
    pub verify_checksums: bool,
}

impl Default for BackupRequest {
    fn default() -> BackupRequest {
        BackupRequest {
            label: "seawall".to_string(),
            fast: false,
            max_rate_kib: None,
            manifest: true,
            manifest_checksums: "CRC32C".to_string(),
            verify_checksums: true,
        }
    }
}

/// A tablespace of the cluster, without the main directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceInfo {
    /// Its object identifier, which is the name of the link in pg_tblspc.
    pub oid: u32,
    /// Where it lies on the server.
    pub location: String,
    /// The server's estimate.
    pub size_kib: u64,
}

/// What arrives, in this order: Archive with its Data, once per tablespace and the main directory; Manifest with its
/// ManifestData, if asked for; End. Progress comes anywhere in between, from version 15 on.
#[derive(Debug, PartialEq, Eq)]
pub enum BackupEvent<'a> {
    /// A tar file begins: of a tablespace, or of the main directory.
    Archive {
        /// Its object identifier; `None` for the main directory.
        tablespace: Option<u32>,
    },
    /// Bytes of the tar file; it ends when the next one, the manifest or the end comes.
    Data(&'a [u8]),
    /// The manifest begins.
    Manifest,
    /// Bytes of the manifest.
    ManifestData(&'a [u8]),
    /// Bytes that the server has read so far, of all tablespaces.
    Progress(u64),
    /// The server has ended the backup in order.
    End {
        /// WAL is needed up to here.
        stop: Lsn,
        /// On this timeline.
        timeline: TimelineId,
        /// Pages failed their checksums; the notices say which.
        findings: bool,
        /// What the server said during the backup.
        notices: Vec<Notice>,
    },
}

/// A running base backup. Dropped before its end, it is cancelled and leaves a connection that is of no use.
pub struct BaseBackup<'c> {
    conn: &'c mut Conn,
    machine: Machine,
    /// WAL is needed from here.
    pub start: Lsn,
    /// The timeline at the start.
    pub timeline: TimelineId,
    /// The tablespaces, without the main directory.
    pub tablespaces: Vec<TablespaceInfo>,
    /// The server's estimate for the main directory.
    pub main_size_kib: u64,
}

impl<'c> BaseBackup<'c> {
    /// Asks a replication session for a base backup, and waits for its start: a checkpoint, which may take minutes
    /// unless it is `fast`.
    pub fn start(conn: &'c mut Conn, request: &BackupRequest) -> Result<BaseBackup<'c>> {
        let version = conn.server_version();
        let mut out = BytesMut::new();
        frontend::query(&command::base_backup(request, version), &mut out).map_err(unsendable)?;
        conn.begin(&out)?;
        conn.lift_deadline();
        let mut machine = Machine::new(
            version.command_form() == CommandForm::List,
            request.manifest,
        );
        while machine.phase != Phase::Archives {
            let frame = conn.next()?;
            if frame.tag == b'E' {
                let refusal = conn.error_of(&frame)?;
                while conn.next()?.tag != b'Z' {}
                return Err(refusal);
            }
            machine.before_copies(frame.tag, conn.message(&frame)?)?;
        }
        Ok(BaseBackup {
            start: machine.start.0,
            timeline: machine.start.1,
            tablespaces: machine.tablespaces.clone(),
            main_size_kib: machine.main_size_kib,
            conn,
            machine,
        })
    }

    /// The next event. After `End` or an error there is none.
    pub fn next_event(&mut self) -> Result<BackupEvent<'_>> {
        let (frame, step) = loop {
            let frame = self.conn.next()?;
            match self.machine.step(frame.tag, self.conn.body(&frame))? {
                Step::Skip => {}
                step => break (frame, step),
            }
        };
        Ok(match step {
            Step::Archive(tablespace) => BackupEvent::Archive { tablespace },
            Step::Data(from) => BackupEvent::Data(&self.conn.body(&frame)[from..]),
            Step::TarEnd => BackupEvent::Data(TAR_END),
            Step::Manifest => BackupEvent::Manifest,
            Step::ManifestData(from) => BackupEvent::ManifestData(&self.conn.body(&frame)[from..]),
            Step::Progress(bytes) => BackupEvent::Progress(bytes),
            Step::End { stop, findings } => BackupEvent::End {
                stop: stop.0,
                timeline: stop.1,
                findings,
                notices: self.conn.take_notices(),
            },
            Step::Skip => unreachable!("the loop ends with another step"),
        })
    }
}

impl Drop for BaseBackup<'_> {
    /// A backup that is given up early is cancelled on the server, which else would read on until it sees that
    /// nobody listens.
    fn drop(&mut self) {
        self.conn.abandon();
    }
}

/// Where in the dialogue we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The result with the start position.
    Start,
    /// The result with the tablespaces.
    Tablespaces,
    /// Copies, or what comes between them.
    Archives,
    /// The stop position was read.
    Stopped,
    /// Nothing more.
    Ended,
}

/// What a message means. Offsets are into its body, so that the bytes need not be copied.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Skip,
    Archive(Option<u32>),
    Data(usize),
    TarEnd,
    Manifest,
    ManifestData(usize),
    Progress(u64),
    End {
        stop: (Lsn, TimelineId),
        findings: bool,
    },
}

/// What the running copy carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carries {
    Nothing,
    Archive,
    Manifest,
}

/// The dialogue, sans-IO.
#[derive(Debug)]
struct Machine {
    tagged: bool,
    manifest: bool,
    phase: Phase,
    rows: Rows,
    start: (Lsn, TimelineId),
    tablespaces: Vec<TablespaceInfo>,
    main_size_kib: u64,
    /// Archives still to come, in the form before 15 in this order, which is that of the tablespaces.
    expected: Vec<Option<u32>>,
    copying: bool,
    carries: Carries,
    manifest_seen: bool,
    stop: Option<(Lsn, TimelineId)>,
    completed: bool,
    error: Option<Notice>,
}

impl Machine {
    fn new(tagged: bool, manifest: bool) -> Machine {
        Machine {
            tagged,
            manifest,
            phase: Phase::Start,
            rows: Rows::default(),
            start: (Lsn::INVALID, TimelineId(0)),
            tablespaces: Vec::new(),
            main_size_kib: 0,
            expected: Vec::new(),
            copying: false,
            carries: Carries::Nothing,
            manifest_seen: false,
            stop: None,
            completed: false,
            error: None,
        }
    }

    /// The two results before the first copy.
    fn before_copies(&mut self, tag: u8, message: Message) -> Result<()> {
        match message {
            Message::RowDescription(body) => self.rows = Rows::begin(&body)?,
            Message::DataRow(body) => self.rows.push(&body)?,
            Message::CommandComplete(_) => match self.phase {
                Phase::Start => {
                    self.start = position(&self.rows)?;
                    self.phase = Phase::Tablespaces;
                }
                _ => {
                    self.take_tablespaces()?;
                    self.phase = Phase::Archives;
                }
            },
            _ => return Err(codec::unexpected(tag, "the start of BASE_BACKUP")),
        }
        Ok(())
    }

    fn take_tablespaces(&mut self) -> Result<()> {
        for row in 0..self.rows.len() {
            let number = |column: &str| -> Result<u64> {
                self.rows.need(row, column)?.parse().map_err(|_| {
                    codec::malformed(format!("Column \"{column}\" of a tablespace is no number."))
                })
            };
            let size_kib = number("size")?;
            let Some(oid) = self.rows.get(row, "spcoid") else {
                self.main_size_kib = size_kib;
                self.expected.push(None);
                continue;
            };
            let oid = oid
                .parse()
                .map_err(|_| codec::malformed("A tablespace has no number."))?;
            self.expected.push(Some(oid));
            self.tablespaces.push(TablespaceInfo {
                oid,
                location: self.rows.need(row, "spclocation")?.to_string(),
                size_kib,
            });
        }
        if self
            .expected
            .iter()
            .filter(|archive| archive.is_none())
            .count()
            != 1
        {
            return Err(codec::malformed(
                "The main directory is not announced exactly once.",
            ));
        }
        Ok(())
    }

    /// One message after the two results.
    fn step(&mut self, tag: u8, body: &[u8]) -> Result<Step> {
        if self.error.is_some() && tag != b'Z' {
            return Err(codec::unexpected(tag, "the end of BASE_BACKUP"));
        }
        match (tag, self.phase) {
            (b'd', Phase::Archives) if self.copying => {
                if self.tagged {
                    self.tagged_data(body)
                } else {
                    self.plain_data()
                }
            }
            (b'H', Phase::Archives) if !self.copying => self.copy_begins(),
            (b'c', Phase::Archives) if self.copying => Ok(self.copy_ends()),
            (b'T' | b'D', Phase::Archives) if !self.copying => self.result(tag, body),
            (b'C', Phase::Archives) if !self.copying => {
                self.all_arrived()?;
                self.stop = Some(position(&self.rows)?);
                self.phase = Phase::Stopped;
                Ok(Step::Skip)
            }
            (b'C', Phase::Stopped) => {
                self.completed = true;
                Ok(Step::Skip)
            }
            (b'E', _) => {
                self.error = Some(notice(body)?);
                Ok(Step::Skip)
            }
            (b'Z', _) => self.end(),
            _ => Err(codec::unexpected(tag, "BASE_BACKUP")),
        }
    }

    /// The content of CopyData since version 15: a type byte, then its part.
    fn tagged_data(&mut self, body: &[u8]) -> Result<Step> {
        let (kind, part) = body
            .split_first()
            .ok_or_else(|| codec::malformed("An empty copy message."))?;
        match (kind, self.carries) {
            (b'n', Carries::Nothing | Carries::Archive) => {
                self.carries = Carries::Archive;
                self.archive_begins(part)
            }
            (b'm', Carries::Nothing | Carries::Archive) if self.manifest => {
                self.carries = Carries::Manifest;
                self.manifest_seen = true;
                Ok(Step::Manifest)
            }
            (b'd', Carries::Archive) => Ok(Step::Data(1)),
            (b'd', Carries::Manifest) => Ok(Step::ManifestData(1)),
            (b'p', _) => {
                let done = part
                    .try_into()
                    .map_err(|_| codec::malformed("A progress report of odd length."))?;
                Ok(Step::Progress(u64::from_be_bytes(done)))
            }
            _ => Err(codec::unexpected(*kind, "the copy of BASE_BACKUP")),
        }
    }

    /// The name of an archive (`base.tar`, `16384.tar`) and the place of its tablespace; the name decides.
    fn archive_begins(&mut self, part: &[u8]) -> Result<Step> {
        let name = part.split(|byte| *byte == 0).next().unwrap_or_default();
        let stem = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.strip_suffix(".tar"));
        let archive = match stem {
            Some("base") => Some(None),
            Some(stem) => stem.parse().ok().map(Some),
            None => None,
        };
        let place = archive.and_then(|archive| self.expected.iter().position(|e| *e == archive));
        match place {
            Some(place) => Ok(Step::Archive(self.expected.remove(place))),
            None => Err(codec::malformed(format!(
                "The archive \"{}\" was not announced.",
                name.escape_ascii()
            ))),
        }
    }

    fn plain_data(&self) -> Result<Step> {
        Ok(match self.carries {
            Carries::Manifest => Step::ManifestData(0),
            _ => Step::Data(0),
        })
    }

    fn copy_begins(&mut self) -> Result<Step> {
        self.copying = true;
        if self.tagged {
            return Ok(Step::Skip);
        }
        if !self.expected.is_empty() {
            self.carries = Carries::Archive;
            return Ok(Step::Archive(self.expected.remove(0)));
        }
        if !self.manifest || self.manifest_seen {
            return Err(codec::unexpected(b'H', "BASE_BACKUP, after its last copy"));
        }
        self.carries = Carries::Manifest;
        self.manifest_seen = true;
        Ok(Step::Manifest)
    }

    fn copy_ends(&mut self) -> Step {
        self.copying = false;
        let was = std::mem::replace(&mut self.carries, Carries::Nothing);
        if !self.tagged && was == Carries::Archive {
            return Step::TarEnd;
        }
        Step::Skip
    }

    /// The result with the stop position.
    fn result(&mut self, tag: u8, body: &[u8]) -> Result<Step> {
        match parse(tag, body)? {
            Message::RowDescription(body) => self.rows = Rows::begin(&body)?,
            Message::DataRow(body) => self.rows.push(&body)?,
            _ => return Err(codec::unexpected(tag, "BASE_BACKUP")),
        }
        Ok(Step::Skip)
    }

    fn all_arrived(&self) -> Result<()> {
        if !self.expected.is_empty() || (self.manifest && !self.manifest_seen) {
            return Err(codec::malformed(
                "It ended the backup before all of it was sent.",
            ));
        }
        Ok(())
    }

    /// ReadyForQuery: what was it worth?
    fn end(&mut self) -> Result<Step> {
        self.phase = Phase::Ended;
        let findings = match self.error.take() {
            None if !self.completed => {
                return Err(codec::malformed("It ended the backup without saying how."));
            }
            None => false,
            Some(error) if self.stop.is_some() && error.code == "XX001" => true,
            Some(error) => return Err(error.into_error()),
        };
        match self.stop {
            Some(stop) => Ok(Step::End { stop, findings }),
            None => Err(codec::malformed(
                "It ended the backup without a stop position.",
            )),
        }
    }
}

fn parse(tag: u8, body: &[u8]) -> Result<Message> {
    let mut bytes = BytesMut::with_capacity(body.len() + 5);
    bytes.extend_from_slice(&[tag]);
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    match Message::parse(&mut bytes) {
        Ok(Some(message)) => Ok(message),
        _ => Err(codec::malformed("A message inside BASE_BACKUP.")),
    }
}

fn notice(body: &[u8]) -> Result<Notice> {
    match parse(b'E', body)? {
        Message::ErrorResponse(body) => Ok(Notice::from_fields(body.fields())),
        _ => Err(codec::unexpected(b'E', "BASE_BACKUP")),
    }
}

/// A result of one row: a position and its timeline.
fn position(rows: &Rows) -> Result<(Lsn, TimelineId)> {
    let timeline: Option<u32> = rows.need(0, "tli")?.parse().ok().filter(|id| *id > 0);
    let lsn = rows
        .need(0, "recptr")?
        .parse()
        .map_err(|e: Error| e.with_kind(Kind::Protocol))?;
    let timeline = timeline.ok_or_else(|| codec::malformed("A timeline is no number above 0."))?;
    Ok((lsn, TimelineId(timeline)))
}

#[cfg(test)]
#[path = "base_backup_tests.rs"]
mod tests;
