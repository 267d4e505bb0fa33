//! Compiles the text of an Avro schema into nodes to read by.
//!
//! Invariant: names are resolved when the schema is compiled, so that reading never looks one up.

use super::super::super::Rejected;
use super::super::logical::{Logical, misfit, write_string};
use super::super::time_text::{Unit, Zone};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Nesting of a schema's text; the parser of JSON has its own limit, somewhat above.
const SCHEMA_DEPTH_MAX: usize = 100;

/// The place of a node among the nodes of a schema.
pub(super) type NodeIndex = usize;

/// What stands next in a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A name that is not defined yet; none is left in a compiled schema.
    Pending,
    Null,
    Boolean,
    /// `int` and `long` have the same bytes.
    Integer(Option<Logical>),
    Float,
    Double,
    Bytes(Option<Logical>),
    String,
    Fixed {
        length: usize,
        meaning: FixedMeaning,
    },
    /// The symbols as JSON strings.
    Enum(Box<[Box<str>]>),
    Array(NodeIndex),
    /// An array of records of a key and a value, which is how Connect writes maps whose keys are
    /// not text.
    Entries {
        key: NodeIndex,
        value: NodeIndex,
    },
    Map(NodeIndex),
    Union(Box<[NodeIndex]>),
    Record(Box<[Field]>),
    /// A record of `scale` and `value`, in this order.
    VariableScaleDecimal,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    /// The name as a JSON string, with its colon.
    pub(super) label: Box<str>,
    pub(super) node: NodeIndex,
}

/// What a number of bytes means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FixedMeaning {
    Bytes,
    Decimal { scale: i32 },
    Uuid,
    Duration,
}

/// A schema to read records by.
#[derive(Clone, Debug)]
pub(crate) struct AvroSchema {
    pub(super) nodes: Vec<Node>,
    pub(super) root: NodeIndex,
}

impl AvroSchema {
    /// Compiles a schema; `references` are the texts of the named types that it uses, in an order in
    /// which each uses only those before it.
    ///
    /// # Errors
    /// `Schema` for what is no Avro schema.
    pub(crate) fn compile(text: &str, references: &[(String, String)]) -> Result<Self, Rejected> {
        let mut compiler = Compiler::default();
        for (_, text) in references {
            compiler.document(text)?;
        }
        let root = compiler.document(text)?;
        Ok(Self {
            nodes: compiler.nodes,
            root,
        })
    }
}

#[derive(Default)]
struct Compiler {
    nodes: Vec<Node>,
    /// Named types by their full name.
    names: HashMap<String, NodeIndex>,
    depth: usize,
}

impl Compiler {
    fn document(&mut self, text: &str) -> Result<NodeIndex, Rejected> {
        let schema: Value = match serde_json::from_str(text) {
            Ok(schema) => schema,
            // A bare name is stored without its quotes by some.
            Err(_) if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => text.into(),
            Err(error) => return Err(misfit(format!("the schema is not JSON: {error}"))),
        };
        self.node(&schema, "")
    }

