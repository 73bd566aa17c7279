//! Manifest: PostgreSQL's `backup_manifest`, read, written and verified.
//!
//! Format: JSON, one file per line, whose last line carries the SHA-256 of all lines before it. Version 1 comes
//! from 13 to 16; version 2, with the system identifier, from 17 on. What the writer writes is, byte for byte,
//! what the server writes for the same files.

use super::{Lsn, SystemId, TimelineId, Timestamp};
use crate::error::{Error, Kind, Result};
use ring::digest;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

mod read;

/// The file's name in the data directory.
pub const MANIFEST_NAME: &str = "backup_manifest";

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// 1, or 2 from PostgreSQL 17 on.
    pub version: u32,
    /// The cluster, from version 2 on.
    pub system_id: Option<SystemId>,
    /// Every file but the manifest itself and those of `pg_wal`.
    pub files: Vec<ManifestFile>,
    /// The WAL without which the backup cannot be used.
    pub wal_ranges: Vec<WalRange>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory; tablespaces are `pg_tblspc/<oid>/…`.
    pub path: PathBuf,
    /// Length in bytes.
    pub size: u64,
    /// When it was changed last, to the second.
    pub modified: Timestamp,
    /// The checksum of its contents.
    pub checksum: FileChecksum,
}

/// The checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChecksum {
    /// None was computed.
    None,
    /// CRC-32C, PostgreSQL's default.
    Crc32c(u32),
    /// SHA-224, 28 bytes.
    Sha224(Vec<u8>),
    /// SHA-256, 32 bytes.
    Sha256(Vec<u8>),
    /// SHA-384, 48 bytes.
    Sha384(Vec<u8>),
    /// SHA-512, 64 bytes.
    Sha512(Vec<u8>),
}

/// A stretch of WAL on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// The byte after its last.
    pub end: Lsn,
}

impl Manifest {
    /// Parses a manifest that is in memory and verifies its checksum.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        let mut files = Vec::new();
        let manifest = Manifest::read(bytes, &mut |file| {
            files.push(file);
            Ok(())
        })?;
        Ok(Manifest { files, ..manifest })
    }

    /// Reads a manifest of any length, giving each file to `each` as it comes; the `files` returned are empty.
    ///
    /// The manifest's own checksum stands at its end: nothing that `each` saw counts before this returns `Ok`.
    pub fn read(
        input: impl BufRead,
        each: &mut dyn FnMut(ManifestFile) -> Result<()>,
    ) -> Result<Manifest> {
        read::read(input, each)
    }
}

impl FileChecksum {
    /// The name of the algorithm, as the manifest spells it; `None` without checksum.
    pub fn algorithm(&self) -> Option<&'static str> {
        match self {
            FileChecksum::None => None,
            FileChecksum::Crc32c(_) => Some("CRC32C"),
            FileChecksum::Sha224(_) => Some("SHA224"),
            FileChecksum::Sha256(_) => Some("SHA256"),
            FileChecksum::Sha384(_) => Some("SHA384"),
            FileChecksum::Sha512(_) => Some("SHA512"),
        }
    }

    /// The checksum as hexadecimal digits. CRC-32C stands in the order of memory, low byte first.
    pub fn hex(&self) -> String {
        match self {
            FileChecksum::None => String::new(),
            FileChecksum::Crc32c(crc) => hex(&crc.to_le_bytes()),
            FileChecksum::Sha224(sum)
            | FileChecksum::Sha256(sum)
            | FileChecksum::Sha384(sum)
            | FileChecksum::Sha512(sum) => hex(sum),
        }
    }

    /// Parses what the manifest says, or `None` if the digits do not fit the algorithm.
    pub fn parse(algorithm: &str, digits: &str) -> Option<FileChecksum> {
        let sum = unhex(digits)?;
        let (expected, make): (usize, fn(Vec<u8>) -> FileChecksum) =
            match algorithm.to_ascii_uppercase().as_str() {
                "CRC32C" => {
                    return Some(FileChecksum::Crc32c(u32::from_le_bytes(
                        sum.try_into().ok()?,
                    )));
                }
                "SHA224" => (28, FileChecksum::Sha224),
                "SHA256" => (32, FileChecksum::Sha256),
                "SHA384" => (48, FileChecksum::Sha384),
                "SHA512" => (64, FileChecksum::Sha512),
                _ => return None,
            };
        (sum.len() == expected).then(|| make(sum))
    }
}

