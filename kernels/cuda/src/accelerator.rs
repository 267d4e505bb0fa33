//! A model on several devices, as an encoder of texts sees it.
//!
//! The encoder makes tokens and has the processor to go on with; what comes over is token ids and what
//! goes back are vectors, or why there are none ([`vectide_model::Accelerator`]).
//!
//! Invariant: nothing here knows a driver, so all of it runs in tests over the emulator.

use crate::encoder::Encoder;
use crate::launches::Pooling;
use crate::machine::Machine;
use crate::recovery::{Open, Recovering, Unavailable};
use crate::replicas::Replicas;
use crate::shape::BertShape;
use crate::sizes::{BULK_ROWS, BULK_SLOTS};
use crate::weights::WeightLayout;
use std::sync::Arc;
use vectide_model::{
    AcceleratedEncoder, AcceleratorFault, BertSizes, DeviceAnswer, Lane, NoAccelerator,
    TokenPooling,
};

/// Such a model's shape, if there are kernels for it.
///
/// # Errors
/// Names the size that there is none for.
pub fn shape_of(sizes: &BertSizes) -> Result<BertShape, NoAccelerator> {
    let shape = BertShape {
        vocabulary: sizes.vocabulary,
        positions: sizes.positions,
        first_position: sizes.first_position,
        types: sizes.token_types,
        layers: sizes.layers,
        heads: sizes.heads,
        head_size: sizes.head_size,
        intermediate: sizes.intermediate,
        epsilon: sizes.variance_floor,
        pooling: match sizes.pooling {
            TokenPooling::Mean => Pooling::Mean,
            TokenPooling::First => Pooling::First,
        },
        dimensions: sizes.dimensions,
    };
    let checked = shape.check();
    checked.map_err(|error| NoAccelerator(error.to_string()))?;
    Ok(shape)
}

/// The weights of a model's file as devices have them.
///
/// # Errors
/// When the file is not the shape's, or fp16 can't hold a number of it.
pub fn image_of(shape: &BertShape, weights: &[u8]) -> Result<Arc<[u8]>, NoAccelerator> {
    let image = WeightLayout::of(shape).read(weights);
    let image = image.map_err(|error| NoAccelerator(error.to_string()))?;
    Ok(image.into())
}

/// The model on devices.
pub struct OnDevices<O: Open> {
    replicas: Replicas<O>,
    device: String,
    names: Vec<String>,
}

impl<O: Open> OnDevices<O> {
    /// Of devices that were opened, with the name of each.
    pub fn new(devices: Vec<(String, Recovering<O>)>) -> Self {
        let (names, devices): (Vec<String>, Vec<_>) = devices.into_iter().unzip();
        Self {
            device: format!("cuda ({}, fp16)", counted(&names)),
            names,
            replicas: Replicas::new(devices),
        }
    }
}

/// Names in their order, equal ones once with their number: `2 x NVIDIA L4`.
pub(crate) fn counted(names: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match counts.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let told = counts.iter().map(|(name, count)| match count {
        1 => (*name).to_owned(),
        count => format!("{count} x {name}"),
    });
    told.collect::<Vec<_>>().join(" + ")
}

impl<M: Machine, O: Open<Device = Encoder<M>>> AcceleratedEncoder for OnDevices<O> {
    fn device(&self) -> &str {
        &self.device
    }

    /// Enough for every bulk slot of a device: a call cuts its texts into as many pieces, and one is
    /// copied while another is computed. Slots of a short memory are smaller, and are filled more often.
    fn tokens_per_call(&self) -> usize {
        BULK_SLOTS * BULK_ROWS
    }

    fn calls_at_once(&self) -> usize {
        self.names.len() * BULK_SLOTS
    }

