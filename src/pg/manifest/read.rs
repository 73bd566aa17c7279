//! Reading a manifest: its JSON is parsed as a stream, so that memory does not grow with the number of files,
//! while every line but the last goes into the SHA-256 that the last one states.

use super::{FileChecksum, Manifest, ManifestFile, WalRange, damaged, hex, unhex};
use crate::error::{Error, Result, from_io};
use crate::limits::SMALL_FILE_BYTES_MAX;
use crate::pg::{SystemId, TimelineId, Timestamp};
use ring::digest;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

/// Reads to the end of `input` and verifies the checksum.
pub fn read(
    input: impl BufRead,
    each: &mut dyn FnMut(ManifestFile) -> Result<()>,
) -> Result<Manifest> {
    let mut lines = HashedLines::new(input);
    let stop = RefCell::new(None);
    let whole = {
        let mut json = serde_json::Deserializer::from_reader(&mut lines);
        let seed = Whole { each, stop: &stop };
        let parsed = seed
            .deserialize(&mut json)
            .and_then(|whole| json.end().map(|()| whole));
        parsed.map_err(|cause| stop.take().unwrap_or_else(|| json_error(cause)))?
    };
    let computed = lines.finish()?;
    let stated = whole
        .checksum
        .as_deref()
        .and_then(unhex)
        .ok_or_else(|| damaged("It has no checksum of its own."))?;
    if stated != computed {
        return Err(damaged(format!(
            "Its SHA-256 is {}, and it says {}.",
            hex(&computed),
            hex(&stated)
        )));
    }
    whole.manifest()
}

/// A JSON error is damage, unless the reader below failed.
fn json_error(cause: serde_json::Error) -> Error {
    match cause.is_io() {
        true => from_io("could not read the backup manifest", cause.into()),
        false => damaged(format!("It is no JSON of the expected form: {cause}.")),
    }
}

/// Passes bytes on, and hashes each line once another one follows it.
struct HashedLines<R> {
    input: R,
    digest: digest::Context,
    line: Vec<u8>,
    given: usize,
}

impl<R: BufRead> HashedLines<R> {
    fn new(input: R) -> HashedLines<R> {
        HashedLines {
            input,
            digest: digest::Context::new(&digest::SHA256),
            line: Vec::new(),
            given: 0,
        }
    }

    /// The SHA-256 of all lines but the last, which must be a whole line.
    fn finish(self) -> Result<Vec<u8>> {
        if !self.line.ends_with(b"\n") {
            return Err(damaged("It does not end with a line break."));
        }
        Ok(self.digest.finish().as_ref().to_vec())
    }

    /// Loads the next line; false at the end. A line holds one path, so a longer one is no manifest.
    fn advance(&mut self) -> io::Result<bool> {
        let mut next = Vec::new();
        self.input
            .by_ref()
            .take(SMALL_FILE_BYTES_MAX)
            .read_until(b'\n', &mut next)?;
        if next.is_empty() {
            return Ok(false);
        }
        if next.len() as u64 == SMALL_FILE_BYTES_MAX {
            return Err(damaged("It has a line of more than 1 MiB.").into());
        }
        self.digest.update(&self.line);
        (self.line, self.given) = (next, 0);
        Ok(true)
    }
}

impl<R: BufRead> Read for HashedLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.line.len() && !self.advance()? {
            return Ok(0);
        }
        let bytes = (&self.line[self.given..]).read(buffer)?;
        self.given += bytes;
        Ok(bytes)
    }
}

/// The members of the document, files apart.
#[derive(Default)]
struct Members {
    version: Option<u32>,
    system_id: Option<u64>,
    ranges: Option<Vec<RawRange>>,
    checksum: Option<String>,
    files: bool,
}

