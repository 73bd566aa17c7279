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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, Compression, Method};
    use crate::pg::manifest::Manifest;
    use crate::pg::timestamp::Timestamp;
    use crate::pg::{Lsn, TimelineId};
    use crate::store::mem::MemStore;
    use crate::store::{Key, Store};
    use std::io::BufReader;

    #[test]
    fn wal_inside_a_backup_is_no_file_of_the_manifest() {
        let store = MemStore::new();
        let key = Key::new("backup_manifest.zst").unwrap();
        let compression = Compression::new(Method::Zstd, None).unwrap();
        let object = ObjectWriter::new(&store, key.clone(), compression).unwrap();
        let manifest = ManifestObject::new(ServerVersion(150018), SystemId(7), object).unwrap();
        for name in ["base/1/1", "pg_wal/000000010000000000000009", "pg_wall"] {
            let name = name.into();
            let (size, modified, crc32c) = (0, Timestamp(0), 0);
            manifest
                .add(&Finished {
                    name,
                    size,
                    modified,
                    crc32c,
                })
                .unwrap();
        }
        let timeline = TimelineId(1);
        let (start, end) = (Lsn(0x100028), Lsn(0x100100));
        manifest
            .finish(WalRange {
                timeline,
                start,
                end,
            })
            .unwrap();

        let stored = store.get(&key, 0).unwrap();
        let text = BufReader::new(codec::decoder(Method::Zstd, stored.reader));
        let mut names = Vec::new();
        Manifest::read(text, &mut |file| {
            names.push(file.path.display().to_string());
            Ok(())
        })
        .unwrap();
        assert_eq!(names, ["base/1/1", "pg_wall"]);
    }
}
