//! What this host remembers of a prefix: that it was initialised, and for which cluster. Losing it loses no
//! safety but one: a prefix whose identity object is gone can then no longer be told from a new one.

use crate::disk;
use crate::disk::durable::{NewFile, Publish};
use crate::error::{Error, Kind, Result};
use crate::pg::{SegmentSize, SystemId};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;

/// The per-prefix directory of the state directory.
#[derive(Clone, Debug)]
pub struct State {
    directory: Option<PathBuf>,
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The archive's location, for people who look into the directory.
    pub prefix: String,
    /// The cluster that the prefix belongs to, once it was initialised or seen.
    pub system_identifier: Option<SystemId>,
    /// Its segment size in bytes.
    pub segment_size: Option<u64>,
}

impl Memory {
    /// The segment size, if it is known and possible.
    pub fn segment_size(&self) -> Option<SegmentSize> {
        SegmentSize::new(self.segment_size?).ok()
    }
}

impl State {
    /// The memory in `directory`, which need not exist yet.
    pub fn in_directory(directory: PathBuf) -> State {
        State {
            directory: Some(directory),
        }
    }

    /// The memory in the first of these directories that has one; no memory if none has one that can be read.
    pub fn readable(directories: Vec<PathBuf>) -> State {
        let known = |state: &State| (state.file()).is_some_and(|f| disk::read_small(&f).is_ok());
        let states = directories.into_iter().map(State::in_directory);
        states.into_iter().find(known).unwrap_or(State::none())
    }

    /// No memory: every run is the first.
    pub fn none() -> State {
        State { directory: None }
    }

    /// Where files of this prefix lie.
    pub fn directory(&self) -> Option<&PathBuf> {
        self.directory.as_ref()
    }

    /// What is remembered; nothing if there is no file. A damaged file counts as nothing, with a warning.
    pub fn read(&self) -> Result<Memory> {
        let Some(path) = self.file() else {
            return Ok(Memory::default());
        };
        let bytes = match disk::read_small(&path) {
            Err(e) if e.kind() == Kind::Missing => return Ok(Memory::default()),
            other => other?,
        };
        serde_json::from_slice(&bytes).or_else(|cause| {
            log::warn!(
                "state file {} is damaged and is not used: {cause}",
                path.display()
            );
            Ok(Memory::default())
        })
    }

    /// Changes what is remembered. Failing to write is a warning: archiving must go on.
    pub fn update(&self, change: impl FnOnce(&mut Memory)) {
        let result = self.read().and_then(|before| {
            let mut after = before.clone();
            change(&mut after);
            if after == before {
                Ok(())
            } else {
                self.write(&after)
            }
        });
        if let Err(error) = result {
            log::warn!(
                "could not remember the state of the archive: {}",
                error.one_line()
            );
        }
    }

    fn write(&self, memory: &Memory) -> Result<()> {
        let Some(path) = self.file() else {
            return Ok(());
        };
        if let Some(directory) = &self.directory {
            disk::create_dirs(directory, 0o700)?;
        }
        let mut file = NewFile::create(&path, 0o600)?;
        file.write_all(&super::render_json(memory))
            .map_err(|e| Error::io(format!("could not write \"{}\"", path.display()), e))?;
        file.publish(Publish::Replace)
    }

    fn file(&self) -> Option<PathBuf> {
        self.directory
            .as_ref()
            .map(|directory| directory.join("archive.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_across_runs_and_survives_damage() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::in_directory(dir.path().join("deep/er"));
        assert_eq!(state.read().unwrap(), Memory::default());
        state.update(|m| m.system_identifier = Some(SystemId(u64::MAX)));
        state.update(|m| m.segment_size = Some(1 << 20));
        let memory = state.read().unwrap();
        assert_eq!(memory.system_identifier, Some(SystemId(u64::MAX)));
        assert_eq!(memory.segment_size(), SegmentSize::new(1 << 20).ok());

        std::fs::write(state.file().unwrap(), b"{").unwrap();
        assert_eq!(state.read().unwrap(), Memory::default());
    }

    #[test]
    fn memory_that_can_only_be_read_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, known) = (dir.path().join("empty"), dir.path().join("known"));
        State::in_directory(known.clone()).update(|m| m.prefix = "file:///a".into());
        let found = State::readable(vec![empty.clone(), known.clone()]);
        assert_eq!(found.directory(), Some(&known));
        assert_eq!(State::readable(vec![empty]).directory(), None);
    }
}
