//! How each kernel of `device/` is launched: grid, threads, shared memory and arguments.
//!
//! The numbers that a kernel fixes (tiles, threads, rows of a block) stand here once more, since a
//! binary does not tell them; the tests beside each launch run it on the emulator, against the
//! definition in f64, with memory that is poisoned before and watched behind.
//!
//! Invariant: no launch has a grid without blocks; callers have no work of size zero launched.

mod attention;
mod linear;
mod nearest;
mod pooling;
mod rows;

pub use attention::{AttentionLaunch, QUERIES_PER_TILE};
pub use linear::{Finish, LinearLaunch, TileShape};
pub use nearest::{K_MAX, NOTHING, NearestLaunch, NearestParts};
pub use pooling::{PoolLaunch, Pooling};
pub use rows::{EmbedLaunch, GeluLaunch, NormaliseLaunch, RowWidth};
