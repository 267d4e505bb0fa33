//! A fully connected layer in bfloat16 on AVX-512: products of 16-bit floats, summed in 32 bits.
//!
//! Weights are packed in panels of [`PANEL_WIDTH`] columns, each row of a panel one pair of inputs
//! deep ([`super::bf16_tile`]), and a block of input rows is rounded to pairs just before its
//! products. Bias, GELU and the output stay in 32 bits.
//!
//! Invariant: a row of the output depends on its row of the input alone, bit for bit; nothing here
//! runs unless the processor was asked for the instruction.

#![allow(unsafe_code)]

use super::amx::{PairUnit, Session};
use super::bf16_tile::{PANEL_WIDTH, Pair, PairTile, is_available, round};
use super::buffer::AlignedBuffer;
use super::tile::{Finish, Start};
use half::bf16;

/// Pairs of a piece of a panel, a multiple of every unit's step: 192 rows of 32 pairs are 24 KiB of a first-level cache of 32 or more.
const PAIRS_BLOCK: usize = 192;
/// Rows of a block: 96 rows of 768 pairs are 288 KiB of a second-level cache of 1 MiB or more.
const ROW_BLOCK: usize = 96;

/// The weights of one layer, rounded and packed.
pub(crate) struct PackedBf16 {
    /// Pairs of inputs.
    pairs: usize,
    outputs: usize,
    /// `[outputs / PANEL_WIDTH][pairs][PANEL_WIDTH]`
    panels: AlignedBuffer<Pair>,
    bias: AlignedBuffer,
}

impl PackedBf16 {
    /// Packs `weights` (`[outputs][inputs]`, row-major) with `bias` (`[outputs]`).
    ///
    /// Inputs and outputs must be multiples of 32; the caller has checked the model's shape.
    pub(crate) fn pack(weights: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs.max(1);
        assert!(outputs.is_multiple_of(PANEL_WIDTH) && inputs.is_multiple_of(32));
        assert_eq!(weights.len(), inputs * outputs);
        let pairs = inputs / 2;
        let mut panels = AlignedBuffer::zeroed(pairs * outputs);
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let panel = output / PANEL_WIDTH * pairs * PANEL_WIDTH + output % PANEL_WIDTH;
            for (pair, values) in row.as_chunks::<2>().0.iter().enumerate() {
                let [low, high] = values.map(|value| Pair::from(bf16::from_f32(value).to_bits()));
                panels[panel + pair * PANEL_WIDTH] = low | high << 16;
            }
        }
        Self {
            pairs,
            outputs,
            panels,
            bias: AlignedBuffer::copy_of(bias),
        }
    }
}

/// One product: `rows` rows of `input`, both sides row-major and dense.
pub(crate) struct Bf16Linear<'a> {
    pub(crate) unit: PairUnit,
    pub(crate) layer: &'a PackedBf16,
    pub(crate) input: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) finish: Finish,
    /// Holds a block of rounded input; reused.
    pub(crate) rounded: &'a mut AlignedBuffer<Pair>,
}

