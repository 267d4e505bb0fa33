//! The forward pass of a BERT-type encoder as a list of launches.
//!
//! Five products and two normalisations a layer; bias, GELU and residual are part of the products.
//! Everything but attention and pooling goes over all rows at once, whichever text they are of.
//!
//! Invariant: the list depends on sizes and addresses only, never on what is in a batch, so that it
//! can be recorded once and replayed for every batch of its size.

use crate::arena::ArenaLayout;
use crate::batch::{BatchSize, ImageLayout};
use crate::launch::{Address, Launch};
use crate::launches::{
    AttentionLaunch, EmbedLaunch, Finish, LinearLaunch, NormaliseLaunch, PoolLaunch, RowWidth,
    TileShape,
};
use crate::shape::{BertShape, ShapeError};
use crate::weights::{LayerPlace, LinearPlace, NormPlace, WeightLayout};

/// A model in the memory of a device.
#[derive(Clone, Debug)]
pub struct PlacedModel {
    /// Its sizes.
    pub shape: BertShape,
    /// Where tensors stand behind `at`.
    pub layout: WeightLayout,
    /// Where its image is.
    pub at: Address,
    /// The device's multiprocessors, which decide how products are cut.
    pub multiprocessors: usize,
    width: RowWidth,
}

impl PlacedModel {
    /// A model whose image is, or is going to be, at `at`.
    ///
    /// # Errors
    /// When there are no kernels for it.
    pub fn new(shape: BertShape, at: Address, multiprocessors: usize) -> Result<Self, ShapeError> {
        Ok(Self {
            width: shape.check()?,
            layout: WeightLayout::of(&shape),
            shape,
            at,
            multiprocessors,
        })
    }

    /// The launches for batches that are filled up to `size`, in an arena at `arena`.
    ///
    /// # Panics
    /// When the size has no rows or no texts: there is nothing to launch then.
    pub fn launches(&self, size: BatchSize, arena: Address, regions: &ArenaLayout) -> Vec<Launch> {
        assert!(size.rows > 0 && size.texts > 0 && size.tiles > 0);
        let pass = Pass {
            model: self,
            size,
            arena,
            regions,
            image: ImageLayout::of(size),
        };
        let mut launches = vec![pass.embed()];
        for layer in &self.layout.layers {
            launches.extend(pass.layer(layer));
        }
        launches.push(pass.pool());
        launches
    }
}

struct Pass<'a> {
    model: &'a PlacedModel,
    size: BatchSize,
    arena: Address,
    regions: &'a ArenaLayout,
    image: ImageLayout,
}

