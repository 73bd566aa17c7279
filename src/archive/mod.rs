//! What lies in the store: WAL, backups and the identity of the one cluster they belong to.
//!
//! An `Archive` is a store with a meaning. Opening it asks the store nothing; each verb asks what it needs.

pub mod catalog;
pub mod gaps;
pub mod growing;
pub mod identity;
pub mod keys;
pub mod object;
pub mod sentinel;
pub mod state;
#[cfg(test)]
mod testing;
pub mod wal;

use crate::codec::Compression;
use crate::error::{Error, Kind, Result, from_io};
use crate::limits;
use crate::store::{Key, Store, When};
use state::State;
use std::io::Read;

/// A store, how objects are written to it, and what this host remembers of it.
pub struct Archive {
    /// The bytes.
    pub store: Box<dyn Store>,
    /// How new objects are compressed; any known codec is read.
    pub compression: Compression,
    /// What this host knows of the prefix from earlier runs.
    pub state: State,
}

impl Archive {
    /// Creates an object that must not exist yet. Some S3 servers accept `If-None-Match: *` and overwrite all the
    /// same, so where the store cannot promise the condition a look comes first.
    pub fn create(&self, key: &Key, bytes: &[u8]) -> Result<()> {
        if !self.store.features().atomic_absent && self.exists(key)? {
            return Err(Error::new(
                Kind::Exists,
                format!("object {key} exists already"),
            ));
        }
        self.store.put(key, bytes, When::Absent)
    }

    /// Whether an object is there. One that was deleted from a versioned bucket is not.
    pub fn exists(&self, key: &Key) -> Result<bool> {
        match self.store.head(key) {
            Err(e) if e.kind() == Kind::Hole => Ok(false),
            other => Ok(other?.is_some()),
        }
    }

    /// Reads a whole JSON document, refusing absurd sizes.
    pub fn read_document(&self, key: &Key) -> Result<Vec<u8>> {
        let body = self.store.get(key, 0)?;
        if body.size > limits::JSON_BYTES_MAX {
            return Err(Error::new(
                Kind::Corrupt,
                format!("object {key} is too large to be read"),
            )
            .detail(format!(
                "It has {} bytes; a document has at most {}.",
                body.size,
                limits::JSON_BYTES_MAX
            )));
        }
        let mut bytes = Vec::with_capacity(body.size as usize);
        body.reader
            .take(limits::JSON_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| from_io(&format!("could not read object {key}"), e))?;
        Ok(bytes)
    }
}

/// Parses a JSON document of the archive.
fn parse_json<T: serde::de::DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::new(Kind::Corrupt, format!("object {key} cannot be understood"))
            .because(e)
            .hint("It is damaged or was written by a newer seawall.")
    })
}

/// Renders a JSON document for people and programs alike.
fn render_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .expect("our documents have string keys and finite numbers");
    bytes.push(b'\n');
    bytes
}
