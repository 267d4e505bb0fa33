//! Avro's binary records as JSON, by the schema that wrote them.
//!
//! Why not the `apache-avro` crate: Kafka Connect says what a number means (`connect.name`) on the
//! types themselves, and that crate forgets what stands on a primitive type; it reserves memory by
//! lengths that the record claims; and the JSON that is wanted can be written while reading,
//! without values in between. It is the oracle of the tests.
//!
//! Invariant: memory is bounded by the longest JSON of a record whatever lengths a record claims, and
//! nothing is left over: bytes behind the value mean that the schema is another one.

mod read;
mod schema;

pub(crate) use schema::AvroSchema;
