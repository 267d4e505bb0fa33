//! Which rows a query is about: conditions on fields of their metadata.
//!
//! Conditions are written as MongoDB's query language has them, which filters of most vector stores take after:
//! `{"lang": "en", "year": {"$gte": 2020}, "$or": [{"team": "core"}, {"groups": {"$in": ["a", "b"]}}]}`.
//! A field with several values passes if one of them does; `$ne`, `$nin` and `$not` pass what their positive
//! does not, rows without the field among them.
//!
//! Invariant: whether a row passes depends on its [`Attributes`] alone.

use crate::attribute::{
    AttributeKey, Attributes, Kind, TEXT_BYTES_MAX, field_bound, key, kind_bound,
};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Conditions of a filter at most, filters within it and each value of `$in` counted: each is looked up in every
/// segment.
const CONDITIONS_MAX: usize = 1_024;
/// Filters within filters at most.
const DEPTH_MAX: usize = 16;

/// A condition on a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// A value of a field lies within a range.
    Within(KeyRange),
    /// All hold; none: every row passes.
    All(Vec<Self>),
    /// One holds; none: no row passes.
    Any(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
}

/// Keys of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The field.
    pub field: Arc<str>,
    /// The first key.
    pub from: AttributeKey,
    /// The first key that is not in it any more.
    pub to: AttributeKey,
}

/// What is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fact}\nhint: {hint}")]
pub struct FilterError {
    /// What is wrong.
    pub fact: String,
    /// What is allowed.
    pub hint: String,
}

fn error<T>(fact: impl Into<String>, hint: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError {
        fact: fact.into(),
        hint: hint.into(),
    })
}

/// The least key that is greater.
fn after(key: &[u8]) -> AttributeKey {
    [key, &[0]].concat().into()
}

/// The least key behind all that begin with `prefix`, of which one byte at least is below 255: that of the kind is.
fn after_prefix(prefix: &[u8]) -> AttributeKey {
    let mut next = prefix.to_vec();
    // What can't be counted up carries to the byte before it.
    while next.pop_if(|last| *last == u8::MAX).is_some() {}
    if let Some(last) = next.last_mut() {
        *last += 1;
    }
    next.into()
}

const VALUES: &str = "send a text, a number, true or false";
const OPERATORS: &str = "operators are $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $prefix, $exists and $not; \
                         filters are joined by $and, $or and $not";

impl Filter {
    /// Reads a filter from its JSON form.
    ///
    /// # Errors
    /// When it is no filter, or one of too many conditions.
    pub fn parse(value: &Value) -> Result<Self, FilterError> {
        let mut parse = Parse { conditions: 0 };
        parse.filter(value, 0)
    }

    /// The fields that it looks at.
    pub fn fields(&self) -> Vec<&str> {
        match self {
            Self::Within(range) => vec![&range.field],
            Self::All(filters) | Self::Any(filters) => {
                filters.iter().flat_map(Self::fields).collect()
            }
            Self::Not(filter) => filter.fields(),
        }
    }

    /// Whether a row passes.
    pub fn passes(&self, attributes: &Attributes) -> bool {
        match self {
            Self::Within(range) => range.holds_one_of(attributes.keys()),
            Self::All(filters) => filters.iter().all(|it| it.passes(attributes)),
            Self::Any(filters) => filters.iter().any(|it| it.passes(attributes)),
            Self::Not(filter) => !filter.passes(attributes),
        }
    }

    fn not(self) -> Self {
        Self::Not(Box::new(self))
    }
}

impl KeyRange {
    fn of(field: &str, from: AttributeKey, to: AttributeKey) -> Filter {
        Filter::Within(Self {
            field: field.into(),
            from,
            to,
        })
    }

    /// Whether one of these keys, which are in order, lies in it.
    fn holds_one_of(&self, keys: &[AttributeKey]) -> bool {
        let first = keys.partition_point(|key| *key < self.from);
        keys.get(first).is_some_and(|key| *key < self.to)
    }
}