impl Members {
    fn manifest(self) -> Result<Manifest> {
        let version = self
            .version
            .ok_or_else(|| damaged("It does not say its version."))?;
        if !(1..=2).contains(&version) {
            return Err(damaged(format!(
                "Its version is {version}; versions 1 and 2 are known."
            )));
        }
        if version == 2 && self.system_id.is_none() {
            return Err(damaged("It does not say its system identifier."));
        }
        if !self.files {
            return Err(damaged("It has no list of files."));
        }
        let ranges = self
            .ranges
            .ok_or_else(|| damaged("It has no list of WAL ranges."))?;
        Ok(Manifest {
            version,
            system_id: self.system_id.map(SystemId),
            files: Vec::new(),
            wal_ranges: ranges
                .into_iter()
                .map(RawRange::checked)
                .collect::<Result<_>>()?,
        })
    }
}

/// Deserializes the document; `stop` keeps an error of ours, which serde cannot carry.
struct Whole<'a> {
    each: &'a mut dyn FnMut(ManifestFile) -> Result<()>,
    stop: &'a RefCell<Option<Error>>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Members;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<Members, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Members, A::Error> {
        let mut members = Members::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "PostgreSQL-Backup-Manifest-Version" => members.version = Some(map.next_value()?),
                "System-Identifier" => members.system_id = Some(map.next_value()?),
                "WAL-Ranges" => members.ranges = Some(map.next_value()?),
                "Manifest-Checksum" => members.checksum = Some(map.next_value()?),
                "Files" if members.files => return Err(A::Error::duplicate_field("Files")),
                "Files" => {
                    map.next_value_seed(Files {
                        each: &mut *self.each,
                        stop: self.stop,
                    })?;
                    members.files = true;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(members)
    }
}

/// The list of files, given on one by one.
struct Files<'a> {
    each: &'a mut dyn FnMut(ManifestFile) -> Result<()>,
    stop: &'a RefCell<Option<Error>>,
}

impl<'de> DeserializeSeed<'de> for Files<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(raw) = list.next_element::<RawFile>()? {
            if let Err(error) = raw.checked().and_then(&mut *self.each) {
                self.stop.replace(Some(error));
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

impl RawFile {
    fn checked(self) -> Result<ManifestFile> {
        let path = self.path()?;
        let bad = |what: &str| damaged(format!("Of \"{}\" it gives {what}.", path.display()));
        let checksum = match (&self.algorithm, &self.checksum) {
            (None, None) => Some(FileChecksum::None),
            (Some(algorithm), Some(digits)) => FileChecksum::parse(algorithm, digits),
            _ => None,
        };
        let checksum = checksum.ok_or_else(|| bad("no usable checksum"))?;
        let modified = self
            .modified
            .strip_suffix(" GMT")
            .and_then(|utc| Timestamp::parse_rfc3339(&format!("{utc}Z")).ok())
            .ok_or_else(|| bad("no usable time"))?;
        Ok(ManifestFile {
            path,
            size: self.size,
            modified,
            checksum,
        })
    }

    /// A relative path that stays inside the directory.
    fn path(&self) -> Result<PathBuf> {
        let path = match (&self.path, &self.encoded_path) {
            (Some(text), None) => PathBuf::from(text),
            (None, Some(digits)) => {
                let bytes = unhex(digits).ok_or_else(|| damaged("A path is not hexadecimal."))?;
                PathBuf::from(OsString::from_vec(bytes))
            }
            _ => return Err(damaged("A file has no path, or two.")),
        };
        let inside = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if path.as_os_str().is_empty() || !inside {
            return Err(damaged(format!(
                "\"{}\" leaves the data directory.",
                path.display()
            )));
        }
        Ok(path)
    }
}

#[derive(Deserialize)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl RawRange {
    fn checked(self) -> Result<WalRange> {
        let range = self.start.parse().ok().zip(self.end.parse().ok());
        let valid = range.filter(|(start, end)| self.timeline > 0 && start <= end);
        let (start, end) = valid.ok_or_else(|| damaged("One of its WAL ranges makes no sense."))?;
        Ok(WalRange {
            timeline: TimelineId(self.timeline),
            start,
            end,
        })
    }
}
