//! `vectide-gpu-verify`: whether a machine's GPU computes what it should, and how fast.
//!
//! It needs a driver and nothing else: kernels are in it, and weights are random ones but for `golden`.
//! Lines of JSON go to the standard output.
//!
//! ```text
//! vectide-gpu-verify probe              the devices, or in one line why there is none
//! vectide-gpu-verify check [SEED]       every kernel against f64
//! vectide-gpu-verify check-small        the same on little data, for a sanitizer
//! vectide-gpu-verify image WEIGHTS OUT  MiniLM's safetensors as the image that goes to a device, half
//!                                       as large; needs no device
//! vectide-gpu-verify golden IMAGE DIR   that model against golden vectors
//! vectide-gpu-verify measure            products, exact search, encoders
//! ```
//!
//! Each line is written as soon as its check or figure is there.
//!
//! Invariant: the status is 0 only when all that was asked for was done and right; 1 when all was done
//! and something is wrong; another when not all was done.

use std::path::Path;
use std::process::ExitCode;
use vectide_cuda::cuda::{CudaMachine, DeviceFacts, probe};
use vectide_cuda::encoder::Encoder;
use vectide_cuda::shape::BertShape;
use vectide_cuda::verify::{
    Effort, Outcome, check_all, check_golden, measure_encoder, measure_linear, measure_memory,
    measure_nearest, read_golden,
};
use vectide_cuda::weights::WeightLayout;

/// Products of one layer of MiniLM and of BGE-base at the rows of a bulk batch, and a large one for
/// what the kernel reaches at best.
const PRODUCTS: [[usize; 3]; 9] = [
    [8192, 8192, 8192],
    [8192, 384, 1152],
    [8192, 384, 384],
    [8192, 384, 1536],
    [8192, 1536, 384],
    [8192, 768, 2304],
    [8192, 768, 768],
    [8192, 768, 3072],
    [8192, 3072, 768],
];
/// 1.5 GiB read and as much written: far beyond every cache.
const MEMORY_ROWS: usize = 1 << 20;
/// Launches of a product in a row, so that starting them costs nothing.
const PRODUCT_LAUNCHES: usize = 20;
/// Tokens of a rate: some thirty batches of the bulk lane.
const TOKENS: usize = 250_000;
/// Calls of a delay.
const QUERIES: usize = 3000;
/// The status when not all was done.
const BROKEN_OFF: u8 = 2;

const USAGE: &str = "usage: vectide-gpu-verify \
    probe | check [SEED] | check-small | image WEIGHTS OUT | golden IMAGE DIR | measure";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["image", weights, out] = words.as_slice() {
        return status(write_image(weights.as_ref(), out.as_ref()).map(|()| true));
    }
    let device = match probe() {
        Ok(devices) => devices.into_iter().next(),
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(BROKEN_OFF);
        }
    };
    let Some(device) = device else {
        return ExitCode::from(BROKEN_OFF);
    };
    status(match words.as_slice() {
        ["probe"] => {
            describe(&device);
            Ok(true)
        }
        ["check"] => check(&device, Effort::Full, 1),
        ["check", seed] => match seed.parse() {
            Ok(seed) => check(&device, Effort::Full, seed),
            Err(_) => Err(format!("`{seed}` is not a seed")),
        },
        ["check-small"] => check(&device, Effort::Small, 1),
        ["golden", image, folder] => golden(&device, image.as_ref(), folder.as_ref()),
        ["measure"] => measure(&device).map(|()| true),
        _ => Err(USAGE.into()),
    })
}

fn status(done: Result<bool, String>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::from(BROKEN_OFF)
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write_image(weights: &Path, out: &Path) -> Result<(), String> {
    let layout = WeightLayout::of(&BertShape::MINILM_L6);
    let image = layout
        .read(&read(weights)?)
        .map_err(|error| error.to_string())?;
    std::fs::write(out, image).map_err(|error| format!("{}: {error}", out.display()))
}

fn describe(device: &DeviceFacts) {
    let (major, minor) = device.capability;
    println!(
        r#"{{"device":"{}","capability":"{major}.{minor}","multiprocessors":{},"memory_mib":{}}}"#,
        device.name,
        device.multiprocessors,
        device.memory_bytes >> 20
    );
}

fn open(device: &DeviceFacts) -> Result<CudaMachine, String> {
    CudaMachine::open(device).map_err(|fault| fault.to_string())
}

/// Whether everything is right.
fn check(device: &DeviceFacts, effort: Effort, seed: u64) -> Result<bool, String> {
    let mut is_right = true;
    let mut tell = |outcome: &Outcome| {
        is_right &= outcome.passes();
        println!("{}", outcome.json());
    };
    let ended = check_all(open(device)?, effort, seed, &mut tell);
    ended.map_err(|fault| format!("the other checks were not made: {fault}"))?;
    Ok(is_right)
}

/// Whether a real model gives the vectors that another implementation has given.
fn golden(device: &DeviceFacts, image: &Path, folder: &Path) -> Result<bool, String> {
    let shape = BertShape::MINILM_L6;
    let image = read(image)?;
    let encoder = Encoder::open(open(device)?, shape, &image, None);
    let encoder = encoder.map_err(|error| error.to_string())?;
    let outcome = check_golden(&encoder, &read_golden(folder, shape.dimensions)?)?;
    println!("{}", outcome.json());
    Ok(outcome.passes())
}

fn measure(device: &DeviceFacts) -> Result<(), String> {
    let machine = open(device)?;
    let measured = measure_memory(&machine, MEMORY_ROWS);
    println!("{}", measured.map_err(|fault| fault.to_string())?.json());
    for size in PRODUCTS {
        let measured = measure_linear(&machine, size, PRODUCT_LAUNCHES);
        println!("{}", measured.map_err(|fault| fault.to_string())?.json());
    }
    for queries in [1, 64, 256] {
        let measured = measure_nearest(&machine, 1_000_000, queries);
        println!("{}", measured.map_err(|fault| fault.to_string())?.json());
    }
    drop(machine);
    for (name, shape) in [
        ("MiniLM-L6", BertShape::MINILM_L6),
        ("BGE-base", BertShape::BGE_BASE),
    ] {
        let image = WeightLayout::of(&shape).random_image(1);
        let encoder =
            Encoder::open(open(device)?, shape, &image, None).map_err(|error| error.to_string())?;
        let measured = measure_encoder(name, &encoder, TOKENS, QUERIES);
        for figure in measured.map_err(|error| error.to_string())? {
            println!("{}", figure.json());
        }
    }
    Ok(())
}