struct Parse {
    conditions: usize,
}

impl Parse {
    fn count(&mut self) -> Result<(), FilterError> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            let fact = format!("the filter has more than {CONDITIONS_MAX} conditions");
            return error(fact, "filter by a field that groups these values");
        }
        Ok(())
    }

    fn filter(&mut self, value: &Value, depth: usize) -> Result<Filter, FilterError> {
        self.count()?;
        if depth > DEPTH_MAX {
            let fact = format!("filters are nested more than {DEPTH_MAX} deep");
            return error(fact, "send a flatter one");
        }
        let Value::Object(fields) = value else {
            let hint = "send an object such as {\"lang\": \"en\"}";
            return error(format!("{value} is not a filter"), hint);
        };
        let mut all = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            all.push(match name.as_str() {
                "$and" => Filter::All(self.filters(name, value, depth)?),
                "$or" => Filter::Any(self.filters(name, value, depth)?),
                "$not" => self.filter(value, depth + 1)?.not(),
                _ if name.starts_with('$') => {
                    return error(format!("there is no `{name}` of filters"), OPERATORS);
                }
                field => self.field(field, value, depth)?,
            });
        }
        Ok(match <[Filter; 1]>::try_from(all) {
            Ok([only]) => only,
            Err(all) => Filter::All(all),
        })
    }

    fn filters(
        &mut self,
        name: &str,
        value: &Value,
        depth: usize,
    ) -> Result<Vec<Filter>, FilterError> {
        let Value::Array(filters) = value else {
            return error(format!("`{name}` has no array"), "send an array of filters");
        };
        if filters.is_empty() {
            return error(format!("`{name}` joins no filters"), "send one at least");
        }
        let filters = filters.iter().map(|it| self.filter(it, depth + 1));
        filters.collect()
    }

    /// What is said of a field: a value, or operators that all have to hold.
    fn field(&mut self, field: &str, value: &Value, depth: usize) -> Result<Filter, FilterError> {
        let Value::Object(operators) = value else {
            return self.equal(field, value);
        };
        if depth > DEPTH_MAX {
            let fact = format!("filters are nested more than {DEPTH_MAX} deep");
            return error(fact, "send a flatter one");
        }
        self.operators(field, operators, depth)
    }

    fn operators(
        &mut self,
        field: &str,
        operators: &Map<String, Value>,
        depth: usize,
    ) -> Result<Filter, FilterError> {
        if operators.is_empty() {
            return error(format!("nothing is said of `{field}`"), OPERATORS);
        }
        let mut all = Vec::with_capacity(operators.len());
        for (name, value) in operators {
            all.push(match name.as_str() {
                "$eq" => self.equal(field, value)?,
                "$ne" => self.equal(field, value)?.not(),
                "$in" => self.one_of(field, name, value)?,
                "$nin" => self.one_of(field, name, value)?.not(),
                "$gt" | "$gte" | "$lt" | "$lte" => self.compared(field, name, value)?,
                "$prefix" => self.prefixed(field, value)?,
                "$exists" => self.existing(field, value)?,
                "$not" => self.field(field, value, depth + 1)?.not(),
                _ => {
                    let fact = format!("there is no operator `{name}`, which `{field}` has");
                    return error(fact, OPERATORS);
                }
            });
        }
        Ok(match <[Filter; 1]>::try_from(all) {
            Ok([only]) => only,
            Err(all) => Filter::All(all),
        })
    }

    fn equal(&mut self, field: &str, value: &Value) -> Result<Filter, FilterError> {
        self.count()?;
        if value.is_null() {
            return Ok(exists(field).not());
        }
        let Some(key) = key(field, value) else {
            let fact = format!("`{field}` is compared with {value}");
            return error(fact, format!("{VALUES}; `$in` takes an array of values"));
        };
        let to = after(&key);
        Ok(KeyRange::of(field, key, to))
    }

    fn one_of(&mut self, field: &str, name: &str, value: &Value) -> Result<Filter, FilterError> {
        self.count()?;
        let Value::Array(values) = value else {
            let fact = format!("`{name}` of `{field}` has no array");
            return error(fact, "send an array of values");
        };
        let values = values.iter().map(|value| self.equal(field, value));
        Ok(Filter::Any(values.collect::<Result<_, _>>()?))
    }

    fn compared(&mut self, field: &str, name: &str, value: &Value) -> Result<Filter, FilterError> {
        self.count()?;
        let Some((key, kind)) = key(field, value).zip(Kind::of(value)) else {
            let fact = format!("`{field}` is compared with {value}");
            return error(fact, VALUES);
        };
        let (first, end) = (
            kind_bound(field, kind, false),
            kind_bound(field, kind, true),
        );
        Ok(match name {
            "$gt" => KeyRange::of(field, after(&key), end),
            "$gte" => KeyRange::of(field, key, end),
            "$lt" => KeyRange::of(field, first, key),
            _ => KeyRange::of(field, first, after(&key)),
        })
    }

    fn prefixed(&mut self, field: &str, value: &Value) -> Result<Filter, FilterError> {
        self.count()?;
        let Some(key) = key(field, value).filter(|_| value.is_string()) else {
            let fact = format!("`$prefix` of `{field}` is {value}");
            return error(fact, "send a text");
        };
        let bytes = value.as_str().map_or(0, str::len);
        if bytes > TEXT_BYTES_MAX {
            // Its key ends in a hash, which is the beginning of nothing.
            let fact = format!("`$prefix` of `{field}` has {bytes} bytes");
            let hint = format!(
                "send at most {TEXT_BYTES_MAX}: of longer texts rows keep no more than their beginning"
            );
            return error(fact, hint);
        }
        let to = after_prefix(&key);
        Ok(KeyRange::of(field, key, to))
    }

    fn existing(&mut self, field: &str, value: &Value) -> Result<Filter, FilterError> {
        self.count()?;
        match value {
            Value::Bool(true) => Ok(exists(field)),
            Value::Bool(false) => Ok(exists(field).not()),
            _ => {
                let fact = format!("`$exists` of `{field}` is {value}");
                error(fact, "send true or false")
            }
        }
    }
}

