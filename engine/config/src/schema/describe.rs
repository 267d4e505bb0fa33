//! Says in words what a schema allows: the `allowed:` line of a problem.
//!
//! Invariant: the words come from the schema alone, so that they can never show a secret.

use super::source::SchemaSource;
use crate::node::shortened;
use serde_json::{Number, Value};
use std::cmp::Ordering;

/// More names than this hide the one that is looked for.
const NAMES_SHOWN_MAX: usize = 20;

/// What a value of this schema may be; empty if anything.
pub(crate) fn describe(source: &SchemaSource, schema: &Value) -> String {
    if let Some(referred) = source.referred(schema) {
        return describe(source, referred);
    }
    if let Some(constants) = constants(source, schema) {
        return list_values(constants.iter().copied());
    }
    let types = types(schema);
    let mut parts: Vec<String> = Vec::new();
    for name in types
        .iter()
        .filter(|name| **name != "null" || types.len() == 1)
    {
        parts.push(describe_type(schema, name));
    }
    for keyword in ["oneOf", "anyOf"] {
        if let Some(Value::Array(branches)) = schema.get(keyword) {
            parts.retain(|part| part != "a map");
            let branches: Vec<&Value> = branches.iter().collect();
            parts.extend(describe_branches(source, &branches));
        }
    }
    parts.dedup();
    parts.join(", or ")
}

pub(super) fn describe_branches(source: &SchemaSource, branches: &[&Value]) -> Vec<String> {
    let mut parts = Vec::new();
    let mut add = |part: String| {
        if !part.is_empty() && !parts.contains(&part) {
            parts.push(part);
        }
    };
    let resolved = branches.iter().map(|branch| source.resolve(branch));
    let (maps, others): (Vec<&Value>, Vec<&Value>) =
        resolved.partition(|branch| types(branch) == ["object"]);
    let choices: Vec<&Value> = others
        .iter()
        .filter_map(|branch| constants(source, branch))
        .flatten()
        .collect();
    add(list_values(choices.into_iter()));
    for branch in others {
        if constants(source, branch).is_none() {
            add(describe(source, branch));
        }
    }
    match super::union::names_of_tag(source, &maps) {
        Some((tag, names)) if maps.len() > 1 => {
            let names = list_names(names.into_iter().map(str::to_owned));
            add(format!("a map with `{tag}`: {names}"));
        }
        _ => maps.iter().for_each(|map| add(describe(source, map))),
    }
    parts
}

fn describe_type(schema: &Value, name: &str) -> String {
    match name {
        "integer" | "number" => describe_range(type_in_words(name), &Bounds::shown(schema)),
        "string" => describe_text(schema),
        other => type_in_words(other).to_owned(),
    }
}

fn describe_text(schema: &Value) -> String {
    let Some(pattern) = schema.get("pattern").and_then(Value::as_str) else {
        let length = |keyword| schema.get(keyword).and_then(Value::as_u64);
        return match (length("minLength"), length("maxLength")) {
            (Some(1), None) => "a text that is not empty".to_owned(),
            (Some(least), None) => format!("a text of at least {least} characters"),
            (Some(least), Some(most)) => format!("a text of {least} to {most} characters"),
            (None, Some(most)) => format!("a text of at most {most} characters"),
            (None, None) => "a text".to_owned(),
        };
    };
    match schema.get("description").and_then(Value::as_str) {
        Some(description) => first_sentence(description),
        None => format!("a text that matches `{pattern}`"),
    }
}

/// The first sentence without its full stop, on one line.
fn first_sentence(description: &str) -> String {
    let paragraph = description.split("\n\n").next().unwrap_or(description);
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = line.split(". ").next().unwrap_or(&line);
    let sentence = sentence.trim_end_matches('.');
    let mut characters = sentence.chars();
    match (characters.next(), characters.clone().next()) {
        (Some(first), second) if second.is_none_or(|second| !second.is_uppercase()) => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => sentence.to_owned(),
    }
}

/// A JSON type as a message names it.
pub(crate) fn type_in_words(name: &str) -> &str {
    match name {
        "integer" => "an integer",
        "number" => "a number",
        "string" => "a text",
        "boolean" => "`true` or `false`",
        "array" => "a list",
        "object" => "a map",
        "null" => "nothing",
        other => other,
    }
}

/// The types that `type` names; none if it is absent.
pub(crate) fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The values, if the schema is a choice between constants: `enum`, `const`, or a union of these.
pub(crate) fn constants<'a>(source: &'a SchemaSource, schema: &'a Value) -> Option<Vec<&'a Value>> {
    let schema = source.resolve(schema);
    if let Some(value) = schema.get("const") {
        return Some(vec![value]);
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        return Some(values.iter().collect());
    }
    if types(schema) == ["null"] {
        return Some(vec![&Value::Null]);
    }
    let branches = schema.get("oneOf").or_else(|| schema.get("anyOf"))?;
    let mut values = Vec::new();
    for branch in branches.as_array()? {
        values.extend(constants(source, branch)?);
    }
    (!values.is_empty()).then_some(values)
}

