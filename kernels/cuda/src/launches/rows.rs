//! What is done token by token: embeddings, layer normalisation.
//!
//! Invariant: a row's result depends on that row alone.

use crate::launch::{Address, Argument, Launch, blocks};

/// Rows of a block, one for each of its warps.
const ROWS_PER_BLOCK: usize = 8;
const THREADS: u32 = 256;

/// The widths of a token's vector that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowWidth {
    /// MiniLM, BGE-small, E5-small.
    W384,
    /// BGE-base, E5-base, BERT-base.
    W768,
    /// BGE-large, E5-large.
    W1024,
}

impl RowWidth {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::W384, Self::W768, Self::W1024];

    /// The width as a number.
    pub fn get(self) -> usize {
        match self {
            Self::W384 => 384,
            Self::W768 => 768,
            Self::W1024 => 1024,
        }
    }

    /// The width that is `width`.
    pub fn of(width: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.get() == width)
    }
}

/// The sum of each token's three embeddings, normalised.
#[derive(Clone, Copy, Debug)]
pub struct EmbedLaunch {
    /// Numbers in a row.
    pub width: RowWidth,
    /// Tokens.
    pub rows: usize,
    /// `i32` a token.
    pub ids: Address,
    /// `i32` a token.
    pub positions: Address,
    /// `i32` a token, or [`Address::NULL`] where all are of type 0.
    pub types: Address,
    /// fp16 tables.
    pub word_table: Address,
    /// Rows by position.
    pub position_table: Address,
    /// Rows by type.
    pub type_table: Address,
    /// fp32, a number a column.
    pub scale: Address,
    /// fp32, a number a column.
    pub shift: Address,
    /// fp16 rows.
    pub out: Address,
    /// Added to the variance.
    pub epsilon: f32,
}

