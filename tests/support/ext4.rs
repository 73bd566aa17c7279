//! A file system in a file, and power loss: a copy of the file, made while it is mounted, has what reached the device
//! and nothing that only the page cache knew. Mounting needs root and loop devices; it is unmounted when dropped, and
//! the loop device goes with the mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, give_to_postgres, is_root, run, unique};

/// Room for a spool, its journal included.
const BYTES: u64 = 48 << 20;

/// What is not synced stays off the device for longer than any test takes, and a rename brings nothing along.
const OPTIONS: &str = "loop,commit=600,noauto_da_alloc";

/// A mounted ext4. Declare it after the `Scratch` it lies in, so that it goes first.
pub struct Ext4 {
    image: PathBuf,
    path: PathBuf,
}

impl Ext4 {
    /// Whether this machine can have one; says why not.
    pub fn is_possible() -> bool {
        let why = match Path::new("/dev/loop-control").exists() {
            _ if !is_root() => "mounting needs root",
            false => "there are no loop devices here: /dev/loop-control is absent",
            true => return true,
        };
        println!("skipped: {why}");
        false
    }

    /// Makes and mounts one under the scratch directory.
    pub fn make(scratch: &Scratch) -> Ext4 {
        let image = scratch.join(format!("ext4-{}.img", unique()));
        let file = fs::File::create(&image).expect("an image");
        file.set_len(BYTES).expect("a length");
        // Nothing is left for a thread of the kernel to do later.
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-J", "size=4", "-E"])
            .arg("lazy_itable_init=0,lazy_journal_init=0")
            .arg(&image));
        Ext4::mount(scratch, image)
    }

    fn mount(scratch: &Scratch, image: PathBuf) -> Ext4 {
        let path = scratch.dir(format!("ext4-{}", unique()));
        let mut mount = Command::new("mount");
        run(mount
            .args(["-t", "ext4", "-o", OPTIONS])
            .args([&image, &path]));
        let mounted = Ext4 { image, path };
        give_to_postgres(&mounted.path, 0o700);
        mounted
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that it is in.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Makes everything in it durable.
    pub fn sync(&self) {
        run(Command::new("sync").arg("--file-system").arg(&self.path));
    }

    /// What would be found if the power failed now, mounted. Who writes must have been stopped: a copy that is older at
    /// its beginning than at its end is what no disk leaves behind.
    pub fn after_power_loss(&self, scratch: &Scratch) -> Ext4 {
        let read = || fs::read(&self.image).expect("the image");
        let (mut copy, mut again) = (read(), read());
        // The kernel may have been writing.
        while copy != again {
            (copy, again) = (again, read());
        }
        let image = scratch.join(format!("ext4-{}.img", unique()));
        fs::write(&image, copy).expect("a copy");
        Ext4::mount(scratch, image)
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // Lazy: a process of the test may still stand in it.
        let status = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
        if !status.is_ok_and(|s| s.success()) {
            eprintln!("could not unmount {}", self.path.display());
        }
        let _ = fs::remove_file(&self.image);
    }
}
