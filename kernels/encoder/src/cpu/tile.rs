//! The register tile: the one inner loop behind every matrix product.
//!
//! Invariant: each output is `start + a[0] b[0] + a[1] b[1] + ...`, added in this order whatever the
//! number of rows in the tile, so that a row's result never depends on its neighbours.

#![allow(unsafe_code)]

use super::functions::gelu;
use super::lanes::Lanes;

/// What a tile's sums start from.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// The bias of each column; points at `PANEL_WIDTH` floats.
    Bias(*const f32),
    /// Zero.
    Zero,
    /// What the output already holds: the sums over earlier depths.
    Output,
}

/// What happens to a finished sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// Nothing.
    Store,
    /// GELU.
    Gelu,
}

/// Pointers and strides (in floats) of one tile: `PANEL_WIDTH` columns wide, `depth` deep.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// First row's first input.
    pub(crate) a: *const f32,
    /// From one row of `a` to the next.
    pub(crate) a_stride: usize,
    /// First row of the panel.
    pub(crate) b: *const f32,
    /// From one row of the panel to the next.
    pub(crate) b_stride: usize,
    /// Products a sum.
    pub(crate) depth: usize,
    /// First row's first output.
    pub(crate) out: *mut f32,
    /// From one row of `out` to the next.
    pub(crate) out_stride: usize,
    /// Where sums begin.
    pub(crate) start: Start,
    /// How they end.
    pub(crate) finish: Finish,
}

impl Tile {
    /// Computes a tile of `rows` rows, at most [`Lanes::TILE_ROWS`].
    ///
    /// # Safety
    /// The processor must have the instruction set of `V`; `a` must be valid for `rows` rows of
    /// `depth` floats, `b` for `depth` rows and `out` for `rows` rows of `PANEL_WIDTH` floats.
    #[inline(always)]
    pub(crate) unsafe fn compute<V: Lanes>(self, rows: usize) {
        debug_assert!(rows <= V::TILE_ROWS);
        // SAFETY: this function's contract. The guards are constants of `V`: tiles that it never
        // uses are not compiled.
        unsafe {
            match rows {
                1 => self.compute_rows::<V, 1>(),
                2 => self.compute_rows::<V, 2>(),
                3 if V::TILE_ROWS >= 3 => self.compute_rows::<V, 3>(),
                4 if V::TILE_ROWS >= 4 => self.compute_rows::<V, 4>(),
                5 if V::TILE_ROWS >= 5 => self.compute_rows::<V, 5>(),
                6 if V::TILE_ROWS >= 6 => self.compute_rows::<V, 6>(),
                7 if V::TILE_ROWS >= 7 => self.compute_rows::<V, 7>(),
                8 if V::TILE_ROWS >= 8 => self.compute_rows::<V, 8>(),
                9 if V::TILE_ROWS >= 9 => self.compute_rows::<V, 9>(),
                10 if V::TILE_ROWS >= 10 => self.compute_rows::<V, 10>(),
                11 if V::TILE_ROWS >= 11 => self.compute_rows::<V, 11>(),
                12 if V::TILE_ROWS >= 12 => self.compute_rows::<V, 12>(),
                _ => {}
            }
        }
    }

    /// # Safety
    /// As for [`Tile::compute`].
    #[inline(always)]
    unsafe fn compute_rows<V: Lanes, const ROWS: usize>(self) {
        // SAFETY: every pointer is one that the contract covers: row < ROWS, position < depth, and
        // two vectors are PANEL_WIDTH floats.
        unsafe {
            let mut sums = self.starting_sums::<V, ROWS>();
            // Pointers move by wrapping steps: a checked addition here would cost a branch for each
            // product, and a step past the last row is never followed.
            let rows: [usize; ROWS] = std::array::from_fn(|row| row.wrapping_mul(self.a_stride));
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.depth {
                let left = V::load(b);
                let right = V::load(b.wrapping_add(V::WIDTH));
                for (row, sum) in rows.iter().zip(&mut sums) {
                    let value = V::splat(*a.wrapping_add(*row));
                    sum[0] = value.mul_add(left, sum[0]);
                    sum[1] = value.mul_add(right, sum[1]);
                }
                a = a.wrapping_add(1);
                b = b.wrapping_add(self.b_stride);
            }
            for (row, sum) in sums.into_iter().enumerate() {
                let out = self.out.wrapping_add(row.wrapping_mul(self.out_stride));
                let [left, right] = match self.finish {
                    Finish::Store => sum,
                    Finish::Gelu => [gelu(sum[0]), gelu(sum[1])],
                };
                left.store(out);
                right.store(out.add(V::WIDTH));
            }
        }
    }

    /// # Safety
    /// As for [`Tile::compute`].
    #[inline(always)]
    unsafe fn starting_sums<V: Lanes, const ROWS: usize>(&self) -> [[V; 2]; ROWS] {
        // SAFETY: as for `compute_rows`; a bias has PANEL_WIDTH floats.
        unsafe {
            match self.start {
                Start::Zero => [[V::splat(0.0); 2]; ROWS],
                Start::Bias(bias) => [[V::load(bias), V::load(bias.add(V::WIDTH))]; ROWS],
                Start::Output => std::array::from_fn(|row| {
                    let out = self.out.add(row * self.out_stride);
                    [V::load(out), V::load(out.add(V::WIDTH))]
                }),
            }
        }
    }
}

/// Cuts `rows` rows into the fewest tiles of at most `tile_rows`, as even as can be: 14 rows become
/// 5, 5 and 4, not 6, 6 and 2, because a short tile wastes most of the multipliers.
#[inline(always)]
pub(crate) fn even_tiles(rows: usize, tile_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(tile_rows);
    let mut first = 0;
    (1..=tiles).map(move |tile| {
        let end = rows * tile / tiles;
        let count = end - first;
        let tile = (first, count);
        first = end;
        tile
    })
}

#[cfg(test)]
mod tests {
    use super::even_tiles;

    #[test]
    fn tiles_cover_all_rows_evenly() {
        for tile_rows in [2, 6, 12] {
            for rows in 0..200 {
                let tiles: Vec<_> = even_tiles(rows, tile_rows).collect();
                let mut next = 0;
                for (first, count) in &tiles {
                    assert_eq!(*first, next);
                    assert!((1..=tile_rows).contains(count));
                    next += count;
                }
                assert_eq!(next, rows);
                let counts = tiles.iter().map(|tile| tile.1);
                assert!(counts.clone().max().unwrap_or(0) <= counts.min().unwrap_or(0) + 1);
            }
        }
    }
}
