//! The backups in the store. A backup is complete when its sentinel exists; what has only parts is unfinished.

use super::keys::{self, BackupId, BackupKey};
use super::sentinel::{Metadata, Sentinel};
use super::{Archive, parse_json, render_json};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::pg::timestamp::Timestamp;
use crate::store::When;
use std::fmt;

/// A complete backup.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Its name.
    pub id: BackupId,
    /// Its sentinel; in a catalog without the list of parts, so that memory does not grow with the databases.
    pub sentinel: Sentinel,
    /// Stored bytes of all parts; `None` for a backup of another tool.
    pub stored_bytes: Option<u64>,
    /// When the store received the sentinel.
    pub modified: Timestamp,
}

/// Where a recovery shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At a time.
    Time(Timestamp),
    /// At a WAL position.
    Lsn(Lsn),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Time(time) => time.fmt(f),
            Moment::Lsn(lsn) => lsn.fmt(f),
        }
    }
}

/// Whether a backup can be recovered to a moment; the better the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// It was begun later.
    No,
    /// The moment lies within the backup, or the backup does not tell.
    Perhaps,
    /// It was finished before.
    Yes,
}

/// What the listing found.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Complete backups, oldest first by finish time.
    pub backups: Vec<Backup>,
    /// Directories without sentinel: running, interrupted or half-deleted backups.
    pub unfinished: Vec<String>,
    /// Sentinels that cannot be read, with the reason.
    pub unreadable: Vec<(String, Error)>,
}

/// Names found by listing, before any sentinel is read.
#[derive(Debug, Default)]
struct Names {
    sentinels: Vec<(String, Timestamp)>,
    directories: Vec<String>,
}

