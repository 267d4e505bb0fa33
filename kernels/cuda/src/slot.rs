//! The place of one batch under way: its memory on both sides, its queue, and what it has recorded.
//!
//! While one slot's batch is computed another one's is copied: each has a queue of its own, and the
//! device overlaps them.
//!
//! ```text
//!   idle -- submit --> under way -- collect --> idle
//! ```
//!
//! Invariant: a slot's staging and arena are touched by nobody while a batch is under way, and a slot
//! that is dropped waits for it first.

#![allow(unsafe_code)]

use crate::arena::ArenaLayout;
use crate::batch::{BatchSize, ImageLayout, RaggedBatch};
use crate::buckets;
use crate::forward::PlacedModel;
use crate::machine::{DeviceMemory, GpuFault, Machine, Queue, Staging, Urgency};
use std::collections::HashMap;
use std::sync::Arc;

const FLOAT_BYTES: usize = 4;

/// Whether short batches are filled up to a fixed size and replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// Where a recorded size holds the batch.
    Short,
    /// Every batch is launched kernel by kernel: large ones last longer than their launches.
    Never,
}

type Recording<M> = <<M as Machine>::Queue as Queue>::Recording;

/// The place of a batch.
pub(crate) struct Slot<M: Machine> {
    // Dropped first: waits for what is under way.
    queue: Waiting<M::Queue>,
    recordings: HashMap<BatchSize, Recording<M>>,
    arena: M::Memory,
    inward: M::Staging,
    outward: M::Staging,
    model: Arc<PlacedModel>,
    regions: ArenaLayout,
    largest: BatchSize,
    replay: Replay,
    /// Texts of the batch under way, if one is.
    under_way: Option<usize>,
}

/// A queue that is waited for before it and what it uses are dropped.
struct Waiting<Q: Queue>(Q);

impl<Q: Queue> Drop for Waiting<Q> {
    fn drop(&mut self) {
        // A fault has been, or will be, told by the call that it is of.
        let _ = self.0.finish();
    }
}

impl<M: Machine> Slot<M> {
    pub(crate) fn new(
        machine: &M,
        model: Arc<PlacedModel>,
        largest: BatchSize,
        urgency: Urgency,
        replay: Replay,
    ) -> Result<Self, GpuFault> {
        let regions = ArenaLayout::of(&model.shape, largest);
        let vectors = FLOAT_BYTES * largest.texts * model.shape.dimensions;
        Ok(Self {
            queue: Waiting(machine.queue(urgency)?),
            recordings: HashMap::new(),
            arena: machine.allocate(regions.bytes)?,
            inward: machine.staging(ImageLayout::of(largest).bytes())?,
            outward: machine.staging(vectors)?,
            model,
            regions,
            largest,
            replay,
            under_way: None,
        })
    }

    /// Records every size ahead, so that no query waits for it.
    pub(crate) fn record_all(&mut self) -> Result<(), GpuFault> {
        if self.replay == Replay::Short {
            for size in buckets::all(self.largest) {
                self.record(size)?;
            }
        }
        Ok(())
    }

    fn record(&mut self, size: BatchSize) -> Result<(), GpuFault> {
        if !self.recordings.contains_key(&size) {
            let launches = self.launches(size);
            // SAFETY: the launches use the model's and the arena's memory, both of which this slot
            // keeps alive; its own queue alone writes the arena, and the model is only read.
            let recording = unsafe { self.queue.0.record(&launches)? };
            self.recordings.insert(size, recording);
        }
        Ok(())
    }

    fn launches(&self, size: BatchSize) -> Vec<crate::launch::Launch> {
        self.model
            .launches(size, self.arena.address(), &self.regions)
    }

    /// Begins a batch, which has at least one row. One that was begun and never collected, because its
    /// caller had a fault elsewhere, is waited for and forgotten.
    ///
    /// # Panics
    /// When the batch is larger than the slot takes; the caller has cut it.
    pub(crate) fn submit(&mut self, batch: &RaggedBatch) -> Result<(), GpuFault> {
        let own = batch.size();
        assert!(self.largest.holds(own) && own.rows > 0);
        if self.under_way.take().is_some() {
            self.queue.0.finish()?;
        }
        let bucket = match self.replay {
            Replay::Short => buckets::choose(own, self.largest),
            Replay::Never => None,
        };
        let size = bucket.unwrap_or(own);
        let image = &mut self.inward.bytes_mut()[..ImageLayout::of(size).bytes()];
        batch.write_image(size, image);
        if let Some(size) = bucket {
            self.record(size)?;
        }
        // From here on something may be under way, even where a call fails.
        self.under_way = Some(own.texts);
        self.enqueue(size, own.texts, bucket)
    }

    /// Copies in, computes as recorded for `bucket` or kernel by kernel, and copies out.
    fn enqueue(
        &mut self,
        size: BatchSize,
        texts: usize,
        bucket: Option<BatchSize>,
    ) -> Result<(), GpuFault> {
        let recording = bucket.and_then(|size| self.recordings.get(&size));
        let launches = recording.map_or_else(|| self.launches(size), |_| Vec::new());
        let image_bytes = ImageLayout::of(size).bytes();
        let vector_bytes = FLOAT_BYTES * texts * self.model.shape.dimensions;
        let arena = self.arena.address();
        let queue = &self.queue.0;
        // SAFETY: image and vectors lie within arena and staging, whose sizes are those of `largest`,
        // which holds the batch; launches as in `record`. All of it is alive until the queue has been
        // waited for, and `submit` and `collect` wait before they touch the staging.
        unsafe {
            queue.upload(&self.inward, image_bytes, arena.offset(self.regions.image))?;
            for launch in &launches {
                queue.launch(launch)?;
            }
            if let Some(recording) = recording {
                queue.replay(recording)?;
            }
            let vectors = arena.offset(self.regions.vectors);
            queue.download(vectors, vector_bytes, &mut self.outward)
        }
    }

    /// Waits for the batch under way; its vectors, in order.
    pub(crate) fn collect(&mut self) -> Result<Vec<Vec<f32>>, GpuFault> {
        let texts = self.under_way.take().unwrap_or(0);
        self.queue.0.finish()?;
        let dimensions = self.model.shape.dimensions;
        let (words, _) = self.outward.bytes().as_chunks::<FLOAT_BYTES>();
        let number = |word: &[u8; FLOAT_BYTES]| f32::from_le_bytes(*word);
        let vectors = words.chunks_exact(dimensions).take(texts);
        Ok(vectors
            .map(|vector| vector.iter().map(number).collect())
            .collect())
    }
}
