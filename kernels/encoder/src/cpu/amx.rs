//! Products of bfloat16 on Intel's matrix unit (AMX): 32 rows by 32 columns at once.
//!
//! A tile register has 16 rows of 64 bytes. Two of rows and two of a panel's columns give four of sums,
//! so each load is used twice; panels have the pairs where the unit wants them ([`super::bf16_tile`]). The
//! sums go through memory, where AVX-512 adds bias or earlier sums and stores the rows that there are.
//!
//! The unit needs the operating system's permission, once for the process, and a shape for its registers in
//! each thread that uses it. Whether it computes what it should is looked at once before it is used.
//!
//! Invariant: no instruction of the unit runs unless processor and system were asked for it, and not
//! outside of the life of a [`Session`].

#![allow(unsafe_code)]

use super::bf16_tile::{Pair, PairTile};
use super::tile::{Finish, Start};
use std::sync::OnceLock;

/// Rows of two registers.
pub(super) const TILE_ROWS: usize = 32;
/// Pairs in a register's row: how deep one product is.
pub(super) const STEP_PAIRS: usize = 16;
/// Columns of two registers, which a panel has too.
const COLUMNS: usize = 32;

/// What multiplies pairs of bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairUnit {
    /// `vdpbf16ps` of AVX-512.
    Vectors,
    /// Tiles of AMX.
    Tiles,
    /// What tiles compute, in plain Rust: for tests where there are none.
    #[cfg(test)]
    EmulatedTiles,
    /// The same with an address that is wrong: for the test of the check.
    #[cfg(test)]
    FaultyTiles(Fault),
}

/// What an instruction with a wrong address would do.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The lower rows are the upper ones.
    RowsTwice,
    /// The right columns are the left ones.
    ColumnsTwice,
    /// The panel stays where it is from step to step.
    PanelStays,
    /// The input does.
    InputStays,
    /// The sums' halves change places.
    SumsSwapped,
    /// One half of each pair is left out.
    HalfAPair,
}

impl PairUnit {
    /// The fastest of this processor, which must have the instructions of
    /// [`super::bf16_tile::is_available`].
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<PairUnit> = OnceLock::new();
        *BEST.get_or_init(|| {
            if !is_permitted() {
                return Self::Vectors;
            }
            if is_right(Self::Tiles) {
                return Self::Tiles;
            }
            tracing::warn!(
                "this processor's matrix unit (AMX) does not compute what it should and is not used"
            );
            Self::Vectors
        })
    }

    /// Most rows of a tile.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            Self::Vectors => super::bf16_tile::TILE_ROWS,
            _ => TILE_ROWS,
        }
    }

    /// What depths of products must be a multiple of, in pairs.
    pub(crate) fn step_pairs(self) -> usize {
        match self {
            Self::Vectors => 1,
            _ => STEP_PAIRS,
        }
    }

    /// Rows and their counts of the tiles that make up some rows.
    pub(crate) fn tiles(self, rows: usize) -> impl Iterator<Item = (usize, usize)> {
        let tile_rows = self.tile_rows();
        let (even, whole) = match self {
            Self::Vectors => (super::tile::even_tiles(rows, tile_rows), 0..0),
            // A register costs the same however many of its rows are wanted.
            _ => (super::tile::even_tiles(0, tile_rows), 0..rows),
        };
        let whole = whole.step_by(tile_rows);
        even.chain(whole.map(move |row| (row, tile_rows.min(rows - row))))
    }
}

/// The time in which a thread uses a unit.
pub(crate) struct Session(PairUnit);

impl Session {
    /// Begins it on the calling thread.
    pub(crate) fn begin(unit: PairUnit) -> Self {
        if unit == PairUnit::Tiles {
            assert!(is_permitted(), "the matrix unit is not available");
            // SAFETY: the unit is there and permitted.
            unsafe { load_shape() }
        }
        Self(unit)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.0 == PairUnit::Tiles {
            // Empty registers are not saved when threads change.
            // SAFETY: the unit is there; nobody holds anything in its registers.
            unsafe { std::arch::asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
        }
    }
}

/// The registers' shapes as `ldtilecfg` reads them: all eight of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// # Safety
/// The unit must be there and permitted.
unsafe fn load_shape() {
    static SHAPE: Shape = Shape {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    // SAFETY: this function's contract; the 64 bytes are a valid shape and are only read.
    unsafe {
        std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(readonly, nostack, preserves_flags));
    }
}

/// Sums of a tile, row by row.
#[repr(C, align(64))]
pub(super) struct Sums([f32; TILE_ROWS * COLUMNS]);

/// The operands of a tile: rows of input and a panel.
pub(super) struct TileProduct {
    /// First row's first pair; 32 rows must be readable, or 16 where `is_half`.
    input: *const Pair,
    /// From one row of the input to the next.
    input_stride: usize,
    /// First row of the panel, whose rows of [`COLUMNS`] pairs follow each other.
    panel: *const Pair,
    /// Products of [`STEP_PAIRS`] to sum up, at least one.
    steps: usize,
    /// Whether the first 16 rows are all.
    is_half: bool,
}

impl TileProduct {
    /// The operands of a tile of `rows` rows.
    pub(super) fn of(tile: &PairTile, rows: usize) -> Self {
        debug_assert!(tile.depth > 0 && tile.depth.is_multiple_of(STEP_PAIRS));
        Self {
            input: tile.input,
            input_stride: tile.input_stride,
            panel: tile.panel,
            steps: tile.depth / STEP_PAIRS,
            is_half: rows <= TILE_ROWS / 2,
        }
    }

