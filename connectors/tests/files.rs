//! Directories of documents on a real file system: first reading, restart, and every way in which
//! files change while they are watched.

// The lint spares functions marked as tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use vectide_connectors::FilesConfig;
use vectide_connectors::testing::{HeldMap, RecordedRun, RecordingSink, run_source};
use vectide_model::{
    Change, DeadLetterReason, OpenContext, Partition, ReadMode, SourceConfig, SourceError,
};

type Positions = BTreeMap<Partition, u64>;

const SETTLE: Duration = Duration::from_millis(60);
const UNHURRIED: Duration = Duration::from_millis(800);

fn start(
    root: &Path,
    settle: Duration,
    more: &str,
    mode: ReadMode,
    held: HeldMap,
    next: u64,
) -> RecordedRun {
    let settle_ms = settle.as_millis();
    let json = format!(r#"{{"path": {root:?}, "settle": "{settle_ms}ms" {more}}}"#);
    let config: FilesConfig = serde_json::from_str(&json).unwrap();
    let context = OpenContext::in_folder("/");
    let source = config.open(&context).unwrap();
    let positions = match next {
        0 => Positions::new(),
        next => Positions::from([(Partition::from("observations"), next)]),
    };
    run_source(source, positions, held, mode, RecordingSink::default())
}

fn read_once(root: &Path, more: &str, held: HeldMap, next: u64) -> RecordedRun {
    let mut run = start(root, SETTLE, more, ReadMode::UntilCaughtUp, held, next);
    run.join().unwrap();
    assert_eq!(run.times_caught_up(), 1);
    run
}

/// Watches, and returns when the first reading is done.
fn watch(root: &Path) -> RecordedRun {
    watch_with(root, SETTLE)
}

/// With a settle time of its own, for tests in which the writer's pauses must stay well below it on
/// a busy machine.
fn watch_with(root: &Path, settle: Duration) -> RecordedRun {
    let run = start(root, settle, "", ReadMode::Follow, HeldMap::default(), 0);
    run.wait_until("caught up", |run| run.times_caught_up() == 1);
    run
}

fn write(root: &Path, key: &str, text: impl AsRef<[u8]>) {
    let path = root.join(key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn content(rows: &HeldMap, key: &str) -> Option<String> {
    let row = rows.rows.get(key)?;
    let row: serde_json::Value = serde_json::from_str(row).unwrap();
    assert_eq!(row["path"], key);
    Some(row["content"].as_str().unwrap().to_owned())
}

fn keys(rows: &HeldMap) -> Vec<String> {
    rows.rows.keys().map(|key| key.to_string()).collect()
}

fn keys_of(changes: &[Change]) -> Vec<(String, bool)> {
    changes
        .iter()
        .map(|change| (change.key.to_string(), change.row.is_some()))
        .collect()
}

/// The oracle: what is on disk now, read by plain means.
fn on_disk(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                let key = path.strip_prefix(root).unwrap().to_str().unwrap();
                found.insert(key.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn agrees_with_disk(run: &RecordedRun, root: &Path) -> bool {
    let rows = run.fold(HeldMap::default());
    let told: BTreeMap<String, String> = keys(&rows)
        .into_iter()
        .map(|key| {
            let text = content(&rows, &key).unwrap();
            (key, text)
        })
        .collect();
    told == on_disk(root)
}

#[test]
fn the_first_reading_takes_documents_only() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "b.md", "# b");
    write(root, "a/ä ö.txt", "text");
    write(
        root,
        "a/page.html",
        "<title>T</title><p>x<script>no</script></p>",
    );
    write(root, "a/c.rst", "c\n=\n");
    write(root, "a/picture.png", [0_u8, 1, 2]);
    write(root, ".git/d.md", "hidden");
    write(root, "a/.e.md", "hidden");
    write(root, "a/f.md.swp", "left aside");
    write(root, "bad.md", b"\xff\xfe");
    write(root, "big.md", "x".repeat(2000));
    write(root, "empty.md", "");
    write(root, "drafts/g.md", "excluded");
    let more = r#", "max_file": "1kB", "exclude": ["drafts/**"]"#;
    let run = read_once(root, more, HeldMap::default(), 0);

    let rows = run.fold(HeldMap::default());
    assert_eq!(
        keys(&rows),
        ["a/c.rst", "a/page.html", "a/ä ö.txt", "b.md", "empty.md"]
    );
    assert_eq!(content(&rows, "a/page.html").unwrap(), "T\n\nx");
    assert_eq!(content(&rows, "empty.md").unwrap(), "");
    let row: serde_json::Value = serde_json::from_str(&rows.rows["a/c.rst"]).unwrap();
    assert_eq!((&row["format"], &row["bytes"]), (&"rst".into(), &4.into()));
    let modified_at = fs::metadata(root.join("a/c.rst"))
        .unwrap()
        .modified()
        .unwrap();
    let expected = humantime::format_rfc3339(modified_at).to_string();
    assert_eq!(row["modified_at"].as_str(), Some(&*expected));

    let mut letters: Vec<(String, DeadLetterReason)> = run
        .dead_letters()
        .into_iter()
        .map(|letter| (letter.key.unwrap().to_string(), letter.reason))
        .collect();
    letters.sort();
    assert_eq!(
        letters,
        [
            ("bad.md".to_owned(), DeadLetterReason::Undecodable),
            ("big.md".to_owned(), DeadLetterReason::TooLarge)
        ]
    );
    assert_eq!(run.positions(Positions::new())["observations"], 7);
}

#[test]
fn a_restart_tells_differences_only() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    for key in [
        "same.md",
        "edited.md",
        "gone.md",
        "dir/gone.md",
        "turns-bad.md",
    ] {
        write(root, key, format!("# {key}"));
    }
    let first = read_once(root, "", HeldMap::default(), 0);
    let held = first.fold(HeldMap::default());
    assert_eq!(held.rows.len(), 5);

    write(root, "edited.md", "# edited, longer");
    write(root, "new.md", "# new");
    write(root, "turns-bad.md", b"\xff");
    fs::remove_file(root.join("gone.md")).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    let second = read_once(root, "", held.clone(), 5);
    let mut told = keys_of(&second.changes());
    told.sort();
    let expected = [
        ("dir/gone.md", false),
        ("edited.md", true),
        ("gone.md", false),
        ("new.md", true),
    ];
    assert_eq!(
        told,
        expected.map(|(key, is_upsert)| (key.to_owned(), is_upsert))
    );
    let offsets: Vec<u64> = second
        .changes()
        .iter()
        .map(|change| change.position.offset)
        .collect();
    assert!(
        offsets.iter().all(|offset| (5..10).contains(offset)),
        "{offsets:?}"
    );
    assert_eq!(second.positions(Positions::new())["observations"], 10);
    let rows = second.fold(held);
    assert_eq!(
        content(&rows, "turns-bad.md").unwrap(),
        "# turns-bad.md",
        "the last good row stays"
    );
    assert_eq!(second.dead_letters().len(), 1);

    let third = read_once(root, "", rows, 10);
    assert_eq!(third.changes(), []);
}

#[test]
fn a_large_folder_comes_in_batches_sorted_by_path() {
    let root = TempDir::new().unwrap();
    for index in 0..600 {
        write(
            root.path(),
            &format!("{:02}/{index:03}.md", index % 7),
            "text",
        );
    }
    std::thread::sleep(SETTLE * 2);
    let run = read_once(root.path(), "", HeldMap::default(), 0);
    assert!(run.batches().iter().all(|batch| batch.divisible));
    let sizes: Vec<usize> = run
        .batches()
        .iter()
        .map(|batch| batch.changes.len())
        .collect();
    assert_eq!(sizes, [256, 256, 88]);
    let told = keys_of(&run.changes());
    assert!(told.is_sorted());
}

#[test]
fn edits_creates_and_deletes_are_seen() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "one");
    let mut run = watch(root);
    write(root, "a.md", "two");
    write(root, "deep/er/b.md", "new folders");
    write(root, "ignored.png", "x");
    run.wait_until("both are seen", |run| agrees_with_disk(run, root));
    fs::remove_file(root.join("a.md")).unwrap();
    run.wait_until("the delete is seen", |run| agrees_with_disk(run, root));
    fs::remove_dir_all(root.join("deep")).unwrap();
    run.wait_until("the folder is gone", |run| agrees_with_disk(run, root));
    assert_eq!(run.dead_letters(), []);
    run.stop().unwrap();
}

