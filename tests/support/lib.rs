//! What end-to-end tests share: the real binary, its folders, its endpoint, and the data sets.
//!
//! Invariant: a process that a test started ends with the test, and everything it wrote is in a
//! temporary folder.

pub mod data;
pub mod process;
pub mod random;
pub mod scripted;
pub mod services;
pub mod small_disk;
pub mod watched;

pub use data::{append, data_directory, files_under, read_lines};
pub use process::{
    Running, call, can_trace, edit, expect_sound, export, free_port, run_to_end, signal,
    sound_epoch, texts, vectide, vectide_binary, write_config,
};
pub use random::{Random, seed};
pub use scripted::{Changes, Script, ScriptedPipeline, SplitScript};
pub use small_disk::SmallDisk;
pub use vectide_connectors::testing::is_torture;
pub use watched::{BeforeEmbedding, WatchedEmbedder};
