//! Finds out which schema wrote a payload, and writes it as JSON by it.
//!
//! | bytes | mean |
//! | --- | --- |
//! | `00`, 4 bytes of id, payload | the schema of that id |
//! | header `__key_schema_id` / `__value_schema_id`: `01`, 16 bytes of GUID | the schema of that GUID; the payload is bare |
//! | the same header: `00`, 4 bytes of id | the schema of that id; the payload is bare |
//! | a key with neither | JSON or text as it stands: keys often have a converter of their own |
//! | a value with neither | dead letter `schema` |
//!
//! With Protobuf, the indexes of the message stand behind the id or GUID, wherever that is; a header
//! without them leaves them to the payload.
//!
//! Invariant: the language is the schema's own; a value in another one than `encoding` says is a
//! fault of the configuration and told as such.

use super::super::format::DecodeError;
use super::super::{RawRecord, Rejected};
use super::Encoding;
use super::avro::AvroSchema;
use super::json_schema::shape_of_text;
use super::logical::misfit;
use super::protobuf::ProtobufSchema;
use super::shape::Shape;
use crate::envelope::json::{check_json, text_of};
use crate::registry::{FetchError, RegisteredSchema, SchemaLanguage, SchemaName};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Schemas that are remembered: some for each of some hundreds of tables. When they are more, all
/// are forgotten, which costs asking for them again.
const SCHEMAS_MAX: usize = 1_000;

/// How long a schema that the registry does not have is not asked for again. It bounds the requests
/// for a topic of foreign records, and still lets a registry that lags behind catch up.
const MISSING_FOR: Duration = Duration::from_secs(10);

const HEADER_GUID_MAGIC: u8 = 1;
const ID_MAGIC: u8 = 0;

/// Where schemas come from.
pub(crate) type FetchSchema =
    Box<dyn FnMut(SchemaName) -> Result<RegisteredSchema, FetchError> + Send>;

/// Which half of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

impl Part {
    fn header(self) -> &'static str {
        match self {
            Self::Key => "__key_schema_id",
            Self::Value => "__value_schema_id",
        }
    }
}

enum Compiled {
    Avro(AvroSchema),
    Protobuf(ProtobufSchema),
    Json(Shape),
}

impl Compiled {
    fn write(&self, framing: &Framing<'_>, out: &mut String) -> Result<(), Rejected> {
        match self {
            Self::Avro(schema) => schema.read(framing.payload, out),
            Self::Protobuf(schema) => schema.read(framing.indexes, framing.payload, out),
            Self::Json(shape) => {
                let text = text_of(framing.payload)?;
                check_json(text)?;
                shape.rewrite(text, out)
            }
        }
    }
}

enum Remembered {
    Here(Arc<Compiled>),
    /// Why there is none, and since when we know.
    Missing(Rejected, Instant),
}

/// Writes payloads as JSON.
pub(crate) struct Payloads {
    encoding: Encoding,
    fetch: Option<FetchSchema>,
    schemas: HashMap<SchemaName, Remembered>,
}

impl Payloads {
    /// `fetch` is where schemas come from; plain JSON needs none.
    pub(crate) fn new(encoding: Encoding, fetch: Option<FetchSchema>) -> Self {
        Self {
            encoding,
            fetch,
            schemas: HashMap::new(),
        }
    }

    /// Whether payloads are JSON as they come.
    pub(crate) fn is_json(&self) -> bool {
        self.encoding == Encoding::Json
    }

