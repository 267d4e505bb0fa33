//! A model on every GPU there is, each opened anew when its context is lost.
//!
//! The weights' image stays in the host's memory for that.
//!
//! Invariant: a device that can't be opened takes none of the others with it, and a call is answered as
//! long as one device is ready.

use super::probe::those_that_work;
use super::{CudaMachine, DeviceFacts, NoGpu, probe};
use crate::encoder::Encoder;
use crate::recovery::{Open, Recovering, Unavailable};
use crate::replicas::Replicas;
use crate::shape::BertShape;
use std::sync::Arc;
use vectide_model::Lane;

/// Opens a model on one device.
pub struct CudaOpener {
    device: DeviceFacts,
    shape: BertShape,
    image: Arc<[u8]>,
    budget_bytes: Option<usize>,
}

impl Open for CudaOpener {
    type Device = Encoder<CudaMachine>;

    fn open(&self) -> Result<Self::Device, String> {
        let machine = CudaMachine::open(&self.device).map_err(|fault| fault.to_string())?;
        Encoder::open(machine, self.shape, &self.image, self.budget_bytes)
            .map_err(|error| error.to_string())
    }
}

/// A model on all devices.
pub struct CudaEncoder {
    replicas: Replicas<CudaOpener>,
}

impl CudaEncoder {
    /// Opens a model, whose weights are `image`, with at most `budget_bytes` of each device's memory.
    ///
    /// # Errors
    /// When there is no device that can run the kernels, or the model can be opened on none. One on which
    /// it can't be opened is left out and told.
    pub fn open(
        shape: BertShape,
        image: Arc<[u8]>,
        budget_bytes: Option<usize>,
    ) -> Result<Self, NoGpu> {
        let open = |device: DeviceFacts| {
            let name = device.name.clone();
            let opener = CudaOpener {
                device,
                shape,
                image: image.clone(),
                budget_bytes,
            };
            Recovering::open(opener).map_err(|reason| NoGpu(format!("{name}: {reason}")))
        };
        let devices = those_that_work(probe()?.into_iter().map(open))?;
        Ok(Self {
            replicas: Replicas::new(devices),
        })
    }

    /// The vectors of texts' tokens, from the device with the least to do.
    ///
    /// # Errors
    /// When all devices are lost, a text is not the model's, or the call itself fails.
    pub fn encode(&self, lane: Lane, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, Unavailable> {
        let tokens = texts.iter().map(|text| text.len()).sum();
        self.replicas
            .call(tokens, |encoder| encoder.encode(lane, texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::WeightLayout;

    #[test]
    fn without_a_gpu_the_probe_s_line_is_the_error() {
        if let Err(why) = probe() {
            let shape = BertShape::MINILM_L6;
            let image = vec![0; WeightLayout::of(&shape).bytes].into();
            let error = CudaEncoder::open(shape, image, None).err();
            assert_eq!(error, Some(why));
        }
    }
}