    fn add(&mut self, node: Node) -> NodeIndex {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn node(&mut self, schema: &Value, namespace: &str) -> Result<NodeIndex, Rejected> {
        if self.depth >= SCHEMA_DEPTH_MAX {
            return Err(misfit("the schema is nested too deeply"));
        }
        self.depth += 1;
        let node = match schema {
            Value::String(name) => self.named(name, namespace, None),
            Value::Array(branches) => self.union(branches, namespace),
            Value::Object(schema) => self.object(schema, namespace),
            _ => Err(misfit("a schema is neither a name, an array nor an object")),
        };
        self.depth -= 1;
        node
    }

    fn union(&mut self, branches: &[Value], namespace: &str) -> Result<NodeIndex, Rejected> {
        let branches = branches
            .iter()
            .map(|branch| self.node(branch, namespace))
            .collect::<Result<_, _>>()?;
        Ok(self.add(Node::Union(branches)))
    }

    /// A primitive type, or a named one that was defined before.
    fn named(
        &mut self,
        name: &str,
        namespace: &str,
        attributes: Option<&Map<String, Value>>,
    ) -> Result<NodeIndex, Rejected> {
        let logical = attributes.and_then(logical_of);
        let number = logical
            .filter(|it| !matches!(it, Logical::Decimal { .. } | Logical::VariableScaleDecimal));
        let decimal = logical.filter(|it| matches!(it, Logical::Decimal { .. }));
        let node = match name {
            "null" => Node::Null,
            "boolean" => Node::Boolean,
            "int" | "long" => Node::Integer(number),
            "float" => Node::Float,
            "double" => Node::Double,
            "bytes" => Node::Bytes(decimal),
            "string" => Node::String,
            _ => {
                let full = full_name(name, namespace);
                let found = self.names.get(&full).or_else(|| self.names.get(name));
                return found
                    .copied()
                    .ok_or_else(|| misfit(format!("the schema uses `{full}`, which is nowhere")));
            }
        };
        Ok(self.add(node))
    }

    fn object(
        &mut self,
        schema: &Map<String, Value>,
        namespace: &str,
    ) -> Result<NodeIndex, Rejected> {
        let kind = match schema.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(inner) => return self.node(inner, namespace),
            None => return Err(misfit("a schema without `type`")),
        };
        match kind {
            "record" | "error" => self.record(schema, namespace),
            "enum" => {
                let symbols = schema.get("symbols").and_then(Value::as_array);
                let symbols = symbols.into_iter().flatten().map(quoted).collect();
                self.define(schema, namespace, Node::Enum(symbols))
            }
            "fixed" => {
                let length = schema.get("size").and_then(Value::as_u64);
                let length = length.and_then(|length| usize::try_from(length).ok());
                let length = length.ok_or_else(|| misfit("a `fixed` without `size`"))?;
                let meaning = fixed_meaning(schema, length);
                self.define(schema, namespace, Node::Fixed { length, meaning })
            }
            "array" => self.array(schema, namespace),
            "map" => {
                let values = self.part(schema, "values", namespace)?;
                Ok(self.add(Node::Map(values)))
            }
            name => self.named(name, namespace, Some(schema)),
        }
    }

    fn part(
        &mut self,
        schema: &Map<String, Value>,
        name: &str,
        namespace: &str,
    ) -> Result<NodeIndex, Rejected> {
        match schema.get(name) {
            Some(part) => self.node(part, namespace),
            None => Err(misfit(format!("a schema without `{name}`"))),
        }
    }

    fn array(
        &mut self,
        schema: &Map<String, Value>,
        namespace: &str,
    ) -> Result<NodeIndex, Rejected> {
        let items = self.part(schema, "items", namespace)?;
        let is_entry = |items: &Map<String, Value>| {
            items.get("connect.internal.type") == Some(&"MapEntry".into())
                || items.get("name") == Some(&"MapEntry".into())
        };
        let is_map = schema
            .get("items")
            .and_then(Value::as_object)
            .is_some_and(is_entry);
        if is_map
            && let Node::Record(fields) = &self.nodes[items]
            && let [key, value] = &**fields
        {
            let (key, value) = (key.node, value.node);
            return Ok(self.add(Node::Entries { key, value }));
        }
        Ok(self.add(Node::Array(items)))
    }

    fn define(
        &mut self,
        schema: &Map<String, Value>,
        namespace: &str,
        node: Node,
    ) -> Result<NodeIndex, Rejected> {
        let name = schema.get("name").and_then(Value::as_str);
        let name = name.ok_or_else(|| misfit("a named type without `name`"))?;
        let namespace = schema
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or(namespace);
        let index = self.add(node);
        self.names.insert(full_name(name, namespace), index);
        Ok(index)
    }

    fn record(
        &mut self,
        schema: &Map<String, Value>,
        namespace: &str,
    ) -> Result<NodeIndex, Rejected> {
        // Defined before its fields, which may use it.
        let index = self.define(schema, namespace, Node::Pending)?;
        let name = schema
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let inner = match schema.get("namespace").and_then(Value::as_str) {
            Some(namespace) => namespace,
            None => name
                .rsplit_once('.')
                .map_or(namespace, |(before, _)| before),
        };
        let mut fields = Vec::new();
        for field in schema
            .get("fields")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let (Some(name), Some(kind)) = (field["name"].as_str(), field.get("type")) else {
                return Err(misfit("a field without `name` or `type`"));
            };
            let mut label = String::new();
            write_string(name, &mut label);
            label.push(':');
            let node = self.node(kind, inner)?;
            fields.push(Field {
                label: label.into(),
                node,
            });
        }
        let is_decimal = logical_of(schema) == Some(Logical::VariableScaleDecimal)
            || full_name(name, inner) == "io.debezium.data.VariableScaleDecimal";
        self.nodes[index] = if is_decimal && self.is_scale_and_value(&fields) {
            Node::VariableScaleDecimal
        } else {
            Node::Record(fields.into())
        };
        Ok(index)
    }

    fn is_scale_and_value(&self, fields: &[Field]) -> bool {
        let [scale, value] = fields else {
            return false;
        };
        let kinds = (&self.nodes[scale.node], &self.nodes[value.node]);
        &*scale.label == "\"scale\":"
            && &*value.label == "\"value\":"
            && kinds == (&Node::Integer(None), &Node::Bytes(None))
    }
}