    fn encode(&self, lane: Lane, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, AcceleratorFault> {
        let tokens = texts.iter().map(|text| text.len()).sum();
        let called = self
            .replicas
            .call(tokens, |encoder| encoder.encode(lane, texts));
        called.map_err(in_words)
    }

    fn encode_on_each(&self, lane: Lane, texts: &[&[u32]]) -> Vec<DeviceAnswer> {
        let answers = (self.replicas).call_each(|encoder| encoder.encode(lane, texts));
        let answers = answers.into_iter().map(|answer| answer.map_err(in_words));
        self.names.iter().cloned().zip(answers).collect()
    }
}

fn in_words(error: Unavailable) -> AcceleratorFault {
    match error {
        Unavailable::Lost(_) => AcceleratorFault::Lost(error.to_string()),
        Unavailable::Failed(_) => AcceleratorFault::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::FaultKind;
    use crate::testing::{EmulatedDevices, Faults, bert_config, bert_folder, context};
    use std::path::Path;
    use vectide_encoder::minilm::MiniLmConfig;
    use vectide_model::{ByteSize, Device, Embedder, EmbedderConfig, embedder_contract};

    const TEXTS: [&str; 5] = [
        "a short text",
        "another, longer text about engines (and their 12 parts), which goes on and on and on",
        "a short text",
        "",
        "日本語の文章",
    ];

    fn open(folder: &Path, device: Device, devices: &EmulatedDevices) -> Arc<dyn Embedder> {
        bert_config(folder, device)
            .open(&context(devices.clone()))
            .unwrap()
    }

    fn devices(count: usize) -> EmulatedDevices {
        EmulatedDevices {
            count,
            faults: Faults::default(),
        }
    }

    fn least_cosine(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().zip(expected);
        let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(x, y)| x * y).sum();
        pairs.map(cosine).fold(1.0, f32::min)
    }

    #[test]
    fn texts_get_the_processor_s_vectors_in_both_lanes() {
        let folder = bert_folder();
        let on_cpu = open(folder.path(), Device::Cpu, &devices(1));
        let on_gpu = open(folder.path(), Device::Cuda, &devices(2));
        assert_eq!(on_gpu.identity().device, "cuda (2 x emulated, fp16)");
        // A state moves between them.
        let fingerprint = &on_cpu.identity().fingerprint;
        assert_eq!(*fingerprint, on_gpu.identity().fingerprint);
        assert!(on_gpu.bulk_threads() > 2 * BULK_SLOTS);
        for lane in [Lane::Bulk, Lane::Query] {
            let (found, expected) = (on_gpu.embed(lane, &TEXTS), on_cpu.embed(lane, &TEXTS));
            let (found, expected) = (found.unwrap(), expected.unwrap());
            let cosine = least_cosine(&found, &expected);
            assert!(cosine >= 0.9999, "{cosine}");
            assert_ne!(found, expected);
            assert_eq!(found[0], found[2]);
        }
        embedder_contract(&*on_gpu);
    }

    /// Whatever of it fails: opening a new context does too, and the device is given up.
    #[test]
    fn a_device_that_is_lost_leaves_all_to_the_processor() {
        let folder = bert_folder();
        let expected = open(folder.path(), Device::Cpu, &devices(1));
        let expected = expected.embed(Lane::Bulk, &TEXTS).unwrap();
        for calls in [0, 3] {
            let devices = devices(2);
            let embedder = open(folder.path(), Device::Auto, &devices);
            assert_ne!(embedder.embed(Lane::Bulk, &TEXTS).unwrap(), expected);
            devices.faults.fail_after(calls, FaultKind::Sticky);
            assert_eq!(embedder.embed(Lane::Bulk, &TEXTS).unwrap(), expected);
            devices.faults.never();
            assert_eq!(embedder.embed(Lane::Bulk, &TEXTS).unwrap(), expected);
        }
    }

    #[test]
    fn a_call_that_fails_is_made_by_the_processor_and_eight_in_a_row_are_the_last() {
        let folder = bert_folder();
        let devices = devices(1);
        let on_cpu = open(folder.path(), Device::Cpu, &devices);
        let on_cpu = on_cpu.embed(Lane::Query, &TEXTS).unwrap();
        let embedder = open(folder.path(), Device::Auto, &devices);
        let embed = || embedder.embed(Lane::Query, &TEXTS).unwrap();
        let on_gpu = embed();
        assert_ne!(on_cpu, on_gpu);
        for failures in [1, 7, 7] {
            devices.faults.fail_after(0, FaultKind::Refused);
            (0..failures).for_each(|_| assert_eq!(embed(), on_cpu));
            devices.faults.never();
            assert_eq!(embed(), on_gpu);
        }
        devices.faults.fail_after(0, FaultKind::OutOfMemory);
        (0..8).for_each(|_| assert_eq!(embed(), on_cpu));
        devices.faults.never();
        assert_eq!(embed(), on_cpu);
    }

    #[test]
    fn what_a_device_can_t_hold_is_for_the_processor_or_an_error() {
        let folder = bert_folder();
        let mut config = bert_config(folder.path(), Device::Auto);
        config.device_memory = Some(ByteSize::mebibytes(1));
        let opened = config.open(&context(devices(1))).unwrap();
        assert!(opened.identity().device.starts_with("cpu ("));
        config.device = Device::Cuda;
        let error = config.open(&context(devices(1))).err().unwrap();
        assert_eq!(error.field, "device");
        assert!(error.fact.contains("1 MiB may be used"), "{error}");
        assert!(error.hint.contains("device: auto"));
    }

    #[test]
    fn numbers_that_it_does_not_compute_with_are_for_the_processor() {
        let folder = bert_folder();
        let mut config = bert_config(folder.path(), Device::Auto);
        config.precision = vectide_model::Precision::F32;
        let opened = config.open(&context(devices(1))).unwrap();
        assert!(opened.identity().device.starts_with("cpu ("));
        config.device = Device::Cuda;
        for refused in [
            config.open(&context(devices(1))).err(),
            config.locate(&context(devices(1))).err(),
        ] {
            assert!(refused.unwrap().fact.contains("fp16"));
        }
    }

    /// The published weights pass the check at the start, by their name, where this machine has them.
    #[test]
    #[ignore = "takes minutes, and may fetch the model"]
    fn all_minilm_is_opened_by_its_name() {
        let config = MiniLmConfig {
            device: Device::Cuda,
            ..MiniLmConfig::default()
        };
        let opened = config.open(&context(devices(1))).unwrap();
        assert_eq!(opened.identity().device, "cuda (emulated, fp16)");
        let config = MiniLmConfig {
            device: Device::Cpu,
            ..config
        };
        let on_cpu = config.open(&context(devices(1))).unwrap();
        assert_eq!(on_cpu.identity().fingerprint, opened.identity().fingerprint);
    }

    #[test]
    fn equal_devices_are_counted() {
        let names = ["A", "B", "A"].map(str::to_owned);
        assert_eq!(counted(&names), "2 x A + B");
    }
}
