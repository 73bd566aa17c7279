//! A file system of a few MiB, to be filled up.

use std::path::Path;

use super::Scratch;
use super::mount::Mount;

/// A mounted tmpfs.
pub struct Tmpfs(Mount);

impl Tmpfs {
    /// Mounts a file system of that size under the scratch directory.
    pub fn mount(scratch: &Scratch, name: &str, bytes: u64) -> Tmpfs {
        let size = format!("size={bytes},mode=0700");
        let words = ["-t", "tmpfs", "-o", &size];
        Tmpfs(Mount::new(scratch, name, &words, Path::new("seawall-test")))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Unmounts it now, as if somebody forgot to mount it: the empty directory below stays.
    pub fn unmount(self) {}
}
