//! A file system of a few MiB, to be filled up. Mounting needs root; it is unmounted when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, give_to_postgres, run};

/// A mounted tmpfs. Declare it after the `Scratch` it lies in, so that it goes first.
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts a file system of that size under the scratch directory.
    pub fn mount(scratch: &Scratch, name: &str, bytes: u64) -> Tmpfs {
        let path = scratch.dir(name);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={bytes},mode=0700"))
            .arg("seawall-test")
            .arg(&path));
        let mounted = Tmpfs { path };
        give_to_postgres(&mounted.path, 0o700);
        mounted
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it now, as if somebody forgot to mount it: the empty directory below stays.
    pub fn unmount(self) {}
}

impl Drop for Tmpfs {
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