#[test]
fn renames_are_one_batch() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "text");
    write(root, "dir/b.md", "b");
    write(root, "dir/sub/c.md", "c");
    let run = watch(root);
    let before = run.batches().len();

    fs::rename(root.join("a.md"), root.join("z.md")).unwrap();
    run.wait_until("the rename is seen", |run| agrees_with_disk(run, root));
    let batches = run.batches();
    let told = keys_of(&batches[before].changes);
    assert_eq!(batches.len(), before + 1);
    assert_eq!(
        told,
        [("a.md".to_owned(), false), ("z.md".to_owned(), true)]
    );

    fs::rename(root.join("dir"), root.join("moved")).unwrap();
    run.wait_until("the folder's rename is seen", |run| {
        agrees_with_disk(run, root)
    });
    let batches = run.batches();
    assert_eq!(batches.len(), before + 2);
    assert_eq!(batches[before + 1].changes.len(), 4);
    let divisible: Vec<bool> = batches.iter().map(|batch| batch.divisible).collect();
    assert!(divisible[..before].iter().all(|divisible| *divisible));
    assert_eq!(
        divisible[before..],
        [false, false],
        "a rename is seen as a whole"
    );

    // In the folder under its new name, changes are still seen.
    write(root, "moved/sub/d.md", "d");
    run.wait_until("the new folder is watched", |run| {
        agrees_with_disk(run, root)
    });
}

