//! A folder of documents: indexed, watched, edited, renamed, deleted; unchanged text is never
//! embedded again, also not by a restart; and an empty one at a start deletes nothing unasked.

use std::path::{Path, PathBuf};
use std::time::Duration;
use vectide_tests::{Running, call, free_port, run_to_end};

fn config(directory: &Path, port: u16) -> PathBuf {
    let path = directory.join("pipeline.yaml");
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  docs: {{type: files, path: ./docs, settle: 50ms}}
documents:
  docs: {{from: docs, text: "{{{{ content }}}}", metadata: {{path: "{{{{ path }}}}"}}}}
indexes:
  docs:
    from: docs
    chunk: {{type: structured}}
    embed: {{model: hashing}}
server: {{listen: "127.0.0.1:{port}"}}
"#
    );
    std::fs::write(&path, yaml).unwrap();
    path
}

fn section(number: usize) -> String {
    let body = "It says something of its own, at some length, about what it is and does. ";
    format!(
        "## Section {number}\n\nThis is section {number}. {}\n\n",
        body.repeat(9)
    )
}

fn best(running: &Running, text: &str) -> Option<(String, String)> {
    let answer = running.client().query("docs", text, 3).ok()?;
    let hit = answer.hits.first()?;
    Some((hit.document.to_string(), hit.text.clone()?))
}

fn embedded(running: &Running) -> f64 {
    let (_, metrics) = running.get("/metrics");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("vectide_embedded_chunks_total{"));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .unwrap_or_default()
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn edits_renames_and_deletes_show_in_answers() {
    let directory = tempfile::tempdir().unwrap();
    let docs = directory.path().join("docs");
    std::fs::create_dir(&docs).unwrap();
    let long: String = (0..40).map(section).collect();
    std::fs::write(docs.join("long.md"), &long).unwrap();
    std::fs::write(
        docs.join("page.html"),
        "<title>Zebra</title><p>Stripes of zebras.</p>",
    )
    .unwrap();
    let port = free_port();
    let config = config(directory.path(), port);
    let mut running = Running::start(&config, port);
    running.wait_until("indexed", SOON, |it| {
        best(it, "zebra stripes").is_some_and(|b| b.0 == "page.html")
    });
    let before = embedded(&running);
    assert!(before > 15.0, "{before}");

    let edited = long.replace(
        "This is section 20.",
        "A xylophone plays in section twenty.",
    );
    std::fs::write(docs.join("long.md"), edited).unwrap();
    running.wait_until("edited", SOON, |it| {
        best(it, "xylophone plays").is_some_and(|(_, text)| text.contains("xylophone"))
    });
    let again = embedded(&running) - before;
    println!("an edit of one sentence embedded {again} of {before} chunks");
    assert!(
        (1.0..=4.0).contains(&again),
        "{again} chunks were embedded again"
    );

    std::fs::rename(docs.join("page.html"), docs.join("animal.html")).unwrap();
    running.wait_until("renamed", SOON, |it| {
        best(it, "zebra stripes").is_some_and(|b| b.0 == "animal.html")
    });
    assert_eq!(running.get("/v1/indexes/docs/documents/page.html").0, 404);
    std::fs::remove_file(docs.join("animal.html")).unwrap();
    running.wait_until("deleted", SOON, |it| {
        it.get("/v1/indexes/docs/documents/animal.html").0 == 404
    });
    assert!(running.terminate(), "SIGTERM ends it cleanly");

    let report = run_to_end(&config);
    assert_eq!(report["embedded_chunks"], 0, "{report}");
    assert_eq!(report["documents"], 1);
}

/// A volume that is not mounted is an empty folder: a start with one deleted every document.
#[test]
fn an_empty_folder_is_refused_until_it_is_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let docs = directory.path().join("docs");
    std::fs::create_dir(&docs).unwrap();
    std::fs::write(docs.join("a.md"), "Something to keep.").unwrap();
    let config = config(directory.path(), free_port());
    assert_eq!(run_to_end(&config)["documents"], 1);
    std::fs::remove_file(docs.join("a.md")).unwrap();
    let (status, _, complaints) = call(&["run", "--until-caught-up"], &config, &[]);
    assert_eq!(status, Some(1), "{complaints}");
    assert!(
        complaints.contains("vectide run CONFIG --resnapshot docs"),
        "{complaints}"
    );
    let (_, kept, _) = call(&["export"], &config, &["documents"]);
    assert!(kept.contains("a.md"), "{kept}");
    let anew = ["run", "--until-caught-up", "--resnapshot", "docs"];
    let (status, told, complaints) = call(&anew, &config, &[]);
    assert_eq!(status, Some(0), "{complaints}");
    assert!(told.contains(r#""documents":0"#), "{told}");
    // Nothing is held any longer, so an empty folder is as good as another.
    assert_eq!(run_to_end(&config)["documents"], 0);
}
