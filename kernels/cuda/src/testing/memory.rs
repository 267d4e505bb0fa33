//! Memory of the emulated device, watched before and behind.
//!
//! Invariant: memory that a kernel has not written is NaN, whatever the type.

#![allow(unsafe_code)]

use crate::launch::Address;
use half::f16;
use std::alloc::Layout;
use std::ptr::NonNull;

/// Bytes before and behind that nobody may write.
const GUARD_BYTES: usize = 1024;
const POISON: u8 = 0xFF;

/// Types that may be read from poisoned memory: every pattern of bits is one.
pub(crate) trait Plain: Copy {}
impl Plain for f16 {}
impl Plain for f32 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u8 {}
impl Plain for [i32; 2] {}

/// A piece of the device's memory, as the emulator sees it.
pub(crate) struct Memory {
    block: NonNull<u8>,
    bytes: usize,
}

impl Memory {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * GUARD_BYTES, 256).unwrap()
    }

    /// Room for `count` numbers that nobody has written.
    pub(crate) fn poisoned<T: Plain>(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        let layout = Self::layout(bytes);
        // SAFETY: the layout is not of size zero.
        let block = NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("memory");
        // SAFETY: the block has the layout's length.
        unsafe { block.write_bytes(POISON, layout.size()) };
        Self { block, bytes }
    }

    /// A copy of `values`.
    pub(crate) fn of<T: Plain>(values: &[T]) -> Self {
        let memory = Self::poisoned::<T>(values.len());
        // SAFETY: the block has room for the values behind its first guard.
        unsafe {
            let to = memory.block.add(GUARD_BYTES).as_ptr();
            to.copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values));
        }
        memory
    }

    pub(crate) fn address(&self) -> Address {
        Address(self.block.as_ptr() as u64).offset(GUARD_BYTES)
    }

    /// What is there, with the guards checked.
    pub(crate) fn read<T: Plain>(&self) -> Vec<T> {
        self.assert_guards();
        // SAFETY: the block has that many bytes behind its first guard, all of them written at least
        // once, at an alignment that suits every such type.
        unsafe {
            let from = self.block.add(GUARD_BYTES).cast::<T>().as_ptr();
            std::slice::from_raw_parts(from, self.bytes / size_of::<T>()).to_vec()
        }
    }

    /// # Panics
    /// When something was written before or behind the memory.
    pub(crate) fn assert_guards(&self) {
        for start in [0, GUARD_BYTES + self.bytes] {
            // SAFETY: both guards lie in the block and are written.
            let guard =
                unsafe { std::slice::from_raw_parts(self.block.add(start).as_ptr(), GUARD_BYTES) };
            assert!(
                guard.iter().all(|byte| *byte == POISON),
                "a guard was written"
            );
        }
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.read::<u8>()
    }

    pub(crate) fn restore(&self, bytes: &[u8]) {
        // SAFETY: the snapshot has the memory's length.
        unsafe {
            let to = self.block.add(GUARD_BYTES).as_ptr();
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.block.as_ptr(), Self::layout(self.bytes)) }
    }
}