impl EmbedLaunch {
    /// As a launch.
    pub fn launch(&self) -> Launch {
        Launch {
            kernel: match self.width {
                RowWidth::W384 => "embed_tokens_384",
                RowWidth::W768 => "embed_tokens_768",
                RowWidth::W1024 => "embed_tokens_1024",
            },
            grid: [blocks(self.rows, ROWS_PER_BLOCK), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: vec![
                self.ids.into(),
                self.positions.into(),
                self.types.into(),
                self.word_table.into(),
                self.position_table.into(),
                self.type_table.into(),
                self.scale.into(),
                self.shift.into(),
                self.out.into(),
                Argument::count(self.rows),
                Argument::Real(self.epsilon),
            ],
        }
    }
}

/// `out = normalise(input)`.
#[derive(Clone, Copy, Debug)]
pub struct NormaliseLaunch {
    /// Numbers in a row.
    pub width: RowWidth,
    /// Rows.
    pub rows: usize,
    /// fp16 rows.
    pub input: Address,
    /// fp32, a number a column.
    pub scale: Address,
    /// fp32, a number a column.
    pub shift: Address,
    /// fp16 rows; may be the input.
    pub out: Address,
    /// Added to the variance.
    pub epsilon: f32,
}

impl NormaliseLaunch {
    /// As a launch.
    pub fn launch(&self) -> Launch {
        Launch {
            kernel: match self.width {
                RowWidth::W384 => "normalise_rows_384",
                RowWidth::W768 => "normalise_rows_768",
                RowWidth::W1024 => "normalise_rows_1024",
            },
            grid: [blocks(self.rows, ROWS_PER_BLOCK), 1],
            threads: THREADS,
            shared_bytes: 0,
            arguments: vec![
                self.input.into(),
                self.scale.into(),
                self.shift.into(),
                self.out.into(),
                Argument::count(self.rows),
                Argument::Real(self.epsilon),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Memory, Noise, assert_close, gelu_reference, normalise_reference, run_on_schedules,
    };

    const EPSILON: f32 = 1e-12;
    /// Half a unit in the last place of fp16 numbers up to 8, and the rounding of sums.
    const TOLERANCE: f64 = 3e-3;

    fn embeds_like_the_definition(width: RowWidth, rows: usize, has_types: bool) {
        let columns = width.get();
        let mut noise = Noise::new(rows as u64);
        let (words, positions) = (50, 20);
        let table = noise.halves((words + positions + 2) * columns, 1.0);
        let scale = noise.floats(columns, 2.0);
        let shift = noise.floats(columns, 1.0);
        let pick = |noise: &mut Noise, below: usize| -> Vec<i32> {
            (0..rows).map(|_| noise.below(below) as i32).collect()
        };
        let ids = pick(&mut noise, words);
        let places = pick(&mut noise, positions);
        let types = if has_types {
            pick(&mut noise, 2)
        } else {
            vec![0; rows]
        };
        let out = Memory::poisoned::<half::f16>(rows * columns);
        let tables = Memory::of(&table);
        let [scales, shifts] = [Memory::of(&scale), Memory::of(&shift)];
        let [id, place, kind] = [Memory::of(&ids), Memory::of(&places), Memory::of(&types)];
        let launch = EmbedLaunch {
            width,
            rows,
            ids: id.address(),
            positions: place.address(),
            types: if has_types {
                kind.address()
            } else {
                Address::NULL
            },
            word_table: tables.address(),
            position_table: tables.address().offset(words * columns * 2),
            type_table: tables.address().offset((words + positions) * columns * 2),
            scale: scales.address(),
            shift: shifts.address(),
            out: out.address(),
            epsilon: EPSILON,
        }
        .launch();
        run_on_schedules(&launch, &out, || {
            for row in 0..rows {
                let of = |at: usize| &table[at * columns..(at + 1) * columns];
                let parts = [
                    of(ids[row] as usize),
                    of(words + places[row] as usize),
                    of(words + positions + types[row] as usize),
                ];
                let sum: Vec<f64> = (0..columns)
                    .map(|i| parts.iter().map(|part| part[i].to_f64()).sum())
                    .collect();
                let expected = normalise_reference(&sum, &scale, &shift, EPSILON);
                let found = out.read::<half::f16>();
                assert_close(&found[row * columns..][..columns], &expected, TOLERANCE);
            }
        });
    }

    #[test]
    fn embeddings() {
        for width in RowWidth::ALL {
            for rows in [1, 7, 8, 33] {
                embeds_like_the_definition(width, rows, rows % 2 == 1);
            }
        }
    }

    fn normalises_like_the_definition(width: RowWidth, rows: usize) {
        let columns = width.get();
        let mut noise = Noise::new(rows as u64 + 100);
        // A large mean beside a small deviation is where a naive variance fails.
        let input: Vec<half::f16> = (noise.floats(rows * columns, 1.0).iter())
            .map(|x| half::f16::from_f32(x + 30.0))
            .collect();
        let scale = noise.floats(columns, 2.0);
        let shift = noise.floats(columns, 1.0);
        let inputs = Memory::of(&input);
        let [scales, shifts] = [Memory::of(&scale), Memory::of(&shift)];
        let out = Memory::poisoned::<half::f16>(rows * columns);
        let launch = NormaliseLaunch {
            width,
            rows,
            input: inputs.address(),
            scale: scales.address(),
            shift: shifts.address(),
            out: out.address(),
            epsilon: EPSILON,
        };
        let check = |found: &[half::f16]| {
            for row in 0..rows {
                let own = &input[row * columns..][..columns];
                let own: Vec<f64> = own.iter().map(|x| x.to_f64()).collect();
                let expected = normalise_reference(&own, &scale, &shift, EPSILON);
                assert_close(&found[row * columns..][..columns], &expected, TOLERANCE);
            }
        };
        run_on_schedules(&launch.launch(), &out, || check(&out.read()));
        // In place, as the forward pass uses it.
        let in_place = NormaliseLaunch {
            out: inputs.address(),
            ..launch
        };
        crate::testing::run(&in_place.launch(), 0).unwrap();
        check(&inputs.read());
    }

    #[test]
    fn layer_normalisation() {
        for width in RowWidth::ALL {
            for rows in [1, 9, 40] {
                normalises_like_the_definition(width, rows);
            }
        }
    }

    /// What the epilogue of cuBLASLt computes instead (Hendrycks and Gimpel 2016, their second form).
    #[test]
    fn the_tanh_form_of_gelu_differs_by_less_than_five_in_ten_thousand() {
        let tanh_form = |x: f64| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        };
        let difference = (-80_000..80_000)
            .map(|i| f64::from(i) * 1e-4)
            .map(|x| (tanh_form(x) - gelu_reference(x)).abs())
            .fold(0.0, f64::max);
        assert!((4.5e-4..5e-4).contains(&difference), "{difference:e}");
    }
}
