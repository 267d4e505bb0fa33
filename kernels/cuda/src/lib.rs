//! Encoder models and exact search on CUDA: our own kernels, loaded at run time.
//!
//! `device/` has the kernels. [`launches`] says how each is launched, [`shape`], [`batch`] and
//! [`weights`] what it is launched on, and [`forward`] puts the launches of a whole forward pass in
//! order. None of that needs a GPU: the tests run the same launches on an emulator.
//!
//! Invariant: this crate builds and passes its tests where there is no GPU, no driver and no CUDA
//! toolkit.

pub mod accelerator;
pub mod arena;
pub mod batch;
pub mod binary;
pub mod buckets;
pub mod cuda;
pub mod encoder;
pub mod exact;
pub mod forward;
pub mod launch;
pub mod launches;
pub mod machine;
pub mod recovery;
pub mod replicas;
pub mod shape;
pub mod sizes;
mod slot;
mod slot_pool;
mod telemetry;
#[cfg(test)]
mod testing;
mod upload;
#[cfg(any(test, feature = "verify"))]
pub mod verify;
pub mod weights;