/// Rows that have a value of the field.
fn exists(field: &str) -> Filter {
    let (from, to) = (field_bound(field, false), field_bound(field, true));
    KeyRange::of(field, from, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn passes(filter: Value, metadata: Value) -> bool {
        let fields = ["lang", "year", "groups", "a.b"].map(Arc::from);
        let attributes = Attributes::of(&metadata.to_string(), &fields);
        Filter::parse(&filter).unwrap().passes(&attributes)
    }

    #[test]
    fn filters_mean_what_they_say() {
        let row = || json!({"lang": "en", "year": 2021, "groups": ["a", "b"], "a": {"b": true}});
        for filter in [
            json!({}),
            json!({"lang": "en"}),
            json!({"lang": {"$prefix": "e"}}),
            json!({"lang": {"$ne": "de"}, "year": {"$gt": 2020, "$lte": 2021}}),
            json!({"groups": "a"}),
            json!({"groups": {"$in": ["x", "b"]}}),
            json!({"groups": {"$nin": ["x", "y"]}}),
            json!({"a.b": {"$exists": true}}),
            json!({"$or": [{"lang": "de"}, {"year": {"$gte": 2021.0}}]}),
            json!({"$and": [{"lang": "en"}, {"a.b": true}]}),
            json!({"$not": {"lang": "de"}}),
            json!({"year": {"$not": {"$lt": 2021}}}),
            json!({"lang": {"$gt": "d", "$lt": "f"}}),
        ] {
            assert!(passes(filter.clone(), row()), "{filter}");
            assert!(!passes(json!({"$not": filter}), row()), "{filter}");
        }
        for filter in [
            json!({"lang": "e"}),
            json!({"lang": 1}),
            json!({"year": "2021"}),
            json!({"year": {"$gt": 2021}}),
            json!({"year": {"$lt": 2021}}),
            json!({"groups": {"$in": []}}),
            json!({"lang": {"$gte": 0}}),
            json!({"missing": {"$exists": true}}),
        ] {
            assert!(!passes(filter.clone(), row()), "{filter}");
        }
        assert!(passes(json!({"lang": {"$ne": "en"}}), json!({})));
        assert!(passes(json!({"lang": null}), json!({"lang": null})));
        assert!(!passes(json!({"lang": null}), row()));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let deep = (0..40).fold(json!({"a": 1}), |filter, _| json!({"$not": filter}));
        let deep_field = (0..40).fold(json!({"$eq": 1}), |filter, _| json!({"$not": filter}));
        let many: Vec<usize> = (0..2_000).collect();
        for (filter, fact) in [
            (json!([]), "is not a filter"),
            (json!({"$and": {}}), "no array"),
            (json!({"$or": []}), "joins no filters"),
            (json!({"$nor": []}), "there is no `$nor`"),
            (json!({"a": {"$near": 1}}), "no operator `$near`"),
            (json!({"a": {}}), "nothing is said"),
            (json!({"a": [1]}), "compared with [1]"),
            (json!({"a": {"$gt": null}}), "compared with null"),
            (json!({"a": {"$in": 1}}), "no array"),
            (json!({"a": {"$prefix": 1}}), "`$prefix` of `a` is 1"),
            (json!({"a": {"$exists": 1}}), "`$exists` of `a` is 1"),
            (json!({"a": {"$in": many}}), "more than 1024 conditions"),
            (
                json!({"$or": vec![json!({}); 2_000]}),
                "more than 1024 conditions",
            ),
            (
                json!({"$or": vec![json!({"a": {"$in": []}}); 2_000]}),
                "more than 1024",
            ),
            (deep, "nested more than 16"),
            (json!({ "a": deep_field }), "nested more than 16"),
        ] {
            let error = Filter::parse(&filter).unwrap_err();
            assert!(error.fact.contains(fact), "{error}");
        }
    }

    /// The key of a longer text ends in a hash: a search by it found rows of that very text alone, and where the
    /// hash ended in a byte of ones, there was no range.
    #[test]
    fn prefixes_are_as_long_as_what_rows_keep() {
        for bytes in [255, 256] {
            let prefix = "é".repeat(200)[..bytes / 2 * 2].to_owned() + &"x".repeat(bytes % 2);
            for text in [
                prefix.clone(),
                format!("{prefix}y"),
                prefix.clone() + &"z".repeat(9_000),
            ] {
                assert!(passes(
                    json!({"lang": {"$prefix": prefix}}),
                    json!({"lang": text})
                ));
            }
            assert!(!passes(
                json!({"lang": {"$prefix": prefix}}),
                json!({"lang": "é"})
            ));
        }
        for number in 0..2_000 {
            let long = format!("{number:0300}");
            let error = Filter::parse(&json!({"lang": {"$prefix": long}})).unwrap_err();
            assert!(
                error.fact.contains("`$prefix` of `lang` has 300 bytes"),
                "{error}"
            );
            assert!(error.hint.contains("256"), "{error}");
        }
    }

    #[test]
    fn the_key_after_a_prefix_carries() {
        let after = |prefix: &[u8]| after_prefix(prefix).to_vec();
        assert_eq!(after(&[1, 2]), [1, 3]);
        assert_eq!(after(&[1, 254, 255, 255]), [1, 255]);
    }

    proptest! {
        #[test]
        fn ranges_compare_as_numbers_do(value: i32, bound: i32) {
            let row = json!({"year": value});
            for (operator, expected) in [
                ("$gt", value > bound), ("$gte", value >= bound), ("$lt", value < bound),
                ("$lte", value <= bound), ("$eq", value == bound), ("$ne", value != bound),
            ] {
                prop_assert_eq!(passes(json!({"year": {operator: bound}}), row.clone()), expected);
            }
        }
    }
}
