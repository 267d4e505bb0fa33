//! Compiles the kernels' own sources, with the emulated hardware in the place of the real one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=machine");
    println!("cargo:rerun-if-changed=../device");
    // The watch is called by instrumented code, and so has none itself.
    let mut watch = cc::Build::new();
    watch.cpp(true).std("c++17").file("machine/watch.cpp");
    watch.opt_level(2).warnings(true);
    watch.compile("vectide_cuda_watch");

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").file("machine/launch.cpp");
    build.include("machine").include("../device");
    // Calls at each access, which `watch.cpp` answers: the sanitizer's own library is not linked.
    build.flag("-fsanitize=thread");
    build.define("VECTIDE_EMULATOR", None);
    // Tests run thousands of blocks: optimised in every profile.
    build.opt_level(2).flag("-ftree-vectorize");
    // `#pragma unroll` is not a word of this compiler.
    build.warnings(true).flag("-Wno-unknown-pragmas");
    // A sum must not be contracted where the emulated instruction rounds in between, and jumps
    // between stacks are not what the checked `longjmp` is for.
    build.flag("-ffp-contract=off").flag("-U_FORTIFY_SOURCE");
    build.compile("vectide_cuda_emulator");
}
