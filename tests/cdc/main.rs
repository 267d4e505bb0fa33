//! Change data capture with the real programs: PostgreSQL, Debezium in Kafka Connect, Kafka, a
//! schema registry, and the real binary. What the binary holds at the end is compared with what the
//! database holds, or with the manifest of a real history.
//!
//! Every test has a database, connectors, topics and slots of its own name; the servers are shared.

mod cases;
mod history;
mod kills;
mod native;
mod pipeline;
mod transactions;
