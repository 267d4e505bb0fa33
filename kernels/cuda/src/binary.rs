//! The kernels as the real compiler has compiled them, kept in the repository so that no build needs
//! it (`scripts/cuda_compile.sh` makes and checks them).
//!
//! Invariant: the binary is that of the sources in `device/` as they are; the test here fails where a
//! source was changed and the script not run.

/// Bytes at an address that suits the numbers of a binary's header.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../device/kernels.fatbin"));

/// Code for compute capability 8.0 and 9.0, and PTX that newer devices compile.
pub static KERNELS: &[u8] = &ALIGNED.0;

/// What the binary was made of: compiler, flags, hashes, and the registers of each kernel.
pub const MANIFEST: &str = include_str!("../device/kernels.manifest");

/// The least compute capability that the binary runs on, major and minor.
pub const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// Names of the kernels in the binary.
pub fn kernel_names() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    MANIFEST.lines().filter_map(move |line| {
        // Sorted, a line an architecture.
        let name = line.strip_prefix("kernel ")?.split(' ').next()?;
        let is_new = name != last;
        last = name;
        is_new.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn hash(bytes: &[u8]) -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_binary_is_that_of_the_sources() {
        let hint = "a kernel's source was changed: run scripts/cuda_compile.sh";
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("device");
        let sources: BTreeMap<String, String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
            .filter(|(name, _)| name.ends_with(".cu") || name.ends_with(".cuh"))
            .map(|(name, path)| (name, hash(&std::fs::read(path).unwrap())))
            .collect();
        let stated: BTreeMap<String, String> = MANIFEST
            .lines()
            .filter_map(|line| line.strip_prefix("source ")?.split_once(' '))
            .map(|(name, hash)| (name.to_owned(), hash.to_owned()))
            .collect();
        assert_eq!(sources, stated, "{hint}");
        let binary = MANIFEST
            .lines()
            .find_map(|line| line.strip_prefix("binary "));
        assert_eq!(binary, Some(hash(KERNELS).as_str()), "{hint}");
        assert_eq!(KERNELS.as_ptr() as usize % 16, 0);
    }

    /// Other flags make another binary of the same sources.
    #[test]
    fn the_binary_is_that_of_the_script_s_compiler_and_flags() {
        let hint = "compiler or flags were changed: run scripts/cuda_compile.sh";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/cuda_compile.sh");
        let script = std::fs::read_to_string(path).unwrap();
        let between = |start: &str, end: &str| {
            let (_, behind) = script.split_once(start).unwrap();
            let words = behind.split_once(end).unwrap().0.split_whitespace();
            words.collect::<Vec<_>>().join(" ")
        };
        let stated = |name: &str| MANIFEST.lines().find_map(|line| line.strip_prefix(name));
        let compiler = between("\ncompiler=", "\n");
        assert_eq!(stated("compiler "), Some(compiler.as_str()), "{hint}");
        let flags = between("\nflags=(", ")");
        assert_eq!(stated("flags "), Some(flags.as_str()), "{hint}");
    }

    #[test]
    fn kernels_are_named_once() {
        let names: Vec<&str> = kernel_names().collect();
        assert!(names.contains(&"linear_gelu_128") && names.contains(&"pool_texts"));
        let mut distinct = names.clone();
        distinct.dedup();
        assert_eq!(names, distinct);
    }
}
