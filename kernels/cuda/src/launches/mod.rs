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
pub use rows::{EmbedLaunch, NormaliseLaunch, RowWidth};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::{Address, SHARED_BYTES_MAX};

    const AT: Address = Address(1 << 20);

    fn nearest(k: usize) -> [usize; 2] {
        let launches = NearestLaunch {
            queries: 64,
            rows: 64,
            depth: 32,
            k,
            parts: NearestParts::choose(64, 64, 1),
            query_data: AT,
            row_data: AT,
            live: AT,
            part_scores: AT,
            part_lists: AT,
            best_scores: AT,
            best_rows: AT,
        }
        .launches();
        launches.map(|launch| launch.shared_bytes)
    }

    fn linear(tile: TileShape) -> usize {
        let launch = LinearLaunch {
            rows: 1,
            inputs: 32,
            outputs: 128,
            input: AT,
            weights: AT,
            bias: AT,
            out: AT,
            finish: Finish::Plain,
            tile,
        };
        launch.launch().shared_bytes
    }

    fn attention(head_size: usize) -> usize {
        let launch = AttentionLaunch {
            heads: 1,
            head_size,
            tile_count: 1,
            packed: AT,
            starts: AT,
            tiles: AT,
            out: AT,
        };
        launch.launch().shared_bytes
    }

    fn pooling(width: usize) -> usize {
        let launch = PoolLaunch {
            texts: 1,
            width,
            dimensions: width,
            pooling: Pooling::Mean,
            rows: AT,
            starts: AT,
            out: AT,
        };
        launch.launch().shared_bytes
    }

    /// The nearest 128 rows once needed 114 KB, which devices of 8.6, 8.9 and 12.0 refuse.
    #[test]
    fn every_launch_fits_every_device() {
        let mut all = vec![
            linear(TileShape::Narrow),
            linear(TileShape::Wide),
            attention(32),
            attention(64),
        ];
        all.extend((1..=K_MAX).flat_map(nearest));
        all.extend((8..=2048).step_by(8).map(pooling));
        for shared_bytes in all {
            assert!(shared_bytes <= SHARED_BYTES_MAX, "{shared_bytes}");
        }
    }
}
