//! From a text's rows to its vector.
//!
//! Invariant: vectors have length 1, except those of texts without rows, which are zeros.

use crate::launch::{Address, Argument, Launch};

const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Columns of a thread.
const CHUNK: usize = 8;

/// What a text's vector is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all its rows.
    Mean,
    /// Its first row, that of the token `[CLS]`.
    First,
}

/// Pools and normalises every text.
#[derive(Clone, Copy, Debug)]
pub struct PoolLaunch {
    /// Texts.
    pub texts: usize,
    /// Numbers in a row; a multiple of 8, at most 2048.
    pub width: usize,
    /// Numbers in a vector: the first ones of the row's, before it is normalised.
    pub dimensions: usize,
    /// Mean or first row.
    pub pooling: Pooling,
    /// fp16 rows.
    pub rows: Address,
    /// `i32`: the first row of each text, and one past the last.
    pub starts: Address,
    /// fp32, `[texts][dimensions]`.
    pub out: Address,
}

impl PoolLaunch {
    /// As a launch.
    ///
    /// # Panics
    /// When the sizes are not what the kernel takes.
    pub fn launch(&self) -> Launch {
        let chunks = self.width / CHUNK;
        assert!(self.width.is_multiple_of(CHUNK) && (1..=THREADS).contains(&chunks));
        assert!(self.dimensions <= self.width);
        let groups = THREADS / chunks;
        Launch {
            kernel: "pool_texts",
            grid: [u32::try_from(self.texts).expect("texts below 2^32"), 1],
            threads: THREADS as u32,
            shared_bytes: (groups * self.width + WARPS) * 4,
            arguments: vec![
                self.rows.into(),
                self.starts.into(),
                self.out.into(),
                Argument::count(self.width),
                Argument::count(self.dimensions),
                Argument::Integer(match self.pooling {
                    Pooling::Mean => 0,
                    Pooling::First => 1,
                }),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Memory, Noise, assert_sites_are_needed, compare, pool_reference, run_on_schedules,
        run_without,
    };

    const LENGTHS: [usize; 7] = [1, 2, 0, 5, 64, 131, 512];

    struct Placed {
        launch: Launch,
        out: Memory,
        expected: Vec<f64>,
        _inputs: [Memory; 2],
    }

    fn place(width: usize, dimensions: usize, pooling: Pooling) -> Placed {
        let mut starts = vec![0_i32];
        for length in LENGTHS {
            starts.push(starts[starts.len() - 1] + length as i32);
        }
        let rows = Noise::new(width as u64).halves(starts[LENGTHS.len()] as usize * width, 2.0);
        let inputs = [Memory::of(&rows), Memory::of(&starts)];
        let out = Memory::poisoned::<f32>(LENGTHS.len() * dimensions);
        let launch = PoolLaunch {
            texts: LENGTHS.len(),
            width,
            dimensions,
            pooling,
            rows: inputs[0].address(),
            starts: inputs[1].address(),
            out: out.address(),
        }
        .launch();
        let expected = starts
            .windows(2)
            .flat_map(|text| {
                let own = &rows[text[0] as usize * width..text[1] as usize * width];
                let own: Vec<f64> = own.iter().map(|x| x.to_f64()).collect();
                pool_reference(&own, width, dimensions, pooling)
            })
            .collect();
        Placed {
            launch,
            out,
            expected,
            _inputs: inputs,
        }
    }

    fn difference(placed: &Placed) -> Result<(), String> {
        let found = placed.out.read::<f32>();
        let found: Vec<f64> = found.iter().map(|x| f64::from(*x)).collect();
        compare(&found, &placed.expected, 2e-6)
    }

    #[test]
    fn it_equals_the_definition_in_f64() {
        for pooling in [Pooling::Mean, Pooling::First] {
            for (width, dimensions) in [(384, 384), (768, 256), (1024, 1024), (384, 7)] {
                let placed = place(width, dimensions, pooling);
                run_on_schedules(&placed.launch, &placed.out, || difference(&placed).unwrap());
            }
        }
    }

    #[test]
    fn every_barrier_is_needed() {
        assert_sites_are_needed(|skipped, seed| {
            let placed = place(384, 384, Pooling::Mean);
            let sites = run_without(&placed.launch, seed, skipped)?;
            difference(&placed)?;
            Ok(sites)
        });
    }
}
