//! A fully connected layer: out = input x weights^T + bias, over weights packed once.
//!
//! Weights are cut into panels as wide as a register tile, each one contiguous in the order the tile
//! reads it. The product goes by depths of [`DEPTH_BLOCK`] and blocks of [`ROW_BLOCK`] rows, so that
//! a panel's piece stays in the first-level cache while all rows of the block pass over it, and the
//! block's inputs stay in the second.
//!
//! Invariant: a row of the output depends on its row of the input alone, bit for bit.

#![allow(unsafe_code)]

use super::buffer::AlignedBuffer;
use super::lanes::{Kernel, Lanes};
use super::tile::{Finish, Start, Tile, even_tiles};

/// Depth of a piece of a panel: 384 rows of 16 floats are 24 KiB of a first-level cache of 32.
const DEPTH_BLOCK: usize = 384;
/// Rows of a block: 96 rows of 384 floats are 144 KiB of a second-level cache of 512 or more.
/// A multiple of every [`Lanes::TILE_ROWS`].
const ROW_BLOCK: usize = 96;

/// The weights of one layer, packed for one panel width.
pub(crate) struct PackedLinear {
    inputs: usize,
    outputs: usize,
    panel_width: usize,
    /// `[outputs / panel_width][inputs][panel_width]`
    panels: AlignedBuffer,
    bias: AlignedBuffer,
}

impl PackedLinear {
    /// Packs `weights` (`[outputs][inputs]`, row-major) with `bias` (`[outputs]`).
    ///
    /// `outputs` must be a multiple of `panel_width`; the caller has checked the model's shape.
    pub(crate) fn pack(weights: &[f32], bias: &[f32], panel_width: usize) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs.max(1);
        assert!(outputs.is_multiple_of(panel_width) && weights.len() == inputs * outputs);
        let mut panels = AlignedBuffer::zeroed(weights.len());
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let panel = (output / panel_width) * inputs * panel_width + output % panel_width;
            for (input, weight) in row.iter().enumerate() {
                panels[panel + input * panel_width] = *weight;
            }
        }
        Self {
            inputs,
            outputs,
            panel_width,
            panels,
            bias: AlignedBuffer::copy_of(bias),
        }
    }
}

/// One product: `rows` rows of `input`, both sides row-major and dense.
pub(crate) struct Linear<'a> {
    pub(crate) layer: &'a PackedLinear,
    pub(crate) input: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) finish: Finish,
}

impl Kernel for Linear<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(mut self) {
        assert_eq!(self.layer.panel_width, V::PANEL_WIDTH);
        assert!(self.input.len() >= self.rows * self.layer.inputs);
        assert!(self.out.len() >= self.rows * self.layer.outputs);
        for first_row in (0..self.rows).step_by(ROW_BLOCK) {
            let rows = ROW_BLOCK.min(self.rows - first_row);
            for first_input in (0..self.layer.inputs).step_by(DEPTH_BLOCK) {
                // SAFETY: the caller vouches for the instruction set; the lengths were checked above
                // and both ranges lie inside them.
                unsafe { self.run_block::<V>(first_row, rows, first_input) }
            }
        }
    }
}

impl Linear<'_> {
    /// Adds the products of one depth block to one block of rows.
    ///
    /// # Safety
    /// The processor must have the instruction set of `V`, and the rows and inputs must exist.
    #[inline(always)]
    unsafe fn run_block<V: Lanes>(&mut self, first_row: usize, rows: usize, first_input: usize) {
        let layer = self.layer;
        let depth = DEPTH_BLOCK.min(layer.inputs - first_input);
        let is_last = first_input + depth == layer.inputs;
        for panel in 0..layer.outputs / V::PANEL_WIDTH {
            let column = panel * V::PANEL_WIDTH;
            for (tile_row, tile_rows) in even_tiles(rows, V::TILE_ROWS) {
                let row = first_row + tile_row;
                // SAFETY: row, column and first_input lie inside the slices whose lengths `run`
                // checked; a panel holds `inputs` rows of PANEL_WIDTH floats.
                unsafe {
                    Tile {
                        a: self.input.as_ptr().add(row * layer.inputs + first_input),
                        a_stride: layer.inputs,
                        b: (layer.panels.as_ptr())
                            .add(column * layer.inputs + first_input * V::PANEL_WIDTH),
                        b_stride: V::PANEL_WIDTH,
                        depth,
                        out: self.out.as_mut_ptr().add(row * layer.outputs + column),
                        out_stride: layer.outputs,
                        start: if first_input == 0 {
                            Start::Bias(layer.bias.as_ptr().add(column))
                        } else {
                            Start::Output
                        },
                        finish: if is_last { self.finish } else { Finish::Store },
                    }
                    .compute::<V>(tile_rows);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::super::testing::Noise;
    use super::*;

    fn product(backend: Backend, shape: (usize, usize, usize), finish: Finish) -> (f64, Vec<f32>) {
        let (rows, inputs, outputs) = shape;
        let mut noise = Noise::new(7);
        let input = noise.floats(rows * inputs);
        let weights = noise.floats(inputs * outputs);
        let bias = noise.floats(outputs);
        let layer = PackedLinear::pack(&weights, &bias, backend.panel_width());
        let mut out = vec![f32::NAN; rows * outputs];
        let kernel = Linear {
            layer: &layer,
            input: &input,
            rows,
            out: &mut out,
            finish,
        };
        backend.run(kernel);
        let mut worst = 0.0_f64;
        for row in 0..rows {
            for column in 0..outputs {
                let mut sum = f64::from(bias[column]);
                for i in 0..inputs {
                    sum += f64::from(input[row * inputs + i])
                        * f64::from(weights[column * inputs + i]);
                }
                if finish == Finish::Gelu {
                    // The logistic form is within 2e-2 of GELU: this only tells the two apart.
                    let rough = sum / (1.0 + (-1.702 * sum).exp());
                    assert!((f64::from(out[row * outputs + column]) - rough).abs() < 2.1e-2);
                } else {
                    worst = worst.max((f64::from(out[row * outputs + column]) - sum).abs());
                }
            }
        }
        (worst, out)
    }

    #[test]
    fn it_equals_the_product_in_f64() {
        for backend in Backend::available() {
            for rows in [1, 2, 5, 6, 7, 13, 96, 97, 111] {
                for (inputs, outputs) in [(384, 64), (1536, 32), (400, 96)] {
                    let (error, _) = product(backend, (rows, inputs, outputs), Finish::Store);
                    assert!(
                        error < 1e-4,
                        "{backend:?} {rows}x{inputs}x{outputs}: {error:e}"
                    );
                }
            }
            product(backend, (7, 384, 64), Finish::Gelu);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        for backend in Backend::available() {
            let mut noise = Noise::new(8);
            let (inputs, outputs, rows) = (1536, 64, 110);
            let input = noise.floats(rows * inputs);
            let weights = noise.floats(inputs * outputs);
            let bias = noise.floats(outputs);
            let layer = PackedLinear::pack(&weights, &bias, backend.panel_width());
            let run = |input: &[f32], rows: usize| {
                let mut out = vec![0.0; rows * outputs];
                backend.run(Linear {
                    layer: &layer,
                    input,
                    rows,
                    out: &mut out,
                    finish: Finish::Gelu,
                });
                out
            };
            let together = run(&input, rows);
            for row in [0, 1, 50, 95, 96, 109] {
                let alone = run(&input[row * inputs..(row + 1) * inputs], 1);
                let same = together[row * outputs..(row + 1) * outputs] == alone[..];
                assert!(same, "{backend:?} row {row}");
            }
        }
    }
}