    /// Computes it; rows beyond the first 16 are left as they are where `is_half`.
    ///
    /// # Safety
    /// The operands must be readable as their fields say, `sums` be valid, and a session of the unit have
    /// begun on this thread.
    pub(super) unsafe fn compute(&self, unit: PairUnit, sums: *mut Sums) {
        // SAFETY: this function's contract.
        unsafe {
            match unit {
                PairUnit::Tiles if self.is_half => self.compute_half(sums),
                PairUnit::Tiles => self.compute_whole(sums),
                PairUnit::Vectors => {}
                #[cfg(test)]
                PairUnit::EmulatedTiles => self.emulate(None, sums),
                #[cfg(test)]
                PairUnit::FaultyTiles(fault) => self.emulate(Some(fault), sums),
            }
        }
    }

    /// # Safety
    /// As for [`TileProduct::compute`], with tiles.
    unsafe fn compute_whole(&self, sums: *mut Sums) {
        let row_bytes = self.input_stride * size_of::<Pair>();
        // SAFETY: a step reads 64 bytes of each of 32 rows and 16 rows of 128 bytes of the panel, and the
        // end writes 32 rows of 128 bytes: all inside what the contract gives. The registers hold
        // nothing of anybody else's, and each that is read was written here.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{upper} + {row_bytes}]",
                "tileloadd tmm6, [{panel} + {line}]",
                "tileloadd tmm7, [{panel} + {line} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {row_bytes}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, 64",
                "add {lower}, 64",
                "add {panel}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 64], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 2112], tmm3",
                upper = inout(reg) self.input => _,
                lower = inout(reg) self.input.wrapping_byte_add(16 * row_bytes) => _,
                panel = inout(reg) self.panel => _,
                steps = inout(reg) self.steps => _,
                row_bytes = in(reg) row_bytes,
                line = in(reg) COLUMNS * size_of::<f32>(),
                sums = in(reg) sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// As for [`TileProduct::compute`], with tiles.
    unsafe fn compute_half(&self, sums: *mut Sums) {
        // SAFETY: as for `compute_whole`, with 16 rows.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{upper} + {row_bytes}]",
                "tileloadd tmm6, [{panel} + {line}]",
                "tileloadd tmm7, [{panel} + {line} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {upper}, 64",
                "add {panel}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 64], tmm1",
                upper = inout(reg) self.input => _,
                panel = inout(reg) self.panel => _,
                steps = inout(reg) self.steps => _,
                row_bytes = in(reg) self.input_stride * size_of::<Pair>(),
                line = in(reg) COLUMNS * size_of::<f32>(),
                sums = in(reg) sums,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// The same products as `tdpbf16ps` makes, reading and writing what the instructions do; those sum the
    /// first and the second halves of a step's pairs apart, so that sums here differ by their rounding.
    ///
    /// # Safety
    /// As for [`TileProduct::compute`].
    #[cfg(test)]
    unsafe fn emulate(&self, fault: Option<Fault>, sums: *mut Sums) {
        let value = |half: u32| f32::from_bits(half << 16);
        let unless = |other: Fault, at: usize, wrong: usize| {
            if fault == Some(other) { wrong } else { at }
        };
        let rows = if self.is_half { 16 } else { TILE_ROWS };
        for row in 0..rows {
            for column in 0..COLUMNS {
                let mut sum = 0.0_f32;
                for pair in 0..self.steps * STEP_PAIRS {
                    let from_row = unless(Fault::RowsTwice, row, row % 16);
                    let from_column = unless(Fault::ColumnsTwice, column, column % 16);
                    let input_pair = unless(Fault::InputStays, pair, pair % STEP_PAIRS);
                    let panel_pair = unless(Fault::PanelStays, pair, pair % STEP_PAIRS);
                    // SAFETY: this function's contract.
                    let (a, b) = unsafe {
                        let input = self.input.add(from_row * self.input_stride + input_pair);
                        (*input, *self.panel.add(panel_pair * COLUMNS + from_column))
                    };
                    sum += value(a & 0xFFFF) * value(b & 0xFFFF);
                    if fault != Some(Fault::HalfAPair) {
                        sum += value(a >> 16) * value(b >> 16);
                    }
                }
                let to = unless(Fault::SumsSwapped, column, (column + 16) % COLUMNS);
                // SAFETY: this function's contract.
                unsafe { (&raw mut (*sums).0[row * COLUMNS + to]).write(sum) }
            }
        }
    }
}

/// Whether processor and operating system let this process use the unit; asks the system once.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| is_there() && asks_for_permission())
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Whether the processor has the unit with bfloat16, and the system saves its registers when threads change.
#[cfg(target_os = "linux")]
fn is_there() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    /// CPUID leaf 1, ECX: the system has enabled XGETBV.
    const OSXSAVE: u32 = 1 << 27;
    /// CPUID leaf 7, EDX (Intel's manual, volume 2A, CPUID).
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// XCR0: shapes and contents of tile registers.
    const TILE_STATE: u64 = 0b11 << 17;

    #[target_feature(enable = "xsave")]
    fn saved_state() -> u64 {
        // SAFETY: the instruction is there and register 0 always exists.
        unsafe { _xgetbv(0) }
    }

    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let has_unit = __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE;
    // SAFETY: OSXSAVE says that XGETBV is there.
    has_unit && unsafe { saved_state() } & TILE_STATE == TILE_STATE
}

/// Asks the kernel for the registers' 8 KiB of state: Linux gives them on demand only, to all threads of the
/// process (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn asks_for_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: integers only; what is asked for changes nothing until a tile instruction runs.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    if outcome != 0 {
        tracing::info!(
            error = %std::io::Error::last_os_error(),
            "the operating system does not permit this processor's matrix unit (AMX): vectors are used"
        );
    }
    outcome == 0
}

