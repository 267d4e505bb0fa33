//! Finds ONNX Runtime and loads it, once for the process.
//!
//! The order: the path in the configuration, the variable ORT_DYLIB_PATH, the system's loader.
//!
//! The binding panics when it is used without a library, so nothing else of it is called before [`load`] went
//! well. Worse, its rc.13 takes a library that it refused for a loaded one when it is asked again, and goes on with
//! memory that nobody wrote. So a library is opened by the system's loader first, which finds nearly all faults
//! before the binding is asked; and what the binding itself refuses is remembered, and it is not asked again.
//!
//! Invariant: the binding is asked to load once in a process; one process has one ONNX Runtime, and a model that
//! names another one is refused.

use ort::LoadDynamicError;
use ort::environment::Environment;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use vectide_model::ComponentError;

/// Names the library where the configuration does not; the binding's own variable.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// How to get one.
const HINT: &str = "set `library`, or the variable ORT_DYLIB_PATH, to the shared library of ONNX Runtime 1.17 or newer, \
     or to its folder: `onnxruntime/capi` of the Python package `onnxruntime` 1.19 or newer, or `lib` of an archive from \
     https://github.com/microsoft/onnxruntime/releases";

/// What became of asking the binding.
static ASKED: Mutex<Option<Result<PathBuf, ComponentError>>> = Mutex::new(None);

/// Loads the library, where that was not done before, and tells where it was found.
///
/// # Errors
/// When there is none, it is too old, or another one was loaded.
pub(crate) fn load(configured: Option<&Path>) -> Result<PathBuf, ComponentError> {
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(asked) = &*asked {
        let loaded = asked.clone()?;
        return match configured.map(in_folder).transpose()? {
            Some(other) if !is_same(&other, &loaded) => Err(in_use(&loaded, &other)),
            _ => Ok(loaded),
        };
    }
    let path = match configured {
        Some(path) => in_folder(path)?,
        None => match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => in_folder(Path::new(&path))?,
            None => default_name(),
        },
    };
    let path = beside_program(path)?;
    ort::util::preload_dylib(&path).map_err(|error| not_loaded(&path, &error.to_string()))?;
    let loaded = initialize(&path).map(|()| path);
    *asked = Some(loaded.clone());
    loaded
}

/// Lets the binding use a library that can be opened.
fn initialize(path: &Path) -> Result<(), ComponentError> {
    let builder = ort::init_from(path).map_err(|error| not_loaded(path, &detail(error)))?;
    builder.with_name("vectide").with_telemetry(false).commit();
    let environment = Environment::current();
    environment.map_err(|error| not_loaded(path, error.message()))?;
    Ok(())
}

/// The file of a plain name that lies beside the program: the binding looks there before it asks the system's
/// loader, and panics where it can't tell where that is.
fn beside_program(path: PathBuf) -> Result<PathBuf, ComponentError> {
    if path.is_absolute() {
        return Ok(path);
    }
    let program = std::env::current_exe();
    let program = program.map_err(|error| not_loaded(&path, &error.to_string()))?;
    let beside = program.with_file_name(&path);
    Ok(if beside.exists() { beside } else { path })
}

/// The library's file where `path` names the folder that has it.
fn in_folder(path: &Path) -> Result<PathBuf, ComponentError> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let plain = default_name();
    let plain = plain.to_string_lossy();
    let entries = std::fs::read_dir(path).map_err(|error| not_loaded(path, &error.to_string()))?;
    // Python's package has the version behind the name. Beside it lie libraries of providers, which
    // are called otherwise.
    let names = entries.flatten().map(|entry| entry.file_name());
    let found = names.filter(|name| name.to_string_lossy().starts_with(&*plain));
    let found = found.min().ok_or_else(|| {
        not_loaded(
            path,
            &format!("the folder has no file whose name begins with {plain}"),
        )
    })?;
    Ok(path.join(found))
}

fn default_name() -> PathBuf {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}").into()
}

fn is_same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn in_use(loaded: &Path, other: &Path) -> ComponentError {
    ComponentError::new(
        "library",
        format!(
            "ONNX Runtime is in use from {} already and can't be loaded from {} as well",
            loaded.display(),
            other.display()
        ),
        "let all models name the same library",
    )
}

fn detail(error: LoadDynamicError) -> String {
    match error {
        LoadDynamicError::Dlopen { error, .. } => error.to_string(),
        LoadDynamicError::MissingApi { .. } => "it is no ONNX Runtime (OrtGetApiBase)".into(),
        LoadDynamicError::BadVersion { version_str, .. } => {
            format!("its version is {version_str}, 1.17 or newer is needed")
        }
    }
}

fn not_loaded(path: &Path, detail: &str) -> ComponentError {
    let fact = format!(
        "ONNX Runtime can't be loaded from {}: {detail}",
        path.display()
    );
    ComponentError::new("library", fact, HINT)
}
