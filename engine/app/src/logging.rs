//! Log lines on standard error, chosen by the variable `VECTIDE_LOG` (`info`, `vectide_engine=debug`).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging at a level, unless `VECTIDE_LOG` says otherwise. The store tells a line for every
/// table it opens, which is of no use to anybody below `warn`.
pub fn start(level: &str) {
    let filter = EnvFilter::try_from_env("VECTIDE_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},fjall=warn,lsm_tree=warn")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
