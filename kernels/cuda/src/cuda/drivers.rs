//! Every driver that a machine may have, but for a real one: none, damaged ones, and libraries that the C
//! compiler makes of `testing/fake_driver.c`, in processes of their own, since a library is loaded once.
//!
//! The last kind runs its launches on the emulator: what the driver is called with, in which order, by how
//! many threads, is what it would be on a GPU, and the vectors are right.
//!
//! Invariant: a child ends without a signal or a panic, and says what was opened, or why not.

// A library is put in the driver's place by `LD_LIBRARY_PATH`.
#![cfg(target_os = "linux")]

use super::Gpus;
use crate::testing::{bert_config, bert_folder, context};
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use vectide_cuda_emulator::{Schedule, Shape, argument_count};
use vectide_model::{Device, Embedder, EmbedderConfig, Lane};

/// Names the folder of the model in a child.
const FOLDER: &str = "VECTIDE_TEST_FOLDER";
/// Whether the child's launches are run.
const COMPUTES: &str = "VECTIDE_TEST_COMPUTES";
const TEXTS: [&str; 3] = [
    "a short text",
    "",
    "another text, a little longer, of some parts",
];

/// What a child has said.
#[derive(Debug)]
struct Said {
    /// Of `device: auto`, then of `device: cuda`.
    lines: Vec<String>,
    log: String,
}

impl Said {
    /// Asserts that the processor was used, that one line of the log says so and why, and that
    /// `device: cuda` is an error with the same reason.
    fn assert_on_cpu(&self, why: &str) {
        assert!(self.lines[0].starts_with("opened on cpu ("), "{self:?}");
        assert!(
            self.lines[1].starts_with("`device: cuda` can't be had: "),
            "{self:?}"
        );
        assert!(self.lines[1].contains(why), "{self:?}");
        let told: Vec<&str> = (self.log.lines())
            .filter(|line| !line.contains("prefixes of queries"))
            .collect();
        assert_eq!(told.len(), 1, "{self:?}");
        assert!(
            told[0].contains("embedding on the CPU") && told[0].contains(why),
            "{self:?}"
        );
    }
}

/// Opens the model in a process that finds `library` in the place of the driver's.
fn open_with(library: Option<&Path>, mode: &str, set: &[(&str, &str)]) -> Said {
    let model = bert_folder();
    let nothing = tempfile::tempdir().unwrap();
    let libraries = library.map_or(nothing.path(), |library| library.parent().unwrap());
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cuda::drivers::in_a_child",
            "--ignored",
            "--nocapture",
        ])
        .env("LD_LIBRARY_PATH", libraries)
        .env("VECTIDE_FAKE_CUDA", mode)
        .env(FOLDER, model.path())
        .envs(set.iter().copied())
        .output()
        .unwrap();
    let (out, log) = (
        String::from_utf8(child.stdout).unwrap(),
        String::from_utf8(child.stderr).unwrap(),
    );
    assert!(child.status.success(), "{:?}: {out}{log}", child.status);
    let lines = out.lines().filter_map(|line| line.split_once("SAID "));
    Said {
        lines: lines.map(|(_, said)| said.to_owned()).collect(),
        log,
    }
}

/// The library of `testing/fake_driver.c`.
fn library(folder: &Path, defines: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testing/fake_driver.c");
    let library = folder.join("libcuda.so");
    let compiled = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O1",
            "-shared",
            "-fPIC",
            "-o",
        ])
        .arg(&library)
        .arg(source)
        .args(defines)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    library
}

extern "C" fn run(
    kernel: *const c_char,
    grid_x: u32,
    grid_y: u32,
    threads: u32,
    shared_bytes: usize,
    words: *mut u64,
    count: usize,
) -> c_int {
    let shape = Shape {
        grid: [grid_x, grid_y],
        threads,
        shared_bytes,
    };
    // SAFETY: the fake driver's name ends with NUL, its words are as many as it says, and they are what
    // `launches` has made for the kernel, in memory that the fake driver has given.
    let launched = unsafe {
        let kernel = CStr::from_ptr(kernel).to_str().unwrap();
        let words = std::slice::from_raw_parts_mut(words, count);
        vectide_cuda_emulator::launch(kernel, shape, words, &Schedule::default())
    };
    c_int::from(launched.is_err())
}

extern "C" fn count(kernel: *const c_char) -> usize {
    // SAFETY: the fake driver's name ends with NUL.
    argument_count(unsafe { CStr::from_ptr(kernel) })
}

type Run = extern "C" fn(*const c_char, u32, u32, u32, usize, *mut u64, usize) -> c_int;
type Count = extern "C" fn(*const c_char) -> usize;

