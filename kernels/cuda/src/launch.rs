//! One launch of a kernel, as a value: which kernel, how many threads, what arguments.
//!
//! A forward pass is a list of these, so it can be looked at, recorded into a graph, sent to a stream
//! or run by the emulator.
//!
//! Invariant: the arguments of a [`Launch`] are those of its kernel in `device/`, in order and kind;
//! only [`crate::launches`] makes launches, and its tests run every one of them.

/// A place in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// Nothing is there; what a kernel takes for an operand that may be missing.
    pub const NULL: Self = Self(0);

    /// `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// One argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// `int`.
    Integer(i32),
    /// `float`.
    Real(f32),
}

impl Argument {
    /// A count or size.
    ///
    /// # Panics
    /// When it is above `i32::MAX`, which nothing is that fits the memory budget of a launch.
    pub fn count(count: usize) -> Self {
        Self::Integer(i32::try_from(count).expect("a count below 2^31"))
    }

    /// The argument in the lowest bytes of a word, as kernels read it.
    pub fn word(self) -> u64 {
        match self {
            Self::Address(address) => address.0,
            Self::Integer(value) => u64::from(value.cast_unsigned()),
            Self::Real(value) => u64::from(value.to_bits()),
        }
    }
}

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

/// The most shared memory of a block on every device that the binary runs on: compute capabilities 8.6,
/// 8.9 and 12.0 give 99 KB, others more.
pub const SHARED_BYTES_MAX: usize = 99 * 1024;

/// A kernel with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Name in the binary.
    pub kernel: &'static str,
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block, at most [`SHARED_BYTES_MAX`].
    pub shared_bytes: usize,
    /// In the kernel's order.
    pub arguments: Vec<Argument>,
}

/// Blocks that cover `items` in pieces of `piece`.
pub(crate) fn blocks(items: usize, piece: usize) -> u32 {
    u32::try_from(items.div_ceil(piece)).expect("a grid below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_arguments_in_their_lowest_bytes() {
        assert_eq!(Argument::Integer(-1).word(), 0xFFFF_FFFF);
        assert_eq!(Argument::Real(1.0).word(), 0x3F80_0000);
        assert_eq!(Argument::from(Address(7).offset(1)).word(), 8);
        assert_eq!(blocks(65, 64), 2);
        assert_eq!(blocks(0, 64), 0);
    }
}