fn quoted(text: &Value) -> Box<str> {
    let mut out = String::new();
    write_string(text.as_str().unwrap_or_default(), &mut out);
    out.into()
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

fn fixed_meaning(schema: &Map<String, Value>, length: usize) -> FixedMeaning {
    match (
        logical_of(schema),
        schema.get("logicalType").and_then(Value::as_str),
    ) {
        (Some(Logical::Decimal { scale }), _) => FixedMeaning::Decimal { scale },
        (_, Some("uuid")) if length == 16 => FixedMeaning::Uuid,
        (_, Some("duration")) if length == 12 => FixedMeaning::Duration,
        _ => FixedMeaning::Bytes,
    }
}

/// The meaning by Connect's name, else by Avro's own.
fn logical_of(schema: &Map<String, Value>) -> Option<Logical> {
    let text = |name: &str| schema.get(name).and_then(Value::as_str);
    let whole = |value: &Value| i32::try_from(value.as_i64()?).ok();
    let own_scale = schema.get("scale").and_then(whole);
    let connect_scale = schema
        .get("connect.parameters")
        .and_then(|parameters| parameters["scale"].as_str()?.parse().ok());
    let scale = own_scale.or(connect_scale);
    if let Some(logical) = text("connect.name").and_then(|name| Logical::of_name(name, scale)) {
        return Some(logical);
    }
    use Unit::{Microseconds, Milliseconds, Nanoseconds};
    Some(match text("logicalType")? {
        // The specification's default of the scale is zero.
        "decimal" => Logical::Decimal {
            scale: scale.unwrap_or(0),
        },
        "date" => Logical::Date,
        "time-millis" => Logical::Time(Milliseconds),
        "time-micros" => Logical::Time(Microseconds),
        "timestamp-millis" => Logical::Timestamp(Milliseconds, Zone::Utc),
        "timestamp-micros" => Logical::Timestamp(Microseconds, Zone::Utc),
        "timestamp-nanos" => Logical::Timestamp(Nanoseconds, Zone::Utc),
        "local-timestamp-millis" => Logical::Timestamp(Milliseconds, Zone::Local),
        "local-timestamp-micros" => Logical::Timestamp(Microseconds, Zone::Local),
        "local-timestamp-nanos" => Logical::Timestamp(Nanoseconds, Zone::Local),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_namespaces() {
        let schema = r#"{"type":"record","name":"Outer","namespace":"a.b","fields":[
            {"name":"x","type":{"type":"fixed","name":"F","size":2}},
            {"name":"y","type":"F"},
            {"name":"z","type":"a.b.F"},
            {"name":"next","type":["null","Outer"]}]}"#;
        let compiled = AvroSchema::compile(schema, &[]).unwrap();
        let Node::Record(fields) = &compiled.nodes[compiled.root] else {
            panic!("no record");
        };
        assert_eq!(fields[0].node, fields[1].node);
        assert_eq!(fields[0].node, fields[2].node);
        assert!(!compiled.nodes.contains(&Node::Pending));
        let reference = (
            "a.b.F".to_owned(),
            r#"{"type":"fixed","name":"a.b.F","size":2}"#.to_owned(),
        );
        let user = r#"{"type":"array","items":"a.b.F"}"#;
        assert!(AvroSchema::compile(user, &[reference]).is_ok());
        for wrong in [
            user,
            "nonsense",
            "{}",
            "1",
            r#"{"type":"record","fields":[]}"#,
            r#"{"type":"fixed","name":"F"}"#,
            r#"{"type":"map"}"#,
            r#"{"type":"record","name":"r","fields":[{"name":"x"}]}"#,
        ] {
            assert!(AvroSchema::compile(wrong, &[]).is_err(), "{wrong}");
        }
        let deep = format!("{}\"int\"{}", "[".repeat(110), "]".repeat(110));
        assert!(AvroSchema::compile(&deep, &[]).is_err());
    }
}