impl Bf16Linear<'_> {
    /// Computes it.
    ///
    /// # Panics
    /// When the processor lacks the instruction: running it would be undefined.
    pub(crate) fn run(mut self) {
        assert!(is_available(), "bfloat16 products are not available");
        let (pairs, outputs) = (self.layer.pairs, self.layer.outputs);
        assert!(self.input.len() >= self.rows * 2 * pairs);
        assert!(self.out.len() >= self.rows * outputs);
        // A unit reads whole tiles of rows.
        let rows = ROW_BLOCK.min(self.rows);
        let rows = rows.next_multiple_of(self.unit.tile_rows());
        self.rounded.grow(rows * pairs);
        let _session = Session::begin(self.unit);
        for first_row in (0..self.rows).step_by(ROW_BLOCK) {
            let rows = ROW_BLOCK.min(self.rows - first_row);
            // SAFETY: the instruction set has just been seen; the rows lie inside the slices whose
            // lengths were checked, and the scratch memory has room for a block of them.
            unsafe {
                round(
                    &self.input[first_row * 2 * pairs..][..rows * 2 * pairs],
                    self.rounded,
                );
                for first_pair in (0..pairs).step_by(PAIRS_BLOCK) {
                    self.run_piece(first_row, rows, first_pair);
                }
            }
        }
    }

    /// Adds the products of one piece of the depth to one block of rows.
    ///
    /// # Safety
    /// The processor must have the instruction set; rows and pairs must exist, and the rows must
    /// stand rounded in the scratch memory.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn run_piece(&mut self, first_row: usize, rows: usize, first_pair: usize) {
        let layer = self.layer;
        let depth = PAIRS_BLOCK.min(layer.pairs - first_pair);
        let is_last = first_pair + depth == layer.pairs;
        for column in (0..layer.outputs).step_by(PANEL_WIDTH) {
            for (row, tile_rows) in self.unit.tiles(rows) {
                // SAFETY: row, column and first_pair lie inside the memory that this function's
                // contract gives; a panel holds `pairs` rows of PANEL_WIDTH pairs.
                unsafe {
                    let out = self.out.as_mut_ptr();
                    PairTile {
                        input: self.rounded.as_ptr().add(row * layer.pairs + first_pair),
                        input_stride: layer.pairs,
                        panel: (layer.panels.as_ptr())
                            .add(column * layer.pairs + first_pair * PANEL_WIDTH),
                        depth,
                        out: out.add((first_row + row) * layer.outputs + column),
                        out_stride: layer.outputs,
                        start: match first_pair {
                            0 => Start::Bias(layer.bias.as_ptr().add(column)),
                            _ => Start::Output,
                        },
                        finish: if is_last { self.finish } else { Finish::Store },
                    }
                    .compute(self.unit, tile_rows);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Noise;
    use super::*;

    struct Case {
        inputs: usize,
        weights: Vec<f32>,
        bias: Vec<f32>,
        input: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, inputs: usize, outputs: usize) -> Self {
            let mut noise = Noise::new(11);
            Self {
                inputs,
                weights: noise.floats(inputs * outputs),
                bias: noise.floats(outputs),
                input: noise.floats(rows * inputs),
            }
        }

        /// The layer's output for some rows of the input.
        fn run(&self, unit: PairUnit, rows: std::ops::Range<usize>, finish: Finish) -> Vec<f32> {
            let layer = PackedBf16::pack(&self.weights, &self.bias);
            let mut out = vec![f32::NAN; rows.len() * self.bias.len()];
            Bf16Linear {
                unit,
                layer: &layer,
                input: &self.input[rows.start * self.inputs..rows.end * self.inputs],
                rows: rows.len(),
                out: &mut out,
                finish,
                rounded: &mut AlignedBuffer::default(),
            }
            .run();
            out
        }

        /// The product of the rounded values.
        fn expected(&self) -> Vec<f64> {
            let round = |value: &f32| f64::from(bf16::from_f32(*value).to_f32());
            let mut expected = Vec::new();
            for row in self.input.chunks_exact(self.inputs) {
                for (weights, bias) in self.weights.chunks_exact(self.inputs).zip(&self.bias) {
                    let products = row.iter().zip(weights).map(|(x, y)| round(x) * round(y));
                    expected.push(f64::from(*bias) + products.sum::<f64>());
                }
            }
            expected
        }
    }

    /// What can be run here, the emulated unit with it.
    fn units() -> Vec<PairUnit> {
        if !is_available() {
            println!("skipped: a layer in bfloat16: this processor has no such products");
            return Vec::new();
        }
        let mut units = vec![PairUnit::Vectors, PairUnit::EmulatedTiles, PairUnit::best()];
        units.dedup();
        units
    }

    /// Needs no such processor. Every weight is another bfloat16, so that none can stand in another's place.
    #[test]
    fn weights_lie_in_panels_of_pairs() {
        let (inputs, outputs) = (96, 64);
        // From 4.7e-10 on, and far from infinity.
        let bits = |output: usize, input: usize| 0x3000 + (output * inputs + input) as u32;
        let all = (0..outputs).flat_map(|output| (0..inputs).map(move |input| (output, input)));
        let weights = all.clone().map(|(o, i)| f32::from_bits(bits(o, i) << 16));
        let weights: Vec<f32> = weights.collect();
        let bias: Vec<f32> = (0..outputs).map(|output| output as f32).collect();
        let layer = PackedBf16::pack(&weights, &bias);
        assert_eq!((layer.pairs, layer.outputs), (inputs / 2, outputs));
        assert_eq!(layer.bias[..outputs], bias);
        for (output, input) in all {
            let (panel, column) = (output / PANEL_WIDTH, output % PANEL_WIDTH);
            let pair = layer.panels[(panel * layer.pairs + input / 2) * PANEL_WIDTH + column];
            let half = if input % 2 == 0 {
                pair & 0xFFFF
            } else {
                pair >> 16
            };
            assert_eq!(half, bits(output, input), "output {output}, input {input}");
        }
    }

    /// Ties go to the even neighbour, as the processor's own conversion has it.
    #[test]
    fn weights_are_rounded_to_the_nearest() {
        let mut weights = [0.0; 32 * 32];
        let cases = [
            (1.0, 0x3F80),
            (1.0 + 1.0 / 256.0, 0x3F80),
            (1.0 + 3.0 / 256.0, 0x3F82),
            (1.0 + 1.1 / 256.0, 0x3F81),
            (-2.0, 0xC000),
        ];
        for (weight, (value, _)) in weights.iter_mut().zip(cases) {
            *weight = value;
        }
        let layer = PackedBf16::pack(&weights, &[0.0; 32]);
        for (input, (value, bits)) in cases.into_iter().enumerate() {
            let pair = layer.panels[input / 2 * PANEL_WIDTH];
            let half = if input % 2 == 0 {
                pair & 0xFFFF
            } else {
                pair >> 16
            };
            assert_eq!(half, bits, "{value}");
        }
    }

    #[test]
    fn it_equals_the_product_of_rounded_values_in_f64() {
        for rows in [1, 2, 11, 12, 13, 16, 17, 31, 33, 96, 97, 111] {
            for (inputs, outputs) in [(384, 64), (1536, 32), (416, 96)] {
                let case = Case::new(rows, inputs, outputs);
                for unit in units() {
                    let out = case.run(unit, 0..rows, Finish::Store);
                    for (x, y) in out.iter().zip(case.expected()) {
                        let error = (f64::from(*x) - y).abs();
                        assert!(
                            error < 1e-4,
                            "{unit:?} {rows}x{inputs}x{outputs}: {error:e}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn gelu_is_applied_to_the_whole_sum() {
        let case = Case::new(7, 1536, 64);
        for unit in units() {
            let out = case.run(unit, 0..7, Finish::Gelu);
            for (x, sum) in out.iter().zip(case.expected()) {
                // The logistic form is within 2e-2 of GELU: this only tells the two apart.
                let rough = sum / (1.0 + (-1.702 * sum).exp());
                assert!((f64::from(*x) - rough).abs() < 2.1e-2, "{x} and {rough}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let case = Case::new(110, 1536, 64);
        for unit in units() {
            let together = case.run(unit, 0..110, Finish::Gelu);
            for row in [0, 1, 50, 95, 96, 109] {
                let alone = case.run(unit, row..row + 1, Finish::Gelu);
                assert!(together[row * 64..(row + 1) * 64] == alone[..], "row {row}");
            }
        }
    }
}
