//! A machine without ONNX Runtime: an error that says how to get it, never a panic, and nothing that stands in the
//! way of the right library afterwards. A process loads one for good, so these tests have a program of their own.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/graphs.rs"]
mod graphs;
#[path = "support/runtime.rs"]
mod runtime;

use graphs::Variant;
use std::path::{Path, PathBuf};
use std::process::Command;
use vectide_model::{ComponentError, Lane, OpenContext};
use vectide_onnx::{OnnxConfig, locate, open};

const VARIABLE: &str = "ORT_DYLIB_PATH";

fn context() -> OpenContext {
    OpenContext::in_folder("/")
}

fn config(folder: &Path, library: Option<PathBuf>) -> OnnxConfig {
    OnnxConfig {
        path: folder.into(),
        library,
        ..OnnxConfig::default()
    }
}

fn check_missing(error: &ComponentError, words: &str) {
    assert_eq!(error.field, "library", "{error:?}");
    assert!(error.fact.contains(words), "{error:?}");
    assert!(error.hint.contains("onnxruntime/capi"), "{error:?}");
}

/// The C library that this program has loaded: a library, but not ONNX Runtime.
fn c_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    let mut paths = paths.filter(|path| path.contains("/libc.so") || path.contains("/libc-"));
    paths.next().unwrap().into()
}

#[test]
fn what_is_no_library_is_an_error_until_the_right_one_is_named() {
    let folder = graphs::folder(&Variant::default());
    let path = folder.path();
    std::fs::write(path.join("empty.so"), "").unwrap();
    std::fs::write(path.join("text.so"), "no library at all").unwrap();
    std::fs::create_dir(path.join("libraries")).unwrap();
    for (library, words) in [
        (
            "/nowhere/libonnxruntime.so".into(),
            "/nowhere/libonnxruntime.so",
        ),
        (path.join("empty.so"), "empty.so"),
        (path.join("text.so"), "text.so"),
        (
            path.join("libraries"),
            "no file whose name begins with libonnxruntime",
        ),
    ] {
        for _ in 0..2 {
            let config = config(path, Some(library.clone()));
            check_missing(&open(&config, &context()).err().unwrap(), words);
            check_missing(&locate(&config, &context()).err().unwrap(), words);
        }
    }
    let Some(right) = runtime::library("the right library") else {
        return;
    };
    let right = config(path, Some(right));
    let model = open(&right, &context()).unwrap();
    assert_eq!(model.embed(Lane::Query, &["water"]).unwrap().len(), 1);
    // Whoever names none gets the one that is loaded, and nobody gets another.
    open(&config(path, None), &context()).unwrap();
    let other = config(path, Some(c_library()));
    let error = open(&other, &context()).err().unwrap();
    assert!(
        error.field == "library" && error.fact.contains("in use"),
        "{error:?}"
    );
}

/// Opens a model that names no library; the tests below run this with other variables.
#[test]
#[ignore = "run by the tests below"]
fn child() {
    let folder = graphs::folder(&Variant::default());
    let config = config(folder.path(), None);
    let located = locate(&config, &context());
    match open(&config, &context()) {
        Ok(_) => println!("opened"),
        Err(error) => {
            assert_eq!(located, Err(error.clone()));
            println!("{}: {}; {}", error.field, error.fact, error.hint);
        }
    }
}

fn run_child(variable: Option<&Path>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]);
    command.env_remove(VARIABLE);
    if let Some(path) = variable {
        command.env(VARIABLE, path);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_variable_names_the_library() {
    let told = run_child(Some(Path::new("/nowhere/libonnxruntime.so")));
    assert!(
        told.contains("library: ONNX Runtime can't be loaded from /nowhere/"),
        "{told}"
    );
    // A library that is another one's is not asked for anything, however often.
    let told = run_child(Some(&c_library()));
    assert!(told.contains("it is no ONNX Runtime"), "{told}");
    let Some(library) = runtime::library("the variable") else {
        return;
    };
    let told = run_child(Some(&library));
    assert!(told.contains("opened"), "{told}");
    let file = std::fs::read_dir(&library).unwrap().next().unwrap();
    let told = run_child(Some(&file.unwrap().path()));
    assert!(told.contains("opened"), "{told}");
}

/// The system may have one or not.
#[test]
fn the_systems_loader_is_asked_last() {
    let told = run_child(None);
    let is_missing = told.contains("library: ONNX Runtime can't be loaded from libonnxruntime");
    assert!(is_missing || told.contains("opened"), "{told}");
}
