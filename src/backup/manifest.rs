//! The manifest of a backup that we read ourselves: PostgreSQL's own format, CRC-32C per file, made in the same
//! pass over the data and streamed to its object, so that memory does not grow with the number of files.

use super::pages::Finished;
use crate::archive::object::ObjectWriter;
use crate::archive::sentinel::Object;
use crate::error::Result;
use crate::pg::SystemId;
use crate::pg::manifest::{FileChecksum, ManifestFile, ManifestWriter, WalRange};
use crate::pg::version::ServerVersion;
use std::sync::Mutex;

/// A manifest on its way to the store.
pub struct ManifestObject<'a>(Mutex<ManifestWriter<ObjectWriter<'a>>>);

impl<'a> ManifestObject<'a> {
    /// An empty manifest in the form that the server's version reads.
    pub fn new(
        version: ServerVersion,
        system_id: SystemId,
        object: ObjectWriter<'a>,
    ) -> Result<ManifestObject<'a>> {
        let system_id = (version.manifest_version() >= 2).then_some(system_id);
        Ok(ManifestObject(Mutex::new(ManifestWriter::new(
            object, system_id,
        )?)))
    }

    /// Adds a file that was read to its end. WAL files, in the backup of a server that is shut down, are not in a
    /// manifest: it names the range of WAL instead.
    pub fn add(&self, file: &Finished) -> Result<()> {
        if file.name.starts_with("pg_wal") {
            return Ok(());
        }
        let mut writer = self
            .0
            .lock()
            .expect("no thread panics while it writes the manifest");
        writer.add(&ManifestFile {
            path: file.name.clone(),
            size: file.size,
            modified: file.modified,
            checksum: FileChecksum::Crc32c(file.crc32c),
        })
    }

    /// Ends the manifest with the WAL that the backup needs, and stores it.
    pub fn finish(self, wal: WalRange) -> Result<Object> {
        let writer = self
            .0
            .into_inner()
            .expect("no thread panics while it writes the manifest");
        writer.finish(&[wal])?.finish()
    }
}
