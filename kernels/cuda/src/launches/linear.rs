//! A fully connected layer over ragged rows, with what follows it computed in the same kernel.
//!
//! Invariant: a row's result is the same bits in either tile shape, since both add along the depth in
//! the same order.

use crate::launch::{Address, Argument, Launch, blocks};

/// Numbers of the depth that a stage holds.
const DEPTH_STEP: usize = 32;
const STAGES: usize = 4;

/// What is done to a sum before it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Only the bias is added.
    Plain,
    /// Bias, then GELU in its exact form.
    Gelu,
    /// Bias and the residual, which may be where the output goes.
    Residual(Address),
}

/// Rows and outputs of a block's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileShape {
    /// 128 x 128 with 256 threads.
    Wide,
    /// 64 x 64 with 128 threads.
    Narrow,
}

impl TileShape {
    /// The wide shape moves half the bytes a product; the narrow one has four times the blocks. The
    /// wide one is worth it once its blocks occupy every multiprocessor.
    pub fn choose(rows: usize, outputs: usize, multiprocessors: usize) -> Self {
        let wide = Self::Wide.side();
        let blocks = rows.div_ceil(wide) * (outputs / wide);
        if outputs.is_multiple_of(wide) && blocks >= multiprocessors {
            Self::Wide
        } else {
            Self::Narrow
        }
    }

    fn side(self) -> usize {
        match self {
            Self::Wide => 128,
            Self::Narrow => 64,
        }
    }

    fn threads(self) -> u32 {
        match self {
            Self::Wide => 256,
            Self::Narrow => 128,
        }
    }

    /// Both operands' stages, two bytes a number.
    fn shared_bytes(self) -> usize {
        STAGES * 2 * self.side() * DEPTH_STEP * 2
    }
}

/// `out = finish(input x weights^T + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct LinearLaunch {
    /// Rows of input and output.
    pub rows: usize,
    /// Numbers in a row of input; a multiple of 32.
    pub inputs: usize,
    /// Numbers in a row of output; a multiple of 64, and of 128 in the wide shape.
    pub outputs: usize,
    /// fp16 rows.
    pub input: Address,
    /// fp16, `[outputs][inputs]`.
    pub weights: Address,
    /// fp16, a number an output.
    pub bias: Address,
    /// fp16 rows; must not be the input.
    pub out: Address,
    /// What is done to the sums.
    pub finish: Finish,
    /// The tiles.
    pub tile: TileShape,
}