impl Archive {
    /// Lists the backups and reads their sentinels.
    pub fn catalog(&self) -> Result<Catalog> {
        let names = self
            .backup_names()
            .map_err(|e| e.context("could not list the backups"))?;
        let mut catalog = Catalog::default();
        for (name, modified) in &names.sentinels {
            match name
                .parse::<BackupId>()
                .and_then(|id| self.sentinel(&id).map(|sentinel| (id, sentinel)))
            {
                Ok((id, sentinel)) => catalog
                    .backups
                    .push(Backup::new(id, sentinel, *modified).without_parts()),
                Err(e) if matches!(e.kind(), Kind::Missing | Kind::Hole) => {} // deleted since it was listed
                Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Usage) => {
                    catalog.unreadable.push((name.clone(), e))
                }
                Err(e) => return Err(e),
            }
        }
        let complete = |name: &String| names.sentinels.iter().any(|(there, _)| there == name);
        catalog.unfinished = names
            .directories
            .into_iter()
            .filter(|name| !complete(name))
            .collect();
        catalog
            .backups
            .sort_by_key(|backup| (backup.finished(), backup.id));
        Ok(catalog)
    }

    /// A complete backup by its exact name, or the newest for `LATEST`.
    pub fn select(&self, name: &str) -> Result<Backup> {
        if name == "LATEST" {
            return self.latest();
        }
        let id: BackupId = name.parse()?;
        // A versioned bucket says of a deleted sentinel that it was there.
        let gone = |e: Error| match e.kind() {
            Kind::Missing | Kind::Hole => Error::new(
                Kind::Missing,
                format!("there is no backup {id} in {}", self.store.location()),
            )
            .hint("seawall backup-list shows the backups."),
            _ => e,
        };
        let sentinel = self.sentinel(&id).map_err(gone)?;
        let info = self.store.head(&id.sentinel()).map_err(gone)?;
        Ok(Backup::new(
            id,
            sentinel,
            info.map_or(Timestamp(0), |info| info.modified),
        ))
    }

    /// The same for a recovery that shall end at `moment`, which no backup that was begun later can reach: it would
    /// recover to its own end and open there, with the very mistake in it that the moment is to undo. `LATEST` is the
    /// newest backup that was finished before.
    pub fn select_for(&self, name: &str, moment: Moment) -> Result<Backup> {
        if name != "LATEST" {
            let backup = self.select(name)?;
            return match backup.reaches(moment) {
                Reach::No => Err(self.beyond_reach(&backup, moment)?),
                _ => Ok(backup),
            };
        }
        let mut backups = self.catalog()?.backups;
        let reach = |backup: &Backup| backup.reaches(moment);
        let best = backups.iter().map(reach).max().unwrap_or(Reach::No);
        let Some(at) = backups.iter().rposition(|backup| reach(backup) == best) else {
            return self.latest();
        };
        let chosen = backups.swap_remove(at);
        match best {
            Reach::No => Err(self.beyond_reach(&chosen, moment)?),
            _ => self.select(&chosen.id.to_string()),
        }
    }

    fn beyond_reach(&self, backup: &Backup, moment: Moment) -> Result<Error> {
        let catalog = self.catalog()?;
        let mut fitting = catalog.backups.iter().rev();
        let hint = match fitting.find(|other| other.reaches(moment) != Reach::No) {
            Some(other) => format!("Restore {}, or say LATEST.", other.id),
            None => "No backup of this archive is old enough.".to_string(),
        };
        Ok(Error::new(
            Kind::Refused,
            format!("backup {} cannot be recovered to {moment}", backup.id),
        )
        .detail(match &backup.sentinel.seawall {
            Some(details) => format!(
                "It lasted from {} to {} (WAL {} to {}); the copy would open with what happened until then.",
                details.start_time, details.finish_time, details.start_lsn, details.stop_lsn
            ),
            None => "It was written by another tool.".to_string(),
        })
        .hint(hint))
    }

    fn latest(&self) -> Result<Backup> {
        let mut catalog = self.catalog()?;
        for (name, error) in &catalog.unreadable {
            log::warn!("backup {name} is passed over: {}", error.one_line());
        }
        if let Some(newest) = catalog.backups.pop() {
            return Ok(Backup::new(
                newest.id,
                self.sentinel(&newest.id)?,
                newest.modified,
            ));
        }
        self.prove_shown()?;
        let error = Error::new(
            Kind::Missing,
            format!("there is no complete backup in {}", self.store.location()),
        );
        Err(match catalog.unfinished.len() + catalog.unreadable.len() {
            0 => error.hint("Check the prefix; take a backup with seawall backup-push."),
            count => error.detail(format!("{count} unfinished or unreadable ones are there.")),
        })
    }

    /// Reads one sentinel.
    pub fn sentinel(&self, id: &BackupId) -> Result<Sentinel> {
        let key = id.sentinel();
        parse_json(&key, &self.read_document(&key)?)
    }

    /// Writes the sentinel: from here on the backup exists.
    pub fn create_sentinel(&self, id: &BackupId, sentinel: &Sentinel) -> Result<()> {
        self.create(&id.sentinel(), &render_json(sentinel))
    }

    /// Writes `metadata.json`, one of the two replaceable objects.
    pub fn write_metadata(&self, id: &BackupId, metadata: &Metadata) -> Result<()> {
        self.store
            .put(&id.metadata(), &render_json(metadata), When::Always)
    }

    /// Names only. After the first key inside a backup's directory the listing begins again behind the
    /// directory, so a backup of 10,000 parts costs two requests and not ten.
    fn backup_names(&self) -> Result<Names> {
        let mut names = Names::default();
        let mut after = String::new();
        loop {
            let mut skip = None;
            self.store.list(keys::BACKUPS, &after, &mut |object| {
                match keys::parse_backup(&object.key) {
                    Some(BackupKey::Sentinel(name)) => {
                        names.sentinels.push((name.to_string(), object.modified))
                    }
                    Some(BackupKey::Inside(name)) => {
                        // '0' follows '/', and '_' of the sentinel follows both.
                        skip = Some(format!("{}{name}0", keys::BACKUPS));
                        names.directories.push(name.to_string());
                    }
                    None => {}
                }
                Ok(skip.is_none())
            })?;
            match skip {
                Some(next) => after = next,
                None => return Ok(names),
            }
        }
    }
}

impl Backup {
    fn new(id: BackupId, sentinel: Sentinel, modified: Timestamp) -> Backup {
        let stored_bytes = sentinel
            .seawall
            .as_ref()
            .map(|details| details.stored_bytes());
        Backup {
            id,
            sentinel,
            stored_bytes,
            modified,
        }
    }

    fn without_parts(mut self) -> Backup {
        if let Some(details) = &mut self.sentinel.seawall {
            details.parts = Vec::new();
        }
        self
    }

    fn reaches(&self, moment: Moment) -> Reach {
        let Some(details) = &self.sentinel.seawall else {
            return Reach::Perhaps;
        };
        let (begin, end) = match moment {
            Moment::Time(at) => (
                details.started().map(|begin| at < begin),
                details.finished().map(|end| at >= end),
            ),
            // PostgreSQL does not open before the backup's end, and refuses a target before it.
            Moment::Lsn(at) => (
                details.stop().map(|end| at < end),
                details.stop().map(|end| at >= end),
            ),
        };
        match (begin, end) {
            (Ok(true), _) => Reach::No,
            (_, Ok(true)) => Reach::Yes,
            _ => Reach::Perhaps,
        }
    }

    /// Finish time in the sentinel; the object's date only for a backup that has none.
    pub fn finished(&self) -> Timestamp {
        let told = self
            .sentinel
            .seawall
            .as_ref()
            .and_then(|details| details.finished().ok());
        told.unwrap_or(self.modified)
    }
}