impl Pass<'_> {
    fn weight(&self, offset: usize) -> Address {
        self.model.at.offset(offset)
    }

    fn image(&self, part: &std::ops::Range<usize>) -> Address {
        self.arena.offset(self.regions.image + part.start)
    }

    fn hidden(&self) -> Address {
        self.arena.offset(self.regions.hidden)
    }

    fn embed(&self) -> Launch {
        let layout = &self.model.layout;
        EmbedLaunch {
            width: self.model.width,
            rows: self.size.rows,
            ids: self.image(&self.image.ids),
            positions: self.image(&self.image.positions),
            types: Address::NULL,
            word_table: self.weight(layout.words),
            position_table: self.weight(layout.positions),
            type_table: self.weight(layout.types),
            scale: self.weight(layout.embedding_norm.scale),
            shift: self.weight(layout.embedding_norm.shift),
            out: self.hidden(),
            epsilon: self.model.shape.epsilon,
        }
        .launch()
    }

    fn layer(&self, layer: &LayerPlace) -> [Launch; 7] {
        let (width, intermediate) = (self.model.shape.width(), self.model.shape.intermediate);
        let heads = self.arena.offset(self.regions.heads);
        let packed = self.arena.offset(self.regions.packed);
        let expanded = self.arena.offset(self.regions.expanded);
        let hidden = self.hidden();
        let onto_hidden = Finish::Residual(hidden);
        [
            self.linear(
                layer.packed,
                [width, 3 * width],
                hidden,
                packed,
                Finish::Plain,
            ),
            self.attention(packed, heads),
            self.linear(
                layer.attention_output,
                [width, width],
                heads,
                hidden,
                onto_hidden,
            ),
            self.normalise(layer.attention_norm),
            self.linear(
                layer.expand,
                [width, intermediate],
                hidden,
                expanded,
                Finish::Gelu,
            ),
            self.linear(
                layer.contract,
                [intermediate, width],
                expanded,
                hidden,
                onto_hidden,
            ),
            self.normalise(layer.output_norm),
        ]
    }

    fn linear(
        &self,
        place: LinearPlace,
        [inputs, outputs]: [usize; 2],
        input: Address,
        out: Address,
        finish: Finish,
    ) -> Launch {
        let rows = self.size.rows;
        LinearLaunch {
            rows,
            inputs,
            outputs,
            input,
            weights: self.weight(place.weights),
            bias: self.weight(place.bias),
            out,
            finish,
            tile: TileShape::choose(rows, outputs, self.model.multiprocessors),
        }
        .launch()
    }

    fn attention(&self, packed: Address, out: Address) -> Launch {
        AttentionLaunch {
            heads: self.model.shape.heads,
            head_size: self.model.shape.head_size,
            tile_count: self.size.tiles,
            packed,
            starts: self.image(&self.image.starts),
            tiles: self.image(&self.image.tiles),
            out,
        }
        .launch()
    }

    fn normalise(&self, place: NormPlace) -> Launch {
        NormaliseLaunch {
            width: self.model.width,
            rows: self.size.rows,
            input: self.hidden(),
            scale: self.weight(place.scale),
            shift: self.weight(place.shift),
            out: self.hidden(),
            epsilon: self.model.shape.epsilon,
        }
        .launch()
    }

    fn pool(&self) -> Launch {
        PoolLaunch {
            texts: self.size.texts,
            width: self.model.shape.width(),
            dimensions: self.model.shape.dimensions,
            pooling: self.model.shape.pooling,
            rows: self.hidden(),
            starts: self.image(&self.image.starts),
            out: self.arena.offset(self.regions.vectors),
        }
        .launch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::RaggedBatch;
    use crate::binary::kernel_names;
    use crate::launches::Pooling;
    use crate::testing::{Memory, Noise, TinyModel, as_safetensors, encode_reference, run};
    use safetensors::Dtype;

    /// The emulator as a device: one arena, poisoned before every batch.
    struct Emulated {
        model: PlacedModel,
        _weights: Memory,
    }

    impl Emulated {
        fn new(tiny: &TinyModel, multiprocessors: usize) -> Self {
            let layout = WeightLayout::of(&tiny.shape);
            let image = layout.read(&as_safetensors(tiny, Dtype::F32, "")).unwrap();
            let weights = Memory::of(&image);
            Self {
                model: PlacedModel::new(tiny.shape, weights.address(), multiprocessors).unwrap(),
                _weights: weights,
            }
        }

        /// As a graph of `size` would run it, or the batch's own size.
        fn encode(&self, texts: &[&[u32]], size: Option<BatchSize>, seed: u64) -> Vec<Vec<f32>> {
            let shape = &self.model.shape;
            let batch = RaggedBatch::new(texts, shape).unwrap();
            let size = size.unwrap_or(batch.size());
            let regions = ArenaLayout::of(shape, size);
            let mut image = vec![0; ImageLayout::of(size).bytes()];
            batch.write_image(size, &mut image);
            // Regions that are not written hold NaNs.
            let mut bytes = vec![0xFF; regions.bytes];
            bytes[regions.image..][..image.len()].copy_from_slice(&image);
            let arena = Memory::of(&bytes);
            let launches = self.model.launches(size, arena.address(), &regions);
            for launch in &launches {
                run(launch, seed).unwrap();
            }
            let bytes = arena.read::<u8>();
            let (words, _) = bytes[regions.vectors..].as_chunks::<4>();
            (words.chunks(shape.dimensions).take(texts.len()))
                .map(|vector| {
                    vector
                        .iter()
                        .map(|word| f32::from_le_bytes(*word))
                        .collect()
                })
                .collect()
        }
    }

    fn cosine(found: &[f32], expected: &[f64]) -> f64 {
        let found = found.iter().map(|x| f64::from(*x));
        found.zip(expected).map(|(x, y)| x * y).sum()
    }

    fn texts(lengths: &[usize], vocabulary: usize) -> Vec<Vec<u32>> {
        let mut noise = Noise::new(9);
        let token = |_| noise.below(vocabulary) as u32;
        let flat: Vec<u32> = (0..lengths.iter().sum()).map(token).collect();
        let mut rest = flat.as_slice();
        lengths
            .iter()
            .map(|length| {
                let (text, after) = rest.split_at(*length);
                rest = after;
                text.to_vec()
            })
            .collect()
    }

    fn equals_the_reference(tiny: &TinyModel, lengths: &[usize], size: Option<BatchSize>) {
        let device = Emulated::new(tiny, 4);
        let texts = texts(lengths, tiny.shape.vocabulary);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let found = device.encode(&texts, size, 1);
        assert_eq!(found.len(), texts.len());
        for (text, vector) in texts.iter().zip(&found) {
            let expected = encode_reference(tiny, text);
            assert_eq!(vector.len(), expected.len());
            if text.is_empty() {
                assert!(vector.iter().all(|x| *x == 0.0));
                continue;
            }
            let cosine = cosine(vector, &expected);
            assert!(cosine > 0.999_98, "{} tokens: {cosine}", text.len());
            let length = cosine_with_itself(vector);
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }

    fn cosine_with_itself(vector: &[f32]) -> f64 {
        vector.iter().map(|x| f64::from(*x).powi(2)).sum()
    }

    #[test]
    fn two_layers_of_width_384_equal_the_definition_in_f64() {
        let tiny = TinyModel::new(2, 12, 32);
        equals_the_reference(&tiny, &[1, 0, 37, 70, 5], None);
    }

    #[test]
    fn width_768_with_the_first_row_and_fewer_dimensions() {
        let mut tiny = TinyModel::new(1, 12, 64);
        tiny.shape.pooling = Pooling::First;
        tiny.shape.dimensions = 256;
        equals_the_reference(&tiny, &[9, 66], None);
    }

    #[test]
    fn a_graph_of_a_larger_size_gives_the_same_bits() {
        let tiny = TinyModel::new(2, 12, 32);
        let device = Emulated::new(&tiny, 4);
        let texts = texts(&[12, 3], tiny.shape.vocabulary);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let exact = device.encode(&texts, None, 0);
        let filled = device.encode(&texts, Some(BatchSize::of_at_most(32, 4)), 1);
        assert_eq!(exact, filled);
        // And alone, and where other tiles are chosen.
        let alone = Emulated::new(&tiny, 1).encode(&texts[..1], None, 2);
        assert_eq!(exact[..1], alone[..]);
    }

    #[test]
    fn every_kernel_of_a_pass_is_in_the_binary() {
        let names: Vec<&str> = kernel_names().collect();
        for shape in [BertShape::MINILM_L6, BertShape::BGE_BASE] {
            let model = PlacedModel::new(shape, Address(1 << 20), 132).unwrap();
            for rows in [16, 16_384] {
                let size = BatchSize::of_at_most(rows, 8);
                let regions = ArenaLayout::of(&shape, size);
                let launches = model.launches(size, Address(1 << 30), &regions);
                assert_eq!(launches.len(), 2 + 7 * shape.layers);
                for launch in launches {
                    assert!(names.contains(&launch.kernel), "{}", launch.kernel);
                    assert!(launch.grid.iter().all(|blocks| *blocks > 0));
                    assert!(launch.grid[1] < 65_536);
                }
            }
        }
    }
}
