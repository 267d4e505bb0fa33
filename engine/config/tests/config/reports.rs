//! Every bad configuration in `cases/` gives exactly the report beside it.
//!
//! `VECTIDE_UPDATE_EXPECTED=1` writes the reports anew: read the difference before it is kept.

use crate::pipeline::{Pipeline, lookup, schema};
use std::path::PathBuf;
use vectide_config::Document;

/// What a user of the crate does: parse, check, references, and only then types.
fn report_on(file: &str, bytes: &[u8]) -> String {
    let mut document = match Document::parse(file, bytes, &lookup) {
        Ok(document) => document,
        Err(report) => return report.to_string(),
    };
    let mut report = document.check(&schema());
    report.extend(document.check_references("documents.*.from", "sources", "source"));
    report.extend(document.check_references("documents.*.from.*", "sources", "source"));
    report.extend(document.check_references("indexes.*.from", "documents", "entry of `documents`"));
    if report.is_empty()
        && let Err(problem) = document.parse_at::<Pipeline>("")
    {
        report.push(problem);
    }
    report.to_string()
}

#[test]
fn every_case_gives_its_report() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config/cases");
    let mut wrong = Vec::new();
    let mut cases = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        cases += 1;
        let file = path.file_name().unwrap().to_str().unwrap();
        let actual = report_on(file, &std::fs::read(&path).unwrap());
        assert!(!actual.is_empty(), "{file} is not bad");
        let expected_path = path.with_extension("report");
        if std::env::var_os("VECTIDE_UPDATE_EXPECTED").is_some() {
            std::fs::write(&expected_path, &actual).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if actual != expected {
            wrong.push(format!(
                "== {file}\n-- expected\n{expected}-- actual\n{actual}"
            ));
        }
    }
    assert!(cases >= 15, "only {cases} cases found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What can't be kept as a readable case file.
#[test]
fn refuses_what_is_no_text_or_too_much() {
    let table: [(&[u8], &str); 5] = [
        (b"", "x.yaml:1:1: error: the file holds no configuration\n"),
        (
            b"# nothing\n",
            "x.yaml:1:1: error: the file holds no configuration\n",
        ),
        (
            b"a: 1\nb: \xc3\xa9\xff\n",
            "x.yaml:2:5: error: the file is not UTF-8 text\n  hint: save it as UTF-8\n",
        ),
        (
            b"a:\n\tb: 1\n",
            "x.yaml:2:2: error: a: not valid YAML: a tab stands where YAML wants spaces\n  \
             hint: indent with spaces\n",
        ),
        (
            &[b' '; 1024 * 1024 + 1],
            "x.yaml:1:1: error: the file is larger than 1 MiB\n  \
             hint: is this the configuration?\n",
        ),
    ];
    for (bytes, expected) in table {
        assert_eq!(report_on("x.yaml", bytes), expected);
    }
}

#[test]
fn reads_json_and_a_byte_order_mark() {
    let json = b"\xef\xbb\xbf{\"sources\": {}, \"indexes\": {}, \"apiVersion\": \"vectide/v1\"}";
    assert_eq!(report_on("x.json", json), "");
}

#[test]
fn says_which_file_can_not_be_read() {
    let report = Document::read("/does/not/exist.yaml".as_ref(), &lookup).unwrap_err();
    let text = report.to_string();
    assert!(
        text.starts_with("/does/not/exist.yaml:1:1: error: the file can't be read: "),
        "{text}"
    );
}