#[test]
fn an_editor_that_replaces_the_file_makes_one_change() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "one");
    let run = watch_with(root, UNHURRIED);
    let before = run.changes().len();
    // As vim does: probe, move the old one aside, write anew, remove the old one.
    write(root, "4913", "");
    fs::remove_file(root.join("4913")).unwrap();
    fs::rename(root.join("a.md"), root.join("a.md~")).unwrap();
    write(root, "a.md", "two");
    fs::remove_file(root.join("a.md~")).unwrap();
    run.wait_until("the edit is seen", |run| agrees_with_disk(run, root));
    // As many other programs do: write beside it, rename over it.
    write(root, ".a.md.tmp123", "three");
    fs::rename(root.join(".a.md.tmp123"), root.join("a.md")).unwrap();
    run.wait_until("the second edit is seen", |run| agrees_with_disk(run, root));
    let told = keys_of(&run.changes()[before..]);
    assert_eq!(told, vec![("a.md".to_owned(), true); 2]);
}

#[test]
fn a_file_is_not_read_while_it_is_written() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    let run = watch_with(root, UNHURRIED);
    let mut text = String::new();
    for piece in 0..12 {
        text.push_str(&format!("piece {piece}\n"));
        write(root, "a.md", &text);
        std::thread::sleep(UNHURRIED / 12);
    }
    run.wait_until("the file is seen", |run| agrees_with_disk(run, root));
    let contents: Vec<Option<String>> = (0..run.changes().len())
        .map(|index| {
            let row = run.changes()[index].row.clone().unwrap();
            let row: serde_json::Value = serde_json::from_str(&row).unwrap();
            row["content"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(contents, [Some(text)], "only the whole file");
}

#[test]
fn a_file_without_rest_is_read_all_the_same() {
    let root = TempDir::new().unwrap();
    let root = root.path().to_owned();
    let run = watch(&root);
    let stop = vectide_model::StopSignal::new();
    let writer = std::thread::spawn({
        let (root, stop) = (root.clone(), stop.clone());
        move || {
            let mut text = String::new();
            while !stop.wait(SETTLE / 6) {
                text.push_str("more\n");
                write(&root, "log.md", &text);
            }
        }
    });
    run.wait_until("it is read", |run| !run.changes().is_empty());
    stop.stop();
    writer.join().unwrap();
    run.wait_until("its end is read", |run| agrees_with_disk(run, &root));
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out_of_the_directory() {
    use std::os::unix::fs::symlink;
    let outside = TempDir::new().unwrap();
    write(outside.path(), "secret.md", "secret");
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "a");
    symlink(root.join("a.md"), root.join("inside.md")).unwrap();
    symlink(outside.path().join("secret.md"), root.join("outside.md")).unwrap();
    symlink(outside.path(), root.join("folder")).unwrap();
    symlink(root, root.join("cycle")).unwrap();
    symlink(root.join("nowhere.md"), root.join("dangling.md")).unwrap();
    let run = read_once(root, "", HeldMap::default(), 0);
    assert_eq!(keys(&run.fold(HeldMap::default())), ["a.md", "inside.md"]);
    assert_eq!(run.dead_letters(), []);
}

#[test]
fn a_directory_that_is_gone_deletes_nothing() {
    let parent = TempDir::new().unwrap();
    let root = parent.path().join("docs");
    write(&root, "a.md", "a");
    let held = read_once(&root, "", HeldMap::default(), 0).fold(HeldMap::default());
    let json = format!(r#"{{"path": {root:?}}}"#);
    let config: FilesConfig = serde_json::from_str(&json).unwrap();
    let context = OpenContext::in_folder("/");
    let source = config.clone().open(&context).unwrap();
    fs::remove_dir_all(&root).unwrap();
    let mut run = run_source(
        source,
        Positions::new(),
        held,
        ReadMode::Follow,
        RecordingSink::default(),
    );
    assert!(matches!(run.join(), Err(SourceError::Failed { .. })));
    assert_eq!(run.batches(), []);
    assert_eq!(config.open(&context).err().unwrap().field, "path");
}

/// A volume that is not mounted yet leaves an empty folder at its place: every document was deleted.
#[test]
fn an_empty_folder_at_a_start_deletes_nothing() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "a");
    let held = read_once(root, "", HeldMap::default(), 0).fold(HeldMap::default());
    fs::remove_file(root.join("a.md")).unwrap();
    let mode = ReadMode::UntilCaughtUp;
    let mut run = start(root, SETTLE, "", mode, held, 1);
    let error = run.join().unwrap_err().to_string();
    assert_eq!(run.batches(), []);
    assert!(error.contains("is it mounted"), "{error}");
    assert!(error.contains("--resnapshot source"), "{error}");
    // With nothing held, as when it is read anew, an empty folder is as good as another.
    let run = read_once(root, "", HeldMap::default(), 1);
    assert_eq!(run.batches(), []);
}

#[test]
fn files_that_all_went_while_watched_are_deleted() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "a");
    write(root, "dir/b.md", "b");
    let mut run = watch(root);
    fs::remove_file(root.join("a.md")).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    run.wait_until("the deletes are seen", |run| agrees_with_disk(run, root));
    run.stop().unwrap();
}