/// Whether a unit computes what vectors do, on a tile with all its rows and on one with a few.
fn is_right(unit: PairUnit) -> bool {
    const DEPTH: usize = 4 * STEP_PAIRS;
    // Small whole numbers, whose products and sums are exact in any order: 1 to 8 as bfloat16, by the high bits
    // of a multiplicative hash, so that no two rows, columns or steps of the depth are alike.
    let value = |at: usize, seed: u32| {
        let number = ((at as u32).wrapping_mul(seed) >> 29) + 1;
        Pair::from(half::bf16::from_f32(number as f32).to_bits())
    };
    let pair = |at: usize| value(at, 0x9E37_79B1) | value(at, 0x85EB_CA6B) << 16;
    let input: Vec<Pair> = (0..TILE_ROWS * DEPTH).map(pair).collect();
    let panel: Vec<Pair> = (0..DEPTH * COLUMNS).map(|at| pair(at + 12_345)).collect();
    let product = |unit: PairUnit, rows: usize| {
        let mut out = vec![0.0; rows * COLUMNS];
        let _session = Session::begin(unit);
        for (row, rows) in unit.tiles(rows) {
            let tile = PairTile {
                input: input[row * DEPTH..].as_ptr(),
                input_stride: DEPTH,
                panel: panel.as_ptr(),
                depth: DEPTH,
                out: out[row * COLUMNS..].as_mut_ptr(),
                out_stride: COLUMNS,
                start: Start::Zero,
                finish: Finish::Store,
            };
            // SAFETY: the caller has seen the instructions; the rows are there, 32 of them in any case.
            unsafe { tile.compute(unit, rows) }
        }
        out
    };
    [TILE_ROWS, 5]
        .iter()
        .all(|rows| product(unit, *rows) == product(PairUnit::Vectors, *rows))
}

#[cfg(test)]
mod tests {
    use super::super::bf16_tile::is_available;
    use super::*;

    #[test]
    fn tiles_cover_all_rows_once() {
        for unit in [PairUnit::Vectors, PairUnit::EmulatedTiles] {
            for rows in 0..200 {
                let mut next = 0;
                for (row, count) in unit.tiles(rows) {
                    assert_eq!(row, next);
                    assert!((1..=unit.tile_rows()).contains(&count));
                    next += count;
                }
                assert_eq!(next, rows);
            }
        }
    }

    #[test]
    fn the_check_tells_right_from_wrong() {
        if !is_available() {
            println!("skipped: the matrix unit's check: this processor has no bfloat16 products");
            return;
        }
        assert!(is_right(PairUnit::EmulatedTiles));
        for fault in [
            Fault::RowsTwice,
            Fault::ColumnsTwice,
            Fault::PanelStays,
            Fault::InputStays,
            Fault::SumsSwapped,
            Fault::HalfAPair,
        ] {
            assert!(!is_right(PairUnit::FaultyTiles(fault)), "{fault:?}");
        }
        if is_permitted() {
            assert!(is_right(PairUnit::Tiles));
            assert_eq!(PairUnit::best(), PairUnit::Tiles);
        } else {
            println!("skipped: the matrix unit itself: this processor or system has none");
            assert_eq!(PairUnit::best(), PairUnit::Vectors);
        }
    }
}
