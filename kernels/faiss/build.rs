//! Compiles the shim against the headers that the faiss-sys crate installed beside the library it
//! built, so that library and headers can't be of different versions and no copy of FAISS is kept
//! here.

use std::env;
use std::path::PathBuf;
use std::process::exit;

fn main() {
    println!("cargo:rerun-if-changed=shim/shim.cpp");
    println!("cargo:rerun-if-changed=build.rs");
    let include = include_directory();
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").file("shim/shim.cpp");
    // As system headers: FAISS's own warnings are not ours.
    build.flag("-isystem").flag(include);
    build.flag("-fopenmp");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        // As `.cargo/config.toml` says for FAISS itself: its inline code must agree on SIMD types.
        for flag in ["-mavx2", "-mfma", "-mf16c"] {
            build.flag(flag);
        }
    }
    build.compile("vectide_faiss_shim");
}

/// cargo hands the folder on from faiss-sys's build script (`links = "faiss_c"`, `root=`).
fn include_directory() -> PathBuf {
    let root = env::var_os("DEP_FAISS_C_ROOT").map(PathBuf::from);
    match root.map(|root| root.join("include")) {
        Some(include) if include.join("faiss/IndexIVF.h").is_file() => include,
        found => {
            eprintln!("error: the FAISS headers are not where faiss-sys installs them: {found:?}");
            eprintln!(
                "hint: `cargo clean -p faiss-sys` and build again, with its feature `static`"
            );
            exit(1);
        }
    }
}
