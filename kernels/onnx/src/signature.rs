//! What a graph asks for and gives: which inputs are fed, and which output has the vectors.
//!
//! Invariant: every input of the graph is fed what its name says; a graph that asks for anything else, or whose
//! sizes are fixed, is refused before it is run.

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};
use vectide_encoder::Pooling;
use vectide_model::ComponentError;

/// Outputs that have a vector a token, by name.
const TOKEN_OUTPUTS: [&str; 2] = ["last_hidden_state", "token_embeddings"];
/// The output that has a vector a text.
const SENTENCE_OUTPUT: &str = "sentence_embedding";

/// What an input is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The ids.
    Ids,
    /// 1 for a token, 0 for what fills a row.
    Mask,
    /// The tokens' types.
    Types,
    /// The tokens' positions.
    Positions,
}

impl Input {
    const ALL: [Self; 4] = [Self::Ids, Self::Mask, Self::Types, Self::Positions];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ids => "input_ids",
            Self::Mask => "attention_mask",
            Self::Types => "token_type_ids",
            Self::Positions => "position_ids",
        }
    }
}

/// What an output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gives {
    /// A vector a token, of which one is made this way.
    Tokens(Pooling),
    /// A vector a text.
    Sentences,
}

/// A graph's inputs and the output that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    /// In no particular order.
    pub(crate) inputs: Vec<Input>,
    /// The name of the output.
    pub(crate) output: String,
    /// What it holds.
    pub(crate) gives: Gives,
}

/// What decides over the output: the configuration's pooling, and that of the files.
pub(crate) struct PoolingChoice {
    /// As the configuration has it.
    pub(crate) configured: Option<Pooling>,
    /// As the files have it.
    pub(crate) of_files: Result<Option<Pooling>, ComponentError>,
}

impl Signature {
    /// Reads what a session declares.
    ///
    /// # Errors
    /// When it asks for what can't be fed, or gives no vectors.
    pub(crate) fn read(session: &Session, pooling: PoolingChoice) -> Result<Self, ComponentError> {
        let inputs: Result<_, _> = session.inputs().iter().map(input).collect();
        let inputs: Vec<Input> = inputs?;
        if !inputs.contains(&Input::Ids) {
            return Err(fault(
                "the model has no input `input_ids`",
                SUPPORTED_INPUTS,
            ));
        }
        let (output, gives) = output(session.outputs(), pooling)?;
        Ok(Self {
            inputs,
            output,
            gives,
        })
    }
}

const SUPPORTED_INPUTS: &str = "supported are models of texts with the inputs input_ids, attention_mask, token_type_ids and \
     position_ids of int64, whose batch and sequence have any size: export it as `feature-extraction`, or `sentence-similarity`";

/// What an input is, where it can be fed.
fn input(declared: &Outlet) -> Result<Input, ComponentError> {
    let known = Input::ALL.into_iter();
    let mut known = known.filter(|it| it.name() == declared.name());
    let input = known.next().ok_or_else(|| {
        let fact = format!("the model's input `{}` is not known", declared.name());
        fault(fact, SUPPORTED_INPUTS)
    })?;
    let ValueType::Tensor { ty, shape, .. } = declared.dtype() else {
        let fact = format!("the model's input `{}` is no tensor", declared.name());
        return Err(fault(fact, SUPPORTED_INPUTS));
    };
    let is_supported =
        *ty == TensorElementType::Int64 && shape.len() == 2 && shape.iter().all(|size| *size < 0);
    if !is_supported {
        let fact = format!(
            "the model's input `{}` is a {}, not an int64 of any batch and any sequence",
            declared.name(),
            declared.dtype()
        );
        return Err(fault(fact, SUPPORTED_INPUTS));
    }
    Ok(input)
}

/// The output that has the vectors.
fn output(outputs: &[Outlet], pooling: PoolingChoice) -> Result<(String, Gives), ComponentError> {
    let named = |name: &str| outputs.iter().find(|output| output.name() == name);
    let sentences = named(SENTENCE_OUTPUT);
    let tokens = TOKEN_OUTPUTS.iter().find_map(|name| named(name));
    // An output that is alone may have any name: its shape says what it is.
    let alone = match outputs {
        [alone] => dimensions(alone),
        _ => None,
    };
    let sentences = sentences.or(outputs.first().filter(|_| alone == Some(2)));
    let tokens = tokens.or(outputs.first().filter(|_| alone == Some(3)));
    let (found, gives) = match (sentences, tokens) {
        // Pooling that is asked for by name is made here.
        (Some(sentences), _) if pooling.configured.is_none() => (sentences, Gives::Sentences),
        (_, Some(tokens)) => {
            let of_files = || pooling.of_files.clone();
            let pooling = pooling
                .configured
                .map_or_else(of_files, |it| Ok(Some(it)))?;
            let pooling = pooling.ok_or_else(no_pooling)?;
            (tokens, Gives::Tokens(pooling))
        }
        (Some(_), None) => {
            return Err(ComponentError::new(
                "pooling",
                "the model gives a vector for each text, which can't be pooled",
                "leave `pooling` out",
            ));
        }
        (None, None) => return Err(no_output(outputs)),
    };
    let expected = match gives {
        Gives::Tokens(_) => 3,
        Gives::Sentences => 2,
    };
    if dimensions(found) != Some(expected) {
        return Err(no_output(outputs));
    }
    Ok((found.name().to_owned(), gives))
}

/// How many dimensions an output of floats has.
fn dimensions(output: &Outlet) -> Option<usize> {
    match output.dtype() {
        ValueType::Tensor {
            ty: TensorElementType::Float32 | TensorElementType::Float16,
            shape,
            ..
        } => Some(shape.len()),
        _ => None,
    }
}

fn no_pooling() -> ComponentError {
    ComponentError::new(
        "pooling",
        "the model gives a vector for each token, and no file says how they become one (modules.json, \
         1_Pooling/config.json)",
        "set `pooling` to `mean` or `cls`, as the model's card says",
    )
}

fn no_output(outputs: &[Outlet]) -> ComponentError {
    let outputs = outputs
        .iter()
        .map(|output| format!("{}: {}", output.name(), output.dtype()));
    let outputs: Vec<String> = outputs.collect();
    fault(
        format!(
            "the model gives no vectors of texts or tokens: {}",
            outputs.join(", ")
        ),
        "supported are the outputs `sentence_embedding`, and `last_hidden_state` or `token_embeddings`, or one \
         of any name alone, of float32 or float16",
    )
}

fn fault(fact: impl Into<String>, hint: &str) -> ComponentError {
    ComponentError::new("path", fact, hint)
}
