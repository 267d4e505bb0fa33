//! Kills: writers insert, update and delete at full speed while the first copy is made and after it,
//! and in the middle Connect and our process are killed again and again. What is held at the end is
//! what the database holds: nothing lost, nothing left, although a killed Connect sends ranges again.
//!
//! Connect is not killed before its first copy is whole: it would begin another, and a row that was
//! copied by the first and deleted before the second is in Kafka for ever (see docs/SERVICES.md).

use crate::pipeline::{CONTENT, Pipeline, TABLES, expect_same, kafka_json, state_of};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_tests::Random;
use vectide_tests::services::{Database, Services};

/// Kills of Connect in a run; `VECTIDE_KILL_ROUNDS` asks for more.
const ROUNDS: usize = 2;

/// Kills of our process for each of them, while Connect runs and while it is away.
pub(crate) const OWN_KILLS_PER_ROUND: usize = 3;

/// Rows before anything reads, so that the first copy takes a while.
const ROWS_BEFORE: usize = 3_000;

/// Keys that one writer writes; few, so that every row changes often.
const KEYS_PER_WRITER: u64 = 300;

/// Statements that a writer sends at a time.
const STATEMENTS_PER_ROUND: usize = 40;

/// Rows that are there before the first reader.
pub(crate) fn fill(database: &Database) {
    database.execute(TABLES);
    database.execute(&format!(
        "insert into pages \
         select 'old-' || n, 'Text of the old page ' || n || repeat(' and more', n % 200) \
         from generate_series(1, {ROWS_BEFORE}) n"
    ));
}

/// One statement on a writer's own keys, so that writers never wait for each other.
fn statement(writer: usize, number: usize, random: &mut Random) -> String {
    let key = format!("w{writer}-{}", random.below(KEYS_PER_WRITER));
    let other = format!("w{writer}-{}", random.below(KEYS_PER_WRITER));
    let text = format!("Text {number} of writer {writer}")
        + &" with more words".repeat(random.below(150) as usize);
    match random.below(10) {
        0..=4 => format!(
            "insert into pages values ('{key}', '{text}') \
             on conflict (path) do update set content = excluded.content;"
        ),
        5 => format!("delete from pages where path = '{key}';"),
        6 => format!(
            "delete from pages where path = 'old-{}';",
            random.below(3_000)
        ),
        // Does not carry the text.
        7 => format!("update pages set version = version + 1 where path = '{key}';"),
        8 => format!(
            "update pages set version = version + 1 where path = 'old-{}';",
            random.below(3_000)
        ),
        // The key changes: a delete and a create.
        _ => format!(
            "begin; delete from pages where path = '{other}' and path <> '{key}'; \
             update pages set path = '{other}', content = '{text}' where path = '{key}'; commit;"
        ),
    }
}

/// Writes until told to stop, and says how many statements that were.
fn write(database: &Database, writer: usize, stop: &AtomicBool) -> usize {
    let (mut random, mut number) = (Random::new(writer as u64 + 1), 0);
    while !stop.load(Ordering::Relaxed) {
        let mut statements = String::new();
        for _ in 0..STATEMENTS_PER_ROUND {
            number += 1;
            writeln!(statements, "{}", statement(writer, number, &mut random)).unwrap();
        }
        database.execute(&statements);
    }
    number
}

/// Runs `middle` while two writers write.
pub(crate) fn beside_writers(database: &Database, middle: impl FnOnce()) {
    /// Stops the writers also when the middle fails.
    struct StopOnDrop<'a>(&'a AtomicBool);
    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers = [0, 1].map(|writer| {
            scope.spawn({
                let stop = &stop;
                move || write(database, writer, stop)
            })
        });
        {
            let _stop = StopOnDrop(&stop);
            middle();
        }
        let written = writers.map(|writer| writer.join().unwrap());
        println!("{written:?} statements");
    });
}

fn rounds() -> usize {
    let rounds = std::env::var("VECTIDE_KILL_ROUNDS").ok();
    rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

/// Starts our process and kills it at a random time, several times.
pub(crate) fn kill_ours(pipeline: &Pipeline, random: &mut Random) {
    for _ in 0..OWN_KILLS_PER_ROUND {
        let mut running = pipeline.launch();
        std::thread::sleep(Duration::from_millis(200 + random.below(1_500)));
        assert!(running.try_wait().unwrap().is_none(), "it ended by itself");
        running.kill().unwrap();
        running.wait().unwrap();
    }
}

#[test]
fn nothing_is_lost_when_connect_and_we_are_killed_beside_writers() {
    let Some(services) = Services::start_or_skip("nothing_is_lost_when_connect") else {
        return;
    };
    let name = "kills";
    let database = services.create_database(name);
    fill(&database);
    let worker = services.start_connect("connect-kills");
    let topic = format!("{name}.public.pages");
    let pipeline = Pipeline::new(&kafka_json(services, &topic), CONTENT);
    let mut random = Random::new(7);
    beside_writers(&database, || {
        worker.capture(&database, name, &[]);
        worker.wait_for_topic(name, &topic);
        kill_ours(&pipeline, &mut random);
        // Confirmed beyond a change: the copy is whole.
        worker.wait_until_delivered(&database, name);
        for _ in 0..rounds() {
            worker.kill();
            kill_ours(&pipeline, &mut random);
            worker.start();
            kill_ours(&pipeline, &mut random);
        }
    });
    let began_at = Instant::now();
    worker.wait_until_delivered(&database, name);
    println!("delivered {:?} after the last write", began_at.elapsed());
    println!("{}", pipeline.run_to_end());
    let expected = state_of(&database, "content");
    expect_same(&pipeline.documents(), &expected, "after kills");
    // A killed Connect sends a stretch again. An update in it that leaves its text out may come after
    // the delete that followed it the first time: no row is held to complete it from, which is told,
    // and what followed it comes again as well.
    for letter in pipeline.dead_letters() {
        assert_eq!(letter["reason"], "incomplete", "{letter}");
    }
}
