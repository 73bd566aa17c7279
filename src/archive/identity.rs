//! P7: one prefix belongs to one cluster. `seawall.json` is created once, by the first push, and names it.

use super::{Archive, keys, parse_json, render_json};
use crate::error::{Error, Kind, Result};
use crate::pg::timestamp::Timestamp;
use crate::pg::{SegmentSize, SystemId};
use serde::{Deserialize, Serialize};

/// The cluster a prefix belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The system identifier that initdb gave it.
    pub system_id: SystemId,
    /// PostgreSQL's major version when the prefix was initialised.
    pub major: u32,
    /// Size of its WAL segments.
    pub segment_size: SegmentSize,
}

/// `seawall.json` as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    system_identifier: SystemId,
    postgresql: u32,
    segment_size: u64,
    created: String,
}

/// The newest format of `seawall.json` that this version understands.
const FORMAT: u32 = 1;

impl Archive {
    /// Reads `seawall.json`; `None` when the store says that there is none.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let key = keys::identity();
        let bytes = match self.read_document(&key) {
            Err(e) if e.kind() == Kind::Missing => return Ok(None),
            Err(e) => {
                return Err(e.context(format!(
                    "could not read the identity of archive {}",
                    self.store.location()
                )));
            }
            Ok(bytes) => bytes,
        };
        let document: Document = parse_json(&key, &bytes)?;
        if document.format > FORMAT {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "archive {} has format {}",
                    self.store.location(),
                    document.format
                ),
            )
            .detail(format!("This seawall knows formats up to {FORMAT}."))
            .hint("Use a newer seawall for this archive."));
        }
        let segment_size = SegmentSize::new(document.segment_size)?;
        Ok(Some(Identity {
            system_id: document.system_identifier,
            major: document.postgresql,
            segment_size,
        }))
    }

    /// Makes sure that the prefix belongs to `cluster`, initialising it on first use. A prefix that this host
    /// knows as initialised but that shows no identity is refused: it is unmounted, emptied or mistyped.
    pub fn claim(&self, cluster: &Identity, now: Timestamp) -> Result<()> {
        let found = match self.identity() {
            // The directory of a file archive does not exist before the first push.
            Err(e)
                if e.kind() == Kind::Unavailable
                    && self.state.directory().is_some()
                    && self.state.read()?.system_identifier.is_none() =>
            {
                self.store.prepare().map_err(|_| e)?;
                self.identity()?
            }
            other => other?,
        };
        if let Some(found) = found {
            self.refuse_stranger(&found, cluster)?;
        } else {
            self.initialise(cluster, now)?;
        }
        self.remember(cluster.system_id, cluster.segment_size);
        Ok(())
    }

    /// This host knows from now on whose the prefix is: should it show nothing one day, no new archive is begun there.
    pub fn remember(&self, system_id: SystemId, segment_size: SegmentSize) {
        self.state.update(|memory| {
            memory.prefix = self.store.location();
            memory.system_identifier = Some(system_id);
            memory.segment_size = Some(segment_size.bytes());
        });
    }

    fn initialise(&self, cluster: &Identity, now: Timestamp) -> Result<()> {
        if self.state.directory().is_none() {
            return Err(Error::new(
                Kind::Unavailable,
                format!("archive {} has no seawall.json", self.store.location()),
            )
            .detail("The state directory is not usable, so a new archive cannot be told from one that is not mounted.")
            .hint("Set SEAWALL_STATE_DIR to a directory that seawall may write, and check that the archive is mounted."));
        }
        if let Some(known) = self.state.read()?.system_identifier {
            let mut error = Error::new(
                Kind::Unavailable,
                format!("archive {} has lost its seawall.json", self.store.location()),
            )
            .detail(format!("This host has used the prefix before, for system identifier {known}; a new archive is not begun silently."))
            .hint("Check that the archive is mounted and the prefix is right.");
            if let Some(directory) = self.state.directory() {
                error = error.hint(format!(
                    "Check that the archive is mounted and the prefix is right. To begin a new archive here on purpose, remove {}.",
                    directory.display()
                ));
            }
            return Err(error);
        }
        let document = Document {
            format: FORMAT,
            system_identifier: cluster.system_id,
            postgresql: cluster.major,
            segment_size: cluster.segment_size.bytes(),
            created: now.to_string(),
        };
        match self.create(&keys::identity(), &render_json(&document)) {
            Ok(()) => log::info!(
                "archive {} now belongs to system identifier {}",
                self.store.location(),
                cluster.system_id
            ),
            // Two first pushes at once: the other one was faster, so compare with what it wrote.
            Err(e) if e.kind() == Kind::Exists => {
                let found = self.identity()?.ok_or(e)?;
                self.refuse_stranger(&found, cluster)?;
            }
            Err(e) => {
                return Err(e.context(format!(
                    "could not initialise archive {}",
                    self.store.location()
                )));
            }
        }
        Ok(())
    }

    /// Refuses another cluster, or another segment size.
    pub fn refuse_stranger(&self, found: &Identity, cluster: &Identity) -> Result<()> {
        if found.system_id != cluster.system_id {
            return Err(self.stranger(found.system_id, cluster.system_id));
        }
        if found.segment_size != cluster.segment_size {
            return Err(Error::new(
                Kind::Mismatch,
                format!(
                    "archive {} holds WAL segments of another size",
                    self.store.location()
                ),
            )
            .detail(format!(
                "The archive has segments of {} bytes, this cluster of {} bytes.",
                found.segment_size.bytes(),
                cluster.segment_size.bytes()
            ))
            .hint("Use a prefix of its own for this cluster."));
        }
        Ok(())
    }

    /// The refusal of P7, with both identifiers.
    pub(super) fn stranger(&self, archive: SystemId, cluster: SystemId) -> Error {
        Error::new(
            Kind::Mismatch,
            format!(
                "archive {} belongs to another cluster",
                self.store.location()
            ),
        )
        .detail(format!(
            "The archive's system identifier is {archive}, this cluster's is {cluster}."
        ))
        .hint("Give each cluster a prefix of its own; check SEAWALL_PREFIX.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::state::State;
    use crate::codec::{Compression, Method};
    use crate::store::mem::MemStore;

    #[test]
    fn no_archive_begins_where_nobody_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemStore::new();
        let archive = |state| Archive {
            store: Box::new(store.clone()),
            compression: Compression::new(Method::Zstd, None).unwrap(),
            state,
        };
        let cluster = Identity {
            system_id: SystemId(7),
            major: 15,
            segment_size: SegmentSize::DEFAULT,
        };
        let refused = archive(State::none()).claim(&cluster, Timestamp(0));
        assert_eq!(refused.unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(archive(State::none()).identity().unwrap(), None);

        let state = State::in_directory(dir.path().into());
        archive(state).claim(&cluster, Timestamp(0)).unwrap();
        archive(State::none())
            .claim(&cluster, Timestamp(0))
            .unwrap();
    }
}