/// Writes a manifest file by file; memory does not grow with their number.
pub struct ManifestWriter<W: Write> {
    out: W,
    digest: digest::Context,
    files: u64,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest: version 2 with a system identifier, version 1 without
    /// (`ServerVersion::manifest_version` says which).
    pub fn new(out: W, system_id: Option<SystemId>) -> Result<ManifestWriter<W>> {
        let mut writer = ManifestWriter {
            out,
            digest: digest::Context::new(&digest::SHA256),
            files: 0,
        };
        let head = match system_id {
            None => "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_string(),
            Some(id) => format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {id},\n\"Files\": ["
            ),
        };
        writer.put(&head)?;
        Ok(writer)
    }

    /// Adds a file.
    pub fn add(&mut self, file: &ManifestFile) -> Result<()> {
        let mut line = String::from(if self.files == 0 { "\n" } else { ",\n" });
        line.push_str(&path_member(file.path.as_os_str()));
        let modified = file.modified.gmt();
        // Writing to a String cannot fail.
        let _ = write!(
            line,
            ", \"Size\": {}, \"Last-Modified\": \"{modified}\"",
            file.size
        );
        if let Some(algorithm) = file.checksum.algorithm() {
            let sum = file.checksum.hex();
            let _ = write!(
                line,
                ", \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{sum}\""
            );
        }
        line.push_str(" }");
        self.files += 1;
        self.put(&line)
    }

    /// Ends the manifest with the WAL that the backup needs, and returns the output.
    pub fn finish(mut self, wal_ranges: &[WalRange]) -> Result<W> {
        let ranges: Vec<String> = wal_ranges.iter().map(range_member).collect();
        let ranges = ranges.join(",\n");
        self.put(&format!("\n],\n\"WAL-Ranges\": [\n{ranges}\n],\n"))?;
        let digest = self.digest.clone().finish();
        self.put(&format!(
            "\"Manifest-Checksum\": \"{}\"}}\n",
            hex(digest.as_ref())
        ))?;
        Ok(self.out)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.digest.update(text.as_bytes());
        self.out
            .write_all(text.as_bytes())
            .map_err(|e| crate::error::from_io("could not write the backup manifest", e))
    }
}

/// `{ "Path": "…"`, or the bytes as hexadecimal digits if they are not UTF-8.
fn path_member(path: &OsStr) -> String {
    let quoted = path
        .to_str()
        .and_then(|text| serde_json::to_string(text).ok());
    match quoted {
        Some(json) => format!("{{ \"Path\": {json}"),
        None => format!("{{ \"Encoded-Path\": \"{}\"", hex(path.as_bytes())),
    }
}

fn range_member(range: &WalRange) -> String {
    format!(
        "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
        range.timeline, range.start, range.end
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8))
        .collect()
}

