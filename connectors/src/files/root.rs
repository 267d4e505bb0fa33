//! Where the configured path leads.
//!
//! What lies behind a path may be exchanged without a word: a volume is unmounted, and its place is
//! an empty folder that can be read like any other; a link is flipped to another release.
//!
//! Invariant: what a folder shows counts only while the path leads to it and it is on the device that
//! it was on before.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// The folder that a path leads to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Root {
    /// As it is configured, with its links.
    configured: PathBuf,
    /// Without symbolic links.
    resolved: PathBuf,
    /// The device that the folder is on, where the operating system tells it.
    device: Option<u64>,
}

impl Root {
    /// Follows a path.
    ///
    /// # Errors
    /// When it leads to no folder that can be read.
    pub(crate) fn resolve(configured: PathBuf) -> io::Result<Self> {
        let resolved = configured.canonicalize()?;
        // Reading it comes first: what is mounted when it is needed is mounted by that.
        drop(fs::read_dir(&resolved)?);
        let device = device_of(&fs::metadata(&resolved)?);
        Ok(Self {
            configured,
            resolved,
            device,
        })
    }

    /// Where the path leads now, if that is elsewhere.
    ///
    /// # Errors
    /// When it leads to no folder that can be read, or to the same one on another device.
    pub(crate) fn look_again(&self) -> io::Result<Option<Self>> {
        let now = Self::resolve(self.configured.clone())?;
        if now.resolved != self.resolved {
            return Ok(Some(now));
        }
        if now.device != self.device {
            let fact = "it is on another device than before";
            return Err(io::Error::other(fact));
        }
        Ok(None)
    }

    /// The folder, without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.resolved
    }

    /// As the configuration names it.
    pub(crate) fn configured(&self) -> &Path {
        &self.configured
    }
}

#[cfg(unix)]
fn device_of(metadata: &Metadata) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Some(metadata.dev())
}

#[cfg(not(unix))]
fn device_of(_: &Metadata) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_device_in_the_same_place_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::resolve(folder.path().to_owned()).unwrap();
        assert_eq!(root.look_again().unwrap(), None);
        let before = Root {
            device: root.device.map(|device| device + 1),
            ..root
        };
        assert_eq!(before.look_again().is_err(), cfg!(unix));
    }
}
