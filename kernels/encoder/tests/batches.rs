//! Random batches of real and odd texts: a text's vector has the same bits alone and in any batch,
//! in every order, on every arithmetic that this processor has.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/random_models.rs"]
mod random_models;

use proptest::prelude::*;
use random_models::{OTHERS, small_folder, small_other_folder};
use std::path::Path;
use std::sync::LazyLock;
use vectide_encoder::bert::{self, BertConfig};
use vectide_encoder::{Backend, Products, SentenceEncoder};
use vectide_model::{Embedder, Lane, OpenContext, Precision};

/// A small model of each architecture on each kind of arithmetic.
static MODELS: LazyLock<Vec<SentenceEncoder>> = LazyLock::new(|| {
    let folders = OTHERS.map(small_other_folder).into_iter();
    let folders = folders.chain([small_folder()]);
    folders
        .flat_map(|(_temporary, folder)| models(&folder))
        .collect()
});

fn models(folder: &Path) -> Vec<SentenceEncoder> {
    let context = OpenContext::in_folder("/");
    let mut models = Vec::new();
    for backend in Backend::available() {
        for (products, precision) in [
            (Products::F32, Precision::F32),
            (Products::Bf16, Precision::Bf16),
        ] {
            if products.are_available(backend) {
                let config = BertConfig {
                    max_tokens: Some(100),
                    precision,
                    ..BertConfig::in_folder(folder)
                };
                models.push(bert::open_on(&config, &context, backend).unwrap());
            }
        }
    }
    models
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ \n\u{0}]{1,5}",
        "([a-z]{1,9} ){1,12}",
        "([a-z]{1,4}[,.]? ){30,90}",
        "\\PC{1,40}",
        Just("x".repeat(500)),
        Just("🙂שלום".repeat(9)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_text_has_the_same_bits_in_any_batch(
        texts in proptest::collection::vec(text(), 1..40),
        order in any::<u64>(),
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for model in MODELS.iter() {
            let together = model.embed(Lane::Bulk, &texts).unwrap();
            let mut places: Vec<usize> = (0..texts.len()).collect();
            places.sort_by_key(|place| (*place as u64 + 1).wrapping_mul(order | 1));
            let shuffled: Vec<&str> = places.iter().map(|place| texts[*place]).collect();
            let once_more = model.embed(Lane::Bulk, &shuffled).unwrap();
            for (place, vector) in places.iter().zip(&once_more) {
                prop_assert!(*vector == together[*place], "{:?}", texts[*place]);
            }
            for (text, vector) in texts.iter().zip(&together).take(3) {
                let alone = model.embed(Lane::Query, &[text]).unwrap();
                prop_assert!(alone.len() == 1 && vector.iter().all(|value| value.is_finite()));
                let alone = model.embed(Lane::Bulk, &[text]).unwrap();
                prop_assert!(alone[0] == *vector, "alone: {text:?}");
            }
        }
    }
}