impl LinearLaunch {
    /// As a launch.
    ///
    /// # Panics
    /// When the sizes are not multiples of the tile's.
    pub fn launch(&self) -> Launch {
        let side = self.tile.side();
        assert!(self.inputs.is_multiple_of(DEPTH_STEP) && self.outputs.is_multiple_of(side));
        let (residual, kernel) = match (self.finish, self.tile) {
            (Finish::Plain, TileShape::Wide) => (Address::NULL, "linear_128"),
            (Finish::Plain, TileShape::Narrow) => (Address::NULL, "linear_64"),
            (Finish::Gelu, TileShape::Wide) => (Address::NULL, "linear_gelu_128"),
            (Finish::Gelu, TileShape::Narrow) => (Address::NULL, "linear_gelu_64"),
            (Finish::Residual(rows), TileShape::Wide) => (rows, "linear_residual_128"),
            (Finish::Residual(rows), TileShape::Narrow) => (rows, "linear_residual_64"),
        };
        Launch {
            kernel,
            grid: [blocks(self.outputs, side), blocks(self.rows, side)],
            threads: self.tile.threads(),
            shared_bytes: self.tile.shared_bytes(),
            arguments: vec![
                self.input.into(),
                self.weights.into(),
                self.bias.into(),
                residual.into(),
                self.out.into(),
                Argument::count(self.rows),
                Argument::count(self.outputs),
                Argument::count(self.inputs),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Memory, Noise, assert_close, assert_sites_are_needed, gelu_reference, run, run_on_schedules,
    };
    use half::f16;

    struct Case {
        sizes: [usize; 3],
        input: Vec<f16>,
        weights: Vec<f16>,
        bias: Vec<f16>,
        residual: Vec<f16>,
    }

    impl Case {
        fn new(rows: usize, inputs: usize, outputs: usize) -> Self {
            let mut noise = Noise::new((rows * inputs + outputs) as u64);
            Self {
                sizes: [rows, inputs, outputs],
                input: noise.halves(rows * inputs, 2.0),
                weights: noise.halves(outputs * inputs, 0.2),
                bias: noise.halves(outputs, 1.0),
                residual: noise.halves(rows * outputs, 2.0),
            }
        }

        fn expected(&self, finish: Finish) -> Vec<f64> {
            let [rows, inputs, outputs] = self.sizes;
            let sum = |row: usize, output: usize| {
                let input = &self.input[row * inputs..][..inputs];
                let weights = &self.weights[output * inputs..][..inputs];
                let products = input
                    .iter()
                    .zip(weights)
                    .map(|(x, w)| x.to_f64() * w.to_f64());
                products.sum::<f64>() + self.bias[output].to_f64()
            };
            (0..rows * outputs)
                .map(|at| match finish {
                    Finish::Plain => sum(at / outputs, at % outputs),
                    Finish::Gelu => gelu_reference(sum(at / outputs, at % outputs)),
                    Finish::Residual(_) => {
                        sum(at / outputs, at % outputs) + self.residual[at].to_f64()
                    }
                })
                .collect()
        }
    }

    /// The case's memory and the launch on it; the output is the residual's place for that finish.
    struct Placed {
        launch: LinearLaunch,
        out: Memory,
        _inputs: [Memory; 3],
    }

    fn place(case: &Case, kind: Finish, tile: TileShape) -> Placed {
        let [rows, inputs, outputs] = case.sizes;
        let memory = [
            Memory::of(&case.input),
            Memory::of(&case.weights),
            Memory::of(&case.bias),
        ];
        let (out, finish) = match kind {
            Finish::Residual(_) => {
                let out = Memory::of(&case.residual);
                let finish = Finish::Residual(out.address());
                (out, finish)
            }
            other => (Memory::poisoned::<f16>(rows * outputs), other),
        };
        let launch = LinearLaunch {
            rows,
            inputs,
            outputs,
            input: memory[0].address(),
            weights: memory[1].address(),
            bias: memory[2].address(),
            out: out.address(),
            finish,
            tile,
        };
        Placed {
            launch,
            out,
            _inputs: memory,
        }
    }

    const FINISHES: [Finish; 3] = [Finish::Plain, Finish::Gelu, Finish::Residual(Address::NULL)];
    const TOLERANCE: f64 = 3e-3;

    #[test]
    fn it_equals_the_product_in_f64() {
        for tile in [TileShape::Narrow, TileShape::Wide] {
            for (rows, inputs, outputs) in [(1, 32, 128), (63, 96, 128), (130, 384, 256)] {
                let case = Case::new(rows, inputs, outputs);
                for finish in FINISHES {
                    let placed = place(&case, finish, tile);
                    let launch = placed.launch.launch();
                    let expected = case.expected(finish);
                    run_on_schedules(&launch, &placed.out, || {
                        assert_close(&placed.out.read::<f16>(), &expected, TOLERANCE);
                    });
                }
            }
        }
    }

    #[test]
    fn a_deep_product_of_a_layer() {
        let case = Case::new(70, 1536, 384);
        let placed = place(&case, Finish::Residual(Address::NULL), TileShape::Narrow);
        run(&placed.launch.launch(), 1).unwrap();
        let expected = case.expected(Finish::Residual(Address::NULL));
        assert_close(&placed.out.read::<f16>(), &expected, 6e-3);
    }

    #[test]
    fn a_row_is_the_same_bits_in_any_batch_and_tile() {
        let case = Case::new(129, 384, 128);
        let results: Vec<Vec<f16>> = [TileShape::Narrow, TileShape::Wide]
            .map(|tile| {
                let placed = place(&case, Finish::Gelu, tile);
                run(&placed.launch.launch(), 3).unwrap();
                placed.out.read()
            })
            .into();
        assert_eq!(results[0], results[1]);
        let placed = place(&case, Finish::Gelu, TileShape::Narrow);
        let alone = LinearLaunch {
            rows: 1,
            input: placed.launch.input.offset(77 * 384 * 2),
            ..placed.launch
        };
        run(&alone.launch(), 4).unwrap();
        assert_eq!(
            placed.out.read::<f16>()[..128],
            results[0][77 * 128..78 * 128]
        );
    }

    #[test]
    fn every_barrier_is_needed() {
        // Thirteen steps: the last one's stage is the first, where the finished tile goes.
        let case = Case::new(64, 416, 64);
        let expected = case.expected(Finish::Residual(Address::NULL));
        assert_sites_are_needed(|skipped, seed| {
            let placed = place(&case, Finish::Residual(Address::NULL), TileShape::Narrow);
            let launch = placed.launch.launch();
            let sites = crate::testing::run_without(&launch, seed, skipped)?;
            crate::testing::compare(&placed.out.read::<f16>(), &expected, TOLERANCE)?;
            Ok(sites)
        });
    }

    #[test]
    fn tiles_are_wide_once_they_fill_the_device() {
        assert_eq!(TileShape::choose(16, 1152, 132), TileShape::Narrow);
        assert_eq!(TileShape::choose(8192, 384, 132), TileShape::Wide);
        assert_eq!(TileShape::choose(8192, 64, 132), TileShape::Narrow);
    }
}
