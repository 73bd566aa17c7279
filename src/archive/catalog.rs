//! The backups in the store. A backup is complete when its sentinel exists; what has only parts is unfinished.

use super::keys::{self, BackupId, BackupKey};
use super::sentinel::{Metadata, Sentinel};
use super::{Archive, parse_json, render_json};
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use crate::store::When;

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
