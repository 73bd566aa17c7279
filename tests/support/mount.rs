//! A mounted file system, unmounted when dropped. Mounting needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, give_to_postgres, run};

/// Where something is mounted. Declare it after the `Scratch` it lies in, so that it goes first.
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts `what` with these words of mount(8) on a new directory under the scratch one, and gives it to postgres.
    pub fn new(scratch: &Scratch, name: &str, words: &[&str], what: &Path) -> Mount {
        let path = scratch.dir(name);
        run(Command::new("mount").args(words).arg(what).arg(&path));
        let mounted = Mount { path };
        give_to_postgres(&mounted.path, 0o700);
        mounted
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazy: a process of the test may still stand in it.
        let status = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
        if !status.is_ok_and(|s| s.success()) {
            eprintln!("could not unmount {}", self.path.display());
        }
    }
}