/// `auto | cpu | cuda`
pub(crate) fn list_values<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    let names = values
        .filter(|value| !value.is_null())
        .map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
    list_names(names)
}

/// `a | b | c`, cut after twenty.
pub(crate) fn list_names(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.map(|name| shortened(&name)).collect();
    let mut list = names[..names.len().min(NAMES_SHOWN_MAX)].join(" | ");
    if names.len() > NAMES_SHOWN_MAX {
        list.push_str(&format!(" | … ({} in all)", names.len()));
    }
    list
}

/// The range of a number; bounds belong to it unless they are exclusive.
pub(crate) struct Bounds {
    pub(crate) least: Option<Bound>,
    pub(crate) most: Option<Bound>,
}

#[derive(Clone)]
pub(crate) struct Bound {
    pub(crate) value: Number,
    pub(crate) is_exclusive: bool,
}

impl Bounds {
    /// What the keywords say, and what fits the integer type that `format` names.
    pub(crate) fn of(schema: &Value) -> Self {
        let format = schema
            .get("format")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let (least, most) = integer_limits(format);
        Self::with_limits(schema, least, most)
    }

    /// As [`Bounds::of`], without the limits of 64 bits, which nobody wants to read.
    fn shown(schema: &Value) -> Self {
        let format = schema
            .get("format")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let (least, most) = integer_limits(format);
        if format.ends_with("64") || matches!(format, "int" | "uint") {
            return Self::with_limits(
                schema,
                least.filter(|limit| limit.as_u64() == Some(0)),
                None,
            );
        }
        Self::with_limits(schema, least, most)
    }

    fn with_limits(schema: &Value, least: Option<Number>, most: Option<Number>) -> Self {
        let given = |keyword: &str, is_exclusive| match schema.get(keyword) {
            Some(Value::Number(value)) => Some(Bound {
                value: value.clone(),
                is_exclusive,
            }),
            _ => None,
        };
        let limit = |value: Option<Number>| {
            value.map(|value| Bound {
                value,
                is_exclusive: false,
            })
        };
        let lower = [
            given("minimum", false),
            given("exclusiveMinimum", true),
            limit(least),
        ];
        let upper = [
            given("maximum", false),
            given("exclusiveMaximum", true),
            limit(most),
        ];
        Self {
            least: tightest(lower, Ordering::Greater),
            most: tightest(upper, Ordering::Less),
        }
    }
}

/// The bound that is `tighter` than the others; of equal ones an exclusive one.
fn tightest(bounds: [Option<Bound>; 3], tighter: Ordering) -> Option<Bound> {
    bounds
        .into_iter()
        .flatten()
        .reduce(|kept, other| match compare(&other.value, &kept.value) {
            Ordering::Equal if other.is_exclusive => other,
            order if order == tighter => other,
            _ => kept,
        })
}

fn integer_limits(format: &str) -> (Option<Number>, Option<Number>) {
    let signed = |least: i64, most: i64| (Some(least.into()), Some(most.into()));
    let unsigned = |most: u64| (Some(0_u64.into()), Some(most.into()));
    match format {
        "int8" => signed(i8::MIN.into(), i8::MAX.into()),
        "int16" => signed(i16::MIN.into(), i16::MAX.into()),
        "int32" => signed(i32::MIN.into(), i32::MAX.into()),
        "int64" | "int" => signed(i64::MIN, i64::MAX),
        "uint8" => unsigned(u8::MAX.into()),
        "uint16" => unsigned(u16::MAX.into()),
        "uint32" => unsigned(u32::MAX.into()),
        "uint64" | "uint" => unsigned(u64::MAX),
        _ => (None, None),
    }
}

/// Exact for integers.
pub(crate) fn compare(left: &Number, right: &Number) -> Ordering {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        _ => {
            let float = |number: &Number| number.as_f64().unwrap_or(f64::NAN);
            float(left).total_cmp(&float(right))
        }
    }
}

/// The number, if it is an integer (also `1.0`, as JSON Schema has it).
pub(crate) fn integer(number: &Number) -> Option<i128> {
    number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
}

/// `an integer from 1 to 64`
pub(crate) fn describe_range(kind: &str, bounds: &Bounds) -> String {
    let above = |bound: &Bound| {
        let word = if bound.is_exclusive {
            "more than"
        } else {
            "at least"
        };
        format!("{word} {}", bound.value)
    };
    let below = |bound: &Bound| {
        let word = if bound.is_exclusive {
            "less than"
        } else {
            "at most"
        };
        format!("{word} {}", bound.value)
    };
    match (&bounds.least, &bounds.most) {
        (None, None) => kind.to_owned(),
        (Some(least), None) => format!("{kind}, {}", above(least)),
        (None, Some(most)) => format!("{kind}, {}", below(most)),
        (Some(least), Some(most)) if !least.is_exclusive && !most.is_exclusive => {
            format!("{kind} from {} to {}", least.value, most.value)
        }
        (Some(least), Some(most)) => format!("{kind}, {} and {}", above(least), below(most)),
    }
}
