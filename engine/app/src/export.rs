//! `vectide export`: the committed state as lines of JSON.

use crate::failure::Failure;
use crate::validate;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use vectide_engine::{ExportError, ExportKind};

/// Exports the state of a configuration to standard output.
///
/// # Errors
/// A bad configuration, or a state that is missing, in use or damaged.
pub fn export(config: &Path, kind: ExportKind) -> Result<(), Failure> {
    let loaded = validate::load(config)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = vectide_engine::export(&loaded.state_directory(), kind, &mut out)
        .and_then(|()| out.flush().map_err(ExportError::Output));
    match result {
        // The reader had enough: `vectide export ... | head`.
        Err(ExportError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