/// Hands the emulator to the fake driver.
fn make_the_driver_compute() {
    // SAFETY: the fake driver is there, and its function has this signature.
    unsafe {
        let library = cudarc::driver::sys::culib();
        let set = library.get::<unsafe extern "C" fn(Run, Count)>(b"vectide_fake_set_kernels");
        set.unwrap()(run, count);
    }
}

/// What each child does.
#[test]
#[ignore = "is run by the other tests, in a process of its own"]
fn in_a_child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if std::env::var_os(COMPUTES).is_some() {
        make_the_driver_compute();
    }
    let open = |device| bert_config(&folder, device).open(&context(Gpus));
    let auto = open(Device::Auto).unwrap();
    let least = least_cosine(&*auto, &*open(Device::Cpu).unwrap());
    println!("SAID opened on {}, {least}", auto.identity().device);
    drop(auto);
    match open(Device::Cuda) {
        Ok(opened) => println!("SAID opened on {}", opened.identity().device),
        Err(error) => println!("SAID {}", error.fact),
    }
}

/// Of vectors in both lanes.
fn least_cosine(found: &dyn Embedder, expected: &dyn Embedder) -> f32 {
    let mut least = 1.0_f32;
    for lane in [Lane::Bulk, Lane::Query] {
        let found = found.embed(lane, &TEXTS).unwrap();
        let expected = expected.embed(lane, &TEXTS).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            least = least.min(found.iter().zip(expected).map(|(x, y)| x * y).sum());
        }
    }
    least
}

#[test]
fn without_a_library_or_with_a_damaged_one_the_processor_is_used() {
    if super::probe().is_err() {
        open_with(None, "", &[]).assert_on_cpu("libcuda is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("libcuda.so");
    for contents in [&b""[..], b"not a library", b"\x7fELF"] {
        std::fs::write(&damaged, contents).unwrap();
        if super::probe().is_err() {
            open_with(Some(&damaged), "", &[]).assert_on_cpu("libcuda is not installed");
        }
    }
    let partial = library(folder.path(), &["-DWITHOUT_THE_REST"]);
    open_with(Some(&partial), "", &[]).assert_on_cpu("lacks the function cuCtxCreate_v4");
}

#[test]
fn a_driver_or_device_that_is_of_no_use_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), &[]);
    for (mode, why) in [
        ("stub", "fails to start: CUDA_ERROR_STUB_LIBRARY"),
        ("no-device", "fails to start: CUDA_ERROR_NO_DEVICE"),
        ("empty", "has no device"),
        ("old-driver", "is for CUDA 12.4, and the kernels need 13.0"),
        (
            "old-device",
            "none of compute capability 8.0 or later: Fake GPU (7.5)",
        ),
        ("no-binary", "the binary is for other architectures"),
        ("little-memory", "of GPU memory, and 1 MiB may be used"),
        ("out-of-memory", "not enough of its memory is free"),
        // Its launches do nothing.
        ("idle", "text 0 has no vector"),
    ] {
        open_with(Some(&library), mode, &[]).assert_on_cpu(why);
    }
}

#[test]
fn a_device_that_computes_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), &[]);
    let said = open_with(Some(&library), "", &[(COMPUTES, "1")]);
    let found = said.lines[0].strip_prefix("opened on cuda (Fake GPU, fp16), ");
    let cosine: f32 = found.unwrap_or_else(|| panic!("{said:?}")).parse().unwrap();
    assert!((0.9999..1.001).contains(&cosine), "{said:?}");
    assert_eq!(said.lines[1], "opened on cuda (Fake GPU, fp16)");
    assert!(said.log.contains("embedding on an accelerator"), "{said:?}");
}

/// The check at the start has 72 launches, of nine each for a call of one layer.
#[test]
fn a_context_that_is_lost_is_made_anew_or_the_processor_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), &[]);
    for (mode, is_given_up) in [("", false), ("lost-for-good", true)] {
        let set = [(COMPUTES, "1"), ("VECTIDE_FAKE_CUDA_LAUNCHES", "75")];
        let said = open_with(Some(&library), mode, &set);
        assert!(
            said.lines[0].starts_with("opened on cuda (Fake GPU"),
            "{said:?}"
        );
        let (_, cosine) = said.lines[0].split_once(", fp16), ").unwrap();
        assert!(cosine.parse::<f32>().unwrap() >= 0.9999, "{said:?}");
        assert!(said.log.contains("the GPU's context is lost"), "{said:?}");
        let goes_on = said.log.contains("embedding goes on on the CPU");
        assert_eq!(goes_on, is_given_up, "{said:?}");
    }
}
