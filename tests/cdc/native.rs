//! The database read by its own replication protocol, held against the same oracles as the way
//! through Debezium and Kafka.

use crate::history::replay;
use crate::kills::{OWN_KILLS_PER_ROUND, beside_writers, fill, kill_ours};
use crate::pipeline::{CONTENT, Pipeline, State, TABLES, native, state_of};
use vectide_tests::Random;
use vectide_tests::data_directory;
use vectide_tests::services::Services;

#[test]
fn the_history_read_natively_is_the_manifest() {
    let test = "the_history_read_natively";
    let Some(data) = data_directory("otel-docs-changes", test) else {
        return;
    };
    let Some(services) = Services::start_or_skip(test) else {
        return;
    };
    let database = services.create_database("native");
    database.execute(TABLES);
    let stream = Pipeline::new(
        &native(services, &database, ", slot: native_stream"),
        CONTENT,
    );
    // Makes the slot: what comes later are transactions, not a copy.
    stream.expect(&State::new(), "of the empty table");
    let (statements, manifest) = replay(&data);
    database.execute(&statements);
    stream.expect(&manifest, "of the stream");
    let again = stream.run_to_end();
    assert_eq!(again["embedded_chunks"], 0, "everything was read: {again}");
    let copy = Pipeline::new(&native(services, &database, ", slot: native_copy"), CONTENT);
    copy.expect(&manifest, "of the copy");
}

#[test]
fn nothing_is_lost_when_we_are_killed_beside_writers() {
    let Some(services) = Services::start_or_skip("nothing_is_lost_when_we_are_killed") else {
        return;
    };
    let database = services.create_database("nativekills");
    fill(&database);
    // Small chunks: kills fall into the copy, too.
    let more = ", slot: native_kills, snapshot: {chunk_rows: 100}";
    let pipeline = Pipeline::new(&native(services, &database, more), CONTENT);
    let mut random = Random::new(11);
    beside_writers(&database, || {
        for _ in 0..OWN_KILLS_PER_ROUND {
            kill_ours(&pipeline, &mut random);
        }
    });
    pipeline.expect(&state_of(&database, "content"), "after kills");
}
