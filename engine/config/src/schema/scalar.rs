//! Checks numbers and texts: range, multiple, length, form.
//!
//! Invariant: a value has at most one problem here, the first that a reader would name.

use super::check::{Checker, Place};
use super::describe::{self, Bounds, compare, describe, describe_range, integer};
use super::hints::repaired;
use super::source::SchemaSource;
use crate::node::Scalar;
use serde_json::{Number, Value};
use std::cmp::Ordering;

impl<'a> Checker<'a> {
    pub(super) fn check_scalar(
        &mut self,
        place: Place<'_>,
        scalar: &Scalar,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        match &scalar.value {
            Value::Number(number) => self.check_number(place, number, schema),
            Value::String(text) => self.check_text(place, text, source, schema),
            _ => {}
        }
    }

    fn check_number(&mut self, place: Place<'_>, number: &Number, schema: &'a Value) {
        let bounds = Bounds::of(schema);
        let is_low = bounds.least.as_ref().is_some_and(|bound| {
            let order = compare(number, &bound.value);
            order == Ordering::Less || (bound.is_exclusive && order == Ordering::Equal)
        });
        let is_high = bounds.most.as_ref().is_some_and(|bound| {
            let order = compare(number, &bound.value);
            order == Ordering::Greater || (bound.is_exclusive && order == Ordering::Equal)
        });
        let kind = match describe::types(schema).contains(&"integer") {
            true => "an integer",
            false => "a number",
        };
        if is_low || is_high {
            let size = if is_low { "small" } else { "large" };
            let problem = self
                .problem(place, format!("{} is too {size}", place.node.shown()))
                .allowed(describe_range(kind, &bounds));
            self.found.problems.push(problem);
        } else if let Some(Value::Number(step)) = schema.get("multipleOf")
            && !is_multiple(number, step)
        {
            let fact = format!("{} is not a multiple of {step}", place.node.shown());
            self.add(place, fact);
        }
    }

    fn check_text(
        &mut self,
        place: Place<'_>,
        text: &str,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        let length = text.chars().count() as u64;
        let limit = |keyword| schema.get(keyword).and_then(Value::as_u64);
        let fact = if limit("minLength").is_some_and(|least| length < least) {
            match length {
                0 => "the text is empty".to_owned(),
                _ => format!("{} is too short", place.node.shown()),
            }
        } else if limit("maxLength").is_some_and(|most| length > most) {
            format!("{} is too long", place.node.shown())
        } else if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && !source.matches(pattern, text)
        {
            format!("{} does not have the right form", place.node.shown())
        } else {
            return;
        };
        let hint = match (
            place.node.secret(),
            schema.get("pattern").and_then(Value::as_str),
        ) {
            (None, Some(pattern)) => repaired(text, |text| source.matches(pattern, text)),
            _ => None,
        };
        let problem = self
            .problem(place, fact)
            .allowed(describe(source, schema))
            .suggest(hint.as_deref());
        self.found.problems.push(problem);
    }
}

fn is_multiple(number: &Number, step: &Number) -> bool {
    match (integer(number), integer(step)) {
        (Some(number), Some(step)) => step != 0 && number % step == 0,
        _ => {
            let quotient = number.as_f64().unwrap_or(f64::NAN) / step.as_f64().unwrap_or(f64::NAN);
            (quotient - quotient.round()).abs() < 1e-9
        }
    }
}