    /// The payload of one half of a record as JSON, `None` where there is none.
    ///
    /// # Errors
    /// When it does not fit its schema, or that can't be had now.
    pub(crate) fn json<'a>(
        &mut self,
        record: &RawRecord<'a>,
        part: Part,
    ) -> Result<Option<Cow<'a, [u8]>>, DecodeError> {
        let bytes = match part {
            Part::Key => record.key,
            Part::Value => record.value,
        };
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        if self.is_json() {
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        let Some(framing) = Framing::of(record, part, bytes)? else {
            if part == Part::Key {
                return Ok(Some(Cow::Borrowed(bytes)));
            }
            return Err(misfit(
                "the value does not begin with a schema's id (a zero byte and four more), so it was \
                 not written with a registry",
            )
            .into());
        };
        let name = framing.schema;
        let compiled = self.compiled(name)?;
        self.check_language(&compiled, name, part)?;
        let mut out = String::with_capacity(framing.payload.len() * 2);
        match compiled.write(&framing, &mut out) {
            Ok(()) => Ok(Some(Cow::Owned(out.into_bytes()))),
            Err(mut rejected) => {
                rejected.detail = format!("schema {name}: {}", rejected.detail);
                Err(rejected.into())
            }
        }
    }

    fn check_language(
        &self,
        compiled: &Compiled,
        name: SchemaName,
        part: Part,
    ) -> Result<(), Rejected> {
        let (encoding, language) = match compiled {
            Compiled::Avro(_) => (Encoding::Avro, SchemaLanguage::Avro),
            Compiled::Protobuf(_) => (Encoding::Protobuf, SchemaLanguage::Protobuf),
            Compiled::Json(_) => (Encoding::JsonSchema, SchemaLanguage::Json),
        };
        if part == Part::Key || encoding == self.encoding {
            return Ok(());
        }
        Err(misfit(format!(
            "schema {name} is of {language}, which is not the `encoding` of the configuration"
        )))
    }

    fn compiled(&mut self, name: SchemaName) -> Result<Arc<Compiled>, DecodeError> {
        match self.schemas.get(&name) {
            Some(Remembered::Here(compiled)) => return Ok(compiled.clone()),
            Some(Remembered::Missing(why, since)) if since.elapsed() < MISSING_FOR => {
                return Err(why.clone().into());
            }
            _ => {}
        }
        let Some(fetch) = &mut self.fetch else {
            return Err(DecodeError::Unavailable(
                "no registry is configured".to_owned(),
            ));
        };
        let compiled = match fetch(name) {
            Ok(schema) => compile(&schema),
            Err(FetchError::Missing(why)) => Err(misfit(why)),
            Err(FetchError::Unavailable(why)) => return Err(DecodeError::Unavailable(why)),
        };
        if self.schemas.len() >= SCHEMAS_MAX {
            self.schemas.clear();
        }
        match compiled {
            Ok(compiled) => {
                let compiled = Arc::new(compiled);
                self.schemas
                    .insert(name, Remembered::Here(compiled.clone()));
                Ok(compiled)
            }
            Err(mut why) => {
                why.detail = format!("schema {name}: {}", why.detail);
                let missing = Remembered::Missing(why.clone(), Instant::now());
                self.schemas.insert(name, missing);
                Err(why.into())
            }
        }
    }
}

fn compile(schema: &RegisteredSchema) -> Result<Compiled, Rejected> {
    let (text, references) = (&*schema.text, &*schema.references);
    Ok(match schema.language {
        SchemaLanguage::Avro => Compiled::Avro(AvroSchema::compile(text, references)?),
        SchemaLanguage::Protobuf => Compiled::Protobuf(ProtobufSchema::compile(text, references)?),
        SchemaLanguage::Json => Compiled::Json(shape_of_text(text, references)?),
    })
}

/// A payload and the name of the schema that wrote it.
struct Framing<'a> {
    schema: SchemaName,
    /// Protobuf's path to the message, where it stands apart from the payload.
    indexes: Option<&'a [u8]>,
    payload: &'a [u8],
}

impl<'a> Framing<'a> {
    /// `None` where nothing names a schema.
    fn of(record: &RawRecord<'a>, part: Part, bytes: &'a [u8]) -> Result<Option<Self>, Rejected> {
        let mut headers = record.headers.iter();
        if let Some((name, value)) = headers.find(|(name, _)| *name == part.header()) {
            let named = schema_name(value.unwrap_or_default(), HEADER_GUID_MAGIC);
            let Some((schema, indexes)) = named else {
                return Err(misfit(format!("header `{name}` names no schema")));
            };
            return Ok(Some(Self {
                schema,
                indexes: Some(indexes).filter(|indexes| !indexes.is_empty()),
                payload: bytes,
            }));
        }
        let named = schema_name(bytes, ID_MAGIC);
        Ok(named.map(|(schema, payload)| Self {
            schema,
            indexes: None,
            payload,
        }))
    }
}

/// A schema's name at the beginning of bytes, in the forms up to `magic_max`.
fn schema_name(bytes: &[u8], magic_max: u8) -> Option<(SchemaName, &[u8])> {
    let (magic, rest) = bytes.split_first()?;
    match *magic {
        ID_MAGIC => {
            let (id, rest) = rest.split_first_chunk::<4>()?;
            Some((SchemaName::Id(u32::from_be_bytes(*id)), rest))
        }
        HEADER_GUID_MAGIC if magic_max >= HEADER_GUID_MAGIC => {
            let (guid, rest) = rest.split_first_chunk::<16>()?;
            Some((SchemaName::Guid(*guid), rest))
        }
        _ => None,
    }
}
