//! A disk that is small enough to be filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, unmounted at the end.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// One of so many bytes; `None` where this user may not mount.
    pub fn mount(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(at).unwrap_or_else(|error| panic!("{at:?}: {error}"));
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(at)
            .output();
        mounted
            .is_ok_and(|it| it.status.success())
            .then(|| Self(at.into()))
    }

    /// Gives it another size.
    pub fn grow(&self, bytes: u64) {
        let option = format!("remount,size={bytes}");
        let grown = Command::new("mount")
            .args(["-o", &option])
            .arg(&self.0)
            .status();
        assert!(grown.is_ok_and(|it| it.success()), "no other size");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still uses it ends with the test.
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}
