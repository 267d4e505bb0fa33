//! A model on every GPU there is, each opened anew when its context is lost.
//!
//! The weights' image stays in the host's memory for that.
//!
//! Invariant: a device that can't be opened takes none of the others with it, and a call is answered as
//! long as one device is ready.

use super::probe::those_that_work;
use super::{CudaMachine, DeviceFacts, NoGpu, probe};
use crate::accelerator::{OnDevices, counted, image_of, shape_of};
use crate::encoder::Encoder;
use crate::recovery::{Open, Recovering};
use crate::shape::BertShape;
use std::sync::Arc;
use vectide_model::{AcceleratedEncoder, Accelerator, BertSizes, NoAccelerator};

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

/// All GPUs of this machine that can run the kernels.
pub struct Gpus;

impl Accelerator for Gpus {
    fn look(&self, sizes: &BertSizes) -> Result<String, NoAccelerator> {
        shape_of(sizes)?;
        let names: Vec<String> = (found()?.into_iter()).map(|device| device.name).collect();
        Ok(counted(&names))
    }

    /// One on which the model can't be opened is left out and told.
    fn open(
        &self,
        sizes: &BertSizes,
        weights: &[u8],
        memory_bytes_max: Option<usize>,
    ) -> Result<Box<dyn AcceleratedEncoder>, NoAccelerator> {
        let shape = shape_of(sizes)?;
        let devices = found()?;
        // Read only where there is a device for it.
        let image = image_of(&shape, weights)?;
        let open = |device: DeviceFacts| {
            let name = device.name.clone();
            let opener = CudaOpener {
                device,
                shape,
                image: image.clone(),
                budget_bytes: memory_bytes_max,
            };
            match Recovering::open(opener) {
                Ok(device) => Ok((name, device)),
                Err(reason) => Err(NoGpu(format!("{name}: {reason}"))),
            }
        };
        let opened = those_that_work(devices.into_iter().map(open));
        // There are some, so the reasons stand alone.
        let opened = opened.map_err(|NoGpu(reasons)| NoAccelerator(reasons))?;
        Ok(Box::new(OnDevices::new(opened)))
    }
}

fn found() -> Result<Vec<DeviceFacts>, NoAccelerator> {
    probe().map_err(in_words)
}

fn in_words(why: NoGpu) -> NoAccelerator {
    NoAccelerator(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::TokenPooling;

    /// All-MiniLM-L6-v2.
    const SIZES: BertSizes = BertSizes {
        vocabulary: 30_522,
        positions: 512,
        first_position: 0,
        token_types: 2,
        layers: 6,
        heads: 12,
        head_size: 32,
        intermediate: 1536,
        variance_floor: 1e-12,
        pooling: TokenPooling::Mean,
        dimensions: 384,
    };

    #[test]
    fn without_a_gpu_the_probe_s_line_is_the_error() {
        if let Err(why) = probe() {
            let why = in_words(why);
            assert_eq!(Gpus.look(&SIZES), Err(why.clone()));
            // Before anything is made of the weights.
            assert_eq!(Gpus.open(&SIZES, &[], None).err(), Some(why));
        }
    }

    #[test]
    fn a_model_without_kernels_is_refused_whatever_the_machine_has() {
        let sizes = BertSizes {
            heads: 10,
            dimensions: 320,
            ..SIZES
        };
        let NoAccelerator(why) = Gpus.look(&sizes).unwrap_err();
        assert_eq!(
            why,
            "no kernel for a model of width 320: supported are 384, 768 and 1024"
        );
    }
}
