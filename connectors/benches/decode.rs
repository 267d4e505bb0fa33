//! How fast bytes become changes, on one core: megabytes and records a second.
//!
//! `cargo bench -p vectide-connectors`. The line log is the change history of the test data where
//! it is present, else one that is made up; it is read by the whole source, into a sink that drops
//! the batches. The limits beside it are measured in the same run: reading the file, and checking
//! that it is UTF-8 and cutting it into lines.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use vectide_connectors::JsonlConfig;
use vectide_connectors::envelope::RawRecord;
use vectide_connectors::envelope::format::{RecordDecoder, RecordFormat};
use vectide_connectors::testing::HeldMap;
use vectide_model::{
    OpenContext, ReadMode, SourceBatch, SourceConfig, SourceSink, SourceStart, StopSignal, Stopped,
};

#[derive(Default)]
struct CountingSink {
    changes: usize,
}

impl SourceSink for CountingSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        self.changes += batch.changes.len();
        Ok(())
    }

    fn caught_up(&mut self) {}
}

fn main() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let text = history();
    let plain = directory.path().join("history.jsonl");
    std::fs::write(&plain, &text).expect("written");
    let compressed = directory.path().join("history.jsonl.zst");
    let packed = zstd::stream::encode_all(text.as_slice(), 3).expect("compressed");
    std::fs::write(&compressed, packed).expect("written");
    println!("line log of {:.1} MB", text.len() as f64 / 1e6);
    report(
        "limit: read and cut into lines of UTF-8",
        text.len(),
        || {
            let mut bytes = Vec::new();
            let mut file = std::fs::File::open(&plain).expect("opened");
            file.read_to_end(&mut bytes).expect("read");
            let text = std::str::from_utf8(&bytes).expect("UTF-8");
            black_box(text.lines().count())
        },
    );
    report("limit: decompress zstd", text.len(), || {
        let file = std::fs::File::open(&compressed).expect("opened");
        let mut decoder = zstd::stream::read::Decoder::new(file).expect("zstd");
        std::io::copy(&mut decoder, &mut std::io::sink()).expect("decompressed") as usize
    });
    report("jsonl, plain", text.len(), || read_log(&plain));
    report("jsonl, zstd", text.len(), || read_log(&compressed));
    records();
}

fn history() -> Vec<u8> {
    let root = match std::env::var_os("VECTIDE_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let events = root.join("otel-docs-changes/events.jsonl.zst");
    match std::fs::File::open(&events) {
        Ok(file) => zstd::stream::decode_all(file).expect("the history decompresses"),
        Err(_) => {
            println!("no {}: a made-up log instead", events.display());
            let words = "the quick brown fox jumps over the lazy dog.\\n".repeat(180);
            (0..14_000)
                .flat_map(|index| {
                    let line = format!(
                        "{{\"commit\":{},\"op\":\"u\",\"path\":\"docs/{}.md\",\"content\":\"{words}\"}}\n",
                        index / 3,
                        index % 2000
                    );
                    line.into_bytes()
                })
                .collect()
        }
    }
}

fn read_log(path: &Path) -> usize {
    let config: JsonlConfig = serde_json::from_value(serde_json::json!({
        "path": path,
        "format": {"type": "change", "key": "path", "op": "op", "transaction": "commit"},
    }))
    .expect("a configuration");
    let context = OpenContext::in_folder("/");
    let start = SourceStart {
        name: "bench".into(),
        positions: BTreeMap::new(),
        fingerprints: BTreeMap::new(),
        held: Arc::new(HeldMap::default()),
        mode: ReadMode::UntilCaughtUp,
        is_trial: true,
        stop: StopSignal::new(),
    };
    let mut sink = CountingSink::default();
    let source = config.open(&context).expect("opened");
    source.run(start, &mut sink).expect("read");
    sink.changes
}

/// The best of five: other work on the machine only ever makes it slower.
fn report(name: &str, bytes: usize, work: impl Fn() -> usize) {
    let (mut seconds, mut items) = (f64::MAX, 0);
    for _ in 0..5 {
        let began_at = Instant::now();
        items = work();
        seconds = seconds.min(began_at.elapsed().as_secs_f64());
    }
    println!(
        "{name:42} {:8.0} MB/s {:12.0} items/s",
        bytes as f64 / 1e6 / seconds,
        items as f64 / seconds
    );
}

fn records() {
    const RECORDS: usize = 200_000;
    let row = format!(
        r#"{{"id":123456,"title":"A page","body":"{}"}}"#,
        "word ".repeat(150)
    );
    let event = format!(
        r#"{{"before":null,"after":{row},"source":{{"version":"3.2","connector":"postgresql","ts_ms":1700000000123,"db":"shop","table":"pages","lsn":24023128}},"op":"u","ts_ms":1700000000456}}"#
    );
    println!(
        "records of {} bytes (upsert) and {} bytes (Debezium)",
        row.len(),
        event.len()
    );
    report("upsert", RECORDS * row.len(), || {
        decode_all(RECORDS, &row, decoder(r#"{"type":"upsert"}"#))
    });
    report("debezium", RECORDS * event.len(), || {
        decode_all(RECORDS, &event, decoder(r#"{"type":"debezium"}"#))
    });
    let wrapped = format!(r#"{{"schema":{},"payload":{event}}}"#, schema());
    report("debezium with schema", RECORDS * wrapped.len(), || {
        decode_all(RECORDS, &wrapped, decoder(r#"{"type":"debezium"}"#))
    });
    report("debezium-flattened", RECORDS * row.len(), || {
        decode_all(RECORDS, &row, decoder(r#"{"type":"debezium-flattened"}"#))
    });
}

fn decoder(format: &str) -> RecordDecoder {
    let format: RecordFormat = serde_json::from_str(format).expect("a format");
    format.open().expect("opened")
}

fn decode_all(records: usize, value: &str, mut decoder: RecordDecoder) -> usize {
    let mut decoded = Vec::new();
    for _ in 0..records {
        let record = RawRecord {
            topic: "t",
            headers: &[],
            key: Some(br#"{"id":123456}"#),
            value: Some(value.as_bytes()),
        };
        decoder.decode(&record, &mut decoded).expect("decoded");
        black_box(&decoded);
        decoded.clear();
    }
    records
}

/// Kafka Connect's schema of a table with a few columns.
fn schema() -> String {
    let row = |field: &str| {
        format!(
            r#"{{"type":"struct","fields":[{{"type":"int32","optional":false,"field":"id"}},{{"type":"string","optional":true,"field":"title"}},{{"type":"string","optional":true,"field":"body"}},{{"type":"int64","optional":true,"name":"io.debezium.time.MicroTimestamp","version":1,"field":"at"}}],"optional":true,"name":"shop.pages.Value","field":"{field}"}}"#
        )
    };
    format!(
        r#"{{"type":"struct","fields":[{},{},{{"type":"string","field":"op"}}],"name":"shop.pages.Envelope"}}"#,
        row("before"),
        row("after")
    )
}