fn damaged(detail: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, "the backup manifest is damaged").detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Manifests that PostgreSQL 15 and 18 wrote, among the files some with quotes, control characters, line breaks
    /// and bytes that are no UTF-8.
    const REAL: [&[u8]; 2] = [
        include_bytes!("../../../tests/fixtures/manifest/15.gz"),
        include_bytes!("../../../tests/fixtures/manifest/18.gz"),
    ];

    fn real(index: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(REAL[index]);
        decoder.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn write(manifest: &Manifest) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), manifest.system_id).unwrap();
        for file in &manifest.files {
            writer.add(file).unwrap();
        }
        writer.finish(&manifest.wal_ranges).unwrap()
    }

    fn small() -> Manifest {
        let file = |path: &str, checksum| ManifestFile {
            path: PathBuf::from(path),
            size: 3,
            modified: Timestamp(1_795_232_400_999_999),
            checksum,
        };
        Manifest {
            version: 2,
            system_id: Some(SystemId(u64::MAX)),
            files: vec![
                file("PG_VERSION", FileChecksum::None),
                file("base/1/1", FileChecksum::Crc32c(0x12345678)),
                file("base/1/2", FileChecksum::Sha224(vec![1; 28])),
                file("base/1/3", FileChecksum::Sha256(vec![2; 32])),
                file("base/1/4", FileChecksum::Sha384(vec![3; 48])),
                file("base/1/5", FileChecksum::Sha512(vec![4; 64])),
            ],
            wal_ranges: vec![
                WalRange {
                    timeline: TimelineId(1),
                    start: Lsn(0x28),
                    end: Lsn(0x100),
                },
                WalRange {
                    timeline: TimelineId(2),
                    start: Lsn(0x100),
                    end: Lsn(0x1_0000_0000),
                },
            ],
        }
    }

    #[test]
    fn rewriting_a_servers_manifest_gives_the_same_bytes() {
        for (index, version) in [(0, 1), (1, 2)] {
            let bytes = real(index);
            let manifest = Manifest::parse(&bytes).unwrap();
            assert_eq!(manifest.version, version);
            assert!(manifest.files.len() > 900);
            assert!(write(&manifest) == bytes, "version {version}");
        }
    }

    #[test]
    fn odd_names_come_back_as_bytes() {
        let manifest = Manifest::parse(&real(0)).unwrap();
        let names: Vec<&[u8]> = manifest
            .files
            .iter()
            .map(|f| f.path.as_os_str().as_bytes())
            .collect();
        let odd: [&[u8]; 4] = [
            b"tab\there \x01\x7f \"q\" \\ \xc3\xbc",
            b"latin-\xfc",
            b"nl\nx",
            b"\xed\xa0\x80",
        ];
        for name in odd {
            assert!(names.contains(&name), "{name:x?}");
        }
    }

    #[test]
    fn a_crc_is_that_of_the_file() {
        // postgresql.auto.conf as initdb writes it.
        let text = "# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n";
        let manifest = Manifest::parse(&real(0)).unwrap();
        let named = |file: &&ManifestFile| file.path.as_os_str() == "postgresql.auto.conf";
        let file = manifest.files.iter().find(named).unwrap();
        assert_eq!(
            file.checksum,
            FileChecksum::Crc32c(crc32c::crc32c(text.as_bytes()))
        );
    }

    #[test]
    fn every_checksum_and_range_comes_back() {
        let mut manifest = small();
        let bytes = write(&manifest);
        for file in &mut manifest.files {
            file.modified = Timestamp(1_795_232_400_000_000);
        }
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    }

    #[test]
    fn every_changed_or_missing_byte_is_seen() {
        let bytes = write(&small());
        for at in 0..bytes.len() {
            assert!(Manifest::parse(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x01;
            assert!(Manifest::parse(&changed).is_err(), "changed at {at}");
        }
        assert!(Manifest::parse(&[&bytes[..], b"\n"].concat()).is_err());
    }

    /// A version 1 manifest with these lines between `"Files": [` and its end, and a checksum that fits.
    fn with_body(body: &str) -> Vec<u8> {
        let text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n{body},\n");
        let sum = digest::digest(&digest::SHA256, text.as_bytes());
        format!("{text}\"Manifest-Checksum\": \"{}\"}}\n", hex(sum.as_ref())).into_bytes()
    }

    #[test]
    fn nonsense_with_a_fitting_checksum_is_refused() {
        const TIME: &str = "\"Last-Modified\": \"2026-11-21 03:40:00 GMT\"";
        let file = |member: &str| format!("\"Files\": [\n{{ {member} }}\n],\n\"WAL-Ranges\": []");
        let good = file(&format!("\"Path\": \"a/b\", \"Size\": 1, {TIME}"));
        assert!(Manifest::parse(&with_body(&good)).is_ok());
        for body in [
            "\"Files\": []".to_string(),
            "\"WAL-Ranges\": []".to_string(),
            "\"Files\": [], \"Files\": [], \"WAL-Ranges\": []".to_string(),
            file(&format!("\"Path\": \"../b\", \"Size\": 1, {TIME}")),
            file(&format!("\"Path\": \"/b\", \"Size\": 1, {TIME}")),
            file(&format!("\"Path\": \"\", \"Size\": 1, {TIME}")),
            file(&format!("\"Encoded-Path\": \"2e2e\", \"Size\": 1, {TIME}")),
            file(&format!("\"Encoded-Path\": \"2\", \"Size\": 1, {TIME}")),
            file(&format!("\"Size\": 1, {TIME}")),
            file(&format!("\"Path\": \"a\", \"Size\": -1, {TIME}")),
            file("\"Path\": \"a\", \"Size\": 1, \"Last-Modified\": \"2026-11-21 03:40:00\""),
            file(&format!(
                "\"Path\": \"a\", \"Size\": 1, {TIME}, \"Checksum\": \"00000000\""
            )),
            file(&format!(
                "\"Path\": \"a\", \"Size\": 1, {TIME}, \"Checksum-Algorithm\": \"MD5\", \"Checksum\": \"00\""
            )),
            file(&format!(
                "\"Path\": \"a\", \"Size\": 1, {TIME}, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"0000\""
            )),
            "\"Files\": [], \"WAL-Ranges\": [{\"Timeline\": 1, \"Start-LSN\": \"0/2\", \"End-LSN\": \"0/1\"}]"
                .to_string(),
            "\"Files\": [], \"WAL-Ranges\": [{\"Timeline\": 0, \"Start-LSN\": \"0/1\", \"End-LSN\": \"0/2\"}]"
                .to_string(),
        ] {
            let error = Manifest::parse(&with_body(&body)).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{body}");
        }
    }

    #[test]
    fn the_callers_error_and_the_readers_error_come_through() {
        let bytes = write(&small());
        let refuse = &mut |_| Err(Error::new(Kind::Full, "no room"));
        assert_eq!(
            Manifest::read(&bytes[..], refuse).unwrap_err().kind(),
            Kind::Full
        );

        let broken = std::io::Error::from(Error::new(Kind::Transient, "reset"));
        struct Fails(Option<std::io::Error>);
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                self.0.take().map_or(Ok(0), Err)
            }
        }
        let input = std::io::BufReader::new((&bytes[..100]).chain(Fails(Some(broken))));
        let error = Manifest::read(input, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), Kind::Transient);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = std::io::BufReader::new(std::io::repeat(b' '));
        let error = Manifest::read(endless, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
