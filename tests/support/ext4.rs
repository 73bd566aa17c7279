//! A file system in a file, and power loss: a copy of the file, made while it is mounted, has what reached the device
//! and nothing that only the page cache knew. It needs loop devices; one goes with the mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mount::Mount;
use super::{Scratch, is_root, run, unique};

/// Room for a spool, its journal included.
const BYTES: u64 = 48 << 20;

/// What is not synced stays off the device for longer than any test takes, and a rename brings nothing along.
const OPTIONS: &str = "loop,commit=600,noauto_da_alloc";

/// A mounted ext4.
pub struct Ext4 {
    image: PathBuf,
    mount: Mount,
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
        let name = format!("ext4-{}", unique());
        let mount = Mount::new(scratch, &name, &["-t", "ext4", "-o", OPTIONS], &image);
        Ext4 { image, mount }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// The file that it is in.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Makes everything in it durable.
    pub fn sync(&self) {
        run(Command::new("sync").arg("--file-system").arg(self.path()));
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
        let _ = fs::remove_file(&self.image);
    }
}