/// A folder that was moved away while it was watched lost its files one by one.
#[test]
fn a_folder_that_goes_while_watched_deletes_nothing() {
    let parent = TempDir::new().unwrap();
    let root = parent.path().join("docs");
    write(&root, "a.md", "a");
    let mut run = watch(&root);
    let before = run.batches();
    fs::rename(&root, parent.path().join("moved")).unwrap();
    run.wait_until("it ends", RecordedRun::has_ended);
    let error = run.join().unwrap_err().to_string();
    assert!(error.contains("is it mounted"), "{error}");
    assert_eq!(run.batches(), before);
}

/// An unmounted volume leaves an empty folder that can be read: every document was deleted.
#[cfg(target_os = "linux")]
#[test]
fn an_unmounted_volume_deletes_nothing() {
    struct Mounted<'a>(&'a Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let mut unmount = std::process::Command::new("umount");
            drop(unmount.arg("--lazy").arg(self.0).output());
        }
    }
    let root = TempDir::new().unwrap();
    let root = root.path();
    let mut mount = std::process::Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "none"]).arg(root).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: nothing can be mounted here");
        return;
    }
    let mounted = Mounted(root);
    write(root, "a.md", "a");
    let mut run = watch(root);
    let before = run.batches();
    drop(mounted);
    run.wait_until("it ends", RecordedRun::has_ended);
    let error = run.join().unwrap_err().to_string();
    assert!(error.contains("is it mounted"), "{error}");
    assert_eq!(run.batches(), before);
}

