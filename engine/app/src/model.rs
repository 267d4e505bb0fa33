//! `vectide model fetch`: a model's files into the local cache, so that nothing is fetched later.

use crate::failure::Failure;
use vectide_encoder::model_files;

/// Fetches a model and prints where its files are.
///
/// # Errors
/// When there is no such model or it can't be had anywhere.
pub fn fetch(name: &str) -> Result<(), Failure> {
    let files = model_files::fetch(name)?;
    println!("{}", files.weights.display());
    println!("{}", files.tokenizer.display());
    Ok(())
}
