//! How fast rows of PostgreSQL become changes: the snapshot, and the stream beside a consumer of the
//! same stream that throws the bytes away, which is the limit, in the same run.
//!
//! `cargo bench -p vectide-connectors --bench postgres`. Rows have 1 KiB of text; transactions have
//! one row or a hundred. Server and source share the machine.

use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use vectide_connectors::PostgresConfig;
use vectide_connectors::testing::{HeldMap, PostgresServer, Resume};
use vectide_model::{
    OpenContext, ReadMode, SourceBatch, SourceConfig, SourceSink, SourceStart, StopSignal, Stopped,
};

const ROWS: usize = 100_000;

#[derive(Default)]
struct CountingSink {
    changes: usize,
    resume: Resume,
}

impl SourceSink for CountingSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        self.changes += batch.changes.len();
        self.resume.positions.extend(batch.positions);
        self.resume.fingerprints.extend(batch.fingerprints);
        Ok(())
    }

    fn caught_up(&mut self) {}
}

fn read(server: &PostgresServer, slot: &str, resume: &Resume) -> CountingSink {
    let mut config = server.source(&["public.pages"]);
    config["slot"] = json!(slot);
    config["publication"] = json!("pages");
    let config: PostgresConfig = serde_json::from_value(config).expect("a configuration");
    let context = OpenContext::in_folder("/");
    let start = SourceStart {
        name: "bench".into(),
        positions: resume.positions.clone(),
        fingerprints: resume.fingerprints.clone(),
        // Nothing is ever durable, so that the same stretch can be read again.
        held: Arc::new(HeldMap::of(BTreeMap::new())),
        mode: ReadMode::UntilCaughtUp,
        is_trial: false,
        stop: StopSignal::new(),
    };
    let mut sink = CountingSink::default();
    let source = config.open(&context).expect("opened");
    source.run(start, &mut sink).expect("read");
    sink
}

/// The best of three: other work on the machine only ever makes it slower.
fn report(name: &str, records: usize, mut work: impl FnMut()) -> f64 {
    let mut seconds = f64::MAX;
    for _ in 0..3 {
        let began_at = Instant::now();
        work();
        seconds = seconds.min(began_at.elapsed().as_secs_f64());
    }
    let rate = records as f64 / seconds;
    println!("{name:56} {rate:12.0} rows/s");
    rate
}

fn main() {
    let server = match PostgresServer::start(&["max_wal_size=8GB"]) {
        Ok(server) => server,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let mut client = server.client();
    client.execute(
        "CREATE TABLE pages (id bigint PRIMARY KEY, body text); CREATE PUBLICATION pages FOR TABLE pages",
    );
    for per_transaction in [100, 1] {
        client.execute("TRUNCATE pages");
        let slot = format!("source_{per_transaction}");
        let resume = read(&server, &slot, &Resume::default()).resume;
        let bare = format!("bare_{per_transaction}");
        client.execute(&format!(
            "SELECT pg_create_logical_replication_slot('{bare}', 'pgoutput')"
        ));
        let rows = if per_transaction == 1 { ROWS / 5 } else { ROWS };
        client.query(&format!(
            "DO $$ BEGIN FOR t IN 0..{} LOOP
               INSERT INTO pages SELECT t * {per_transaction} + i, repeat('words and ', 102)
               FROM generate_series(1, {per_transaction}) i; COMMIT; END LOOP; END $$",
            rows / per_transaction - 1
        ));
        println!("stream, {rows} rows of 1 KiB, {per_transaction} a transaction");
        let limit = report(
            "  limit: a consumer that throws the bytes away",
            rows,
            || {
                server.drain_slot(&bare, "pages");
            },
        );
        let rate = report("  source, to changes", rows, || {
            assert_eq!(read(&server, &slot, &resume).changes, rows);
        });
        println!("  {:.0} % of the limit", 100.0 * rate / limit);
        client.drop_slot(&slot);
        client.drop_slot(&bare);
        if per_transaction == 100 {
            client.execute("ANALYZE pages");
            report("snapshot, 2 readers", rows, || {
                assert_eq!(read(&server, "snapshot", &Resume::default()).changes, rows);
            });
        }
    }
}