/// The path was resolved once: what a deploy put in its place was never read.
#[cfg(unix)]
#[test]
fn a_link_that_is_flipped_is_followed() {
    use std::os::unix::fs::symlink;
    let parent = TempDir::new().unwrap();
    let (old, new) = (parent.path().join("1/docs"), parent.path().join("2/docs"));
    write(&old, "both.md", "old");
    write(&old, "gone.md", "old");
    write(&new, "both.md", "new");
    write(&new, "came.md", "new");
    let current = parent.path().join("current");
    symlink(parent.path().join("1"), &current).unwrap();
    let root = current.join("docs");
    let mut run = watch(&root);
    assert!(agrees_with_disk(&run, &root));
    // First a deploy that is careful, then one that is not.
    symlink(parent.path().join("2"), parent.path().join("next")).unwrap();
    fs::rename(parent.path().join("next"), &current).unwrap();
    fs::remove_dir_all(parent.path().join("1")).unwrap();
    run.wait_until("the flip is seen", |run| agrees_with_disk(run, &root));
    write(&new, "both.md", "edited");
    run.wait_until("the new place is watched", |run| {
        agrees_with_disk(run, &root)
    });
    write(&old, "both.md", "old again");
    fs::remove_file(&current).unwrap();
    std::thread::sleep(SETTLE * 3);
    symlink(parent.path().join("1"), &current).unwrap();
    run.wait_until("the flip back is seen", |run| agrees_with_disk(run, &root));
    let deleted = keys_of(&run.changes());
    assert!(!deleted.contains(&("both.md".to_owned(), false)));
    run.stop().unwrap();
}

/// `cp -p` and `rsync --times` keep the time of change: of equal size, the new file was taken for the
/// old one until the next start.
#[cfg(unix)]
#[test]
fn a_file_replaced_by_one_of_equal_size_and_time_is_read() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    write(root, "a.md", "one");
    write(root, "bad.md", b"\xff");
    let modified_at = fs::metadata(root.join("a.md")).unwrap().modified().unwrap();
    let mut run = watch(root);
    let replacement = root.join(".a.md.copied");
    fs::write(&replacement, "two").unwrap();
    let file = fs::File::options().write(true).open(&replacement).unwrap();
    file.set_modified(modified_at).unwrap();
    fs::rename(&replacement, root.join("a.md")).unwrap();
    run.wait_until("it is read", |run| {
        let rows = run.fold(HeldMap::default());
        content(&rows, "a.md").as_deref() == Some("two")
    });
    // Only who may read it changes, so there is nothing new to tell.
    use std::os::unix::fs::PermissionsExt as _;
    let letters = run.dead_letters().len();
    let readable = fs::Permissions::from_mode(0o640);
    fs::set_permissions(root.join("bad.md"), readable).unwrap();
    write(root, "b.md", "behind it");
    run.wait_until("what follows is read", |run| {
        keys(&run.fold(HeldMap::default())).contains(&"b.md".to_owned())
    });
    std::thread::sleep(SETTLE * 2);
    assert_eq!((run.dead_letters().len(), letters), (1, 1));
    run.stop().unwrap();
}

#[test]
fn a_storm_of_changes_ends_in_what_is_on_disk() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    for index in 0..20 {
        write(
            root,
            &format!("{}/{index}.md", index % 3),
            format!("start {index}"),
        );
    }
    let run = watch(root);
    // A fixed sequence of pseudo-random steps: linear congruential, so that a failure comes again.
    let mut state = 12_345_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..400 {
        let key = format!("{}/{}.md", random(3), random(25));
        match random(5) {
            0 => drop(fs::remove_file(root.join(&key))),
            1 => {
                let other = format!("{}/{}.md", random(3), random(25));
                drop(fs::rename(root.join(&key), root.join(other)));
            }
            2 if step % 40 == 0 => {
                let (from, to) = (root.join(random(3).to_string()), root.join("moved"));
                if fs::rename(&from, &to).is_ok() {
                    std::thread::sleep(SETTLE / 3);
                    fs::rename(to, from).unwrap();
                }
            }
            _ => write(root, &key, format!("step {step}")),
        }
        std::thread::sleep(Duration::from_millis(random(4)));
    }
    run.wait_until("told and on disk agree", |run| agrees_with_disk(run, root));
    std::thread::sleep(SETTLE * 4);
    assert!(agrees_with_disk(&run, root));
}
