//! `vectide dlq`: dead letters of a pipeline that does not run, and decoding them again.

use crate::failure::Failure;
use crate::text::{shortened, shown_bytes};
use crate::validate;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use vectide_connectors::dead_letters::{letter_json, time_text};
use vectide_engine::{DeadLetters, LetterSelection};
use vectide_model::KeptLetter;

/// Characters of a detail in a list: a line of an ordinary terminal with what stands before it.
const DETAIL_CHARACTERS_MAX: usize = 100;

/// Characters of a key or partition in a list.
const NAME_CHARACTERS_MAX: usize = 40;

fn open(config: &Path) -> Result<DeadLetters, Failure> {
    let loaded = validate::load(config)?;
    let letters = DeadLetters::open(&loaded.state_directory())?;
    let counts = letters.counts()?;
    if counts.dropped > 0 {
        eprintln!(
            "{} older letters were removed, because there were more than dead_letters.keep",
            counts.dropped
        );
    }
    Ok(letters)
}

/// Prints a line for each letter; a reader that had enough ends it.
fn print(
    letters: &DeadLetters,
    selection: &LetterSelection,
    line: impl Fn(&KeptLetter) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for kept in letters.iter() {
        let kept = kept?;
        if !selection.accepts(&kept) {
            continue;
        }
        match writeln!(out, "{}", line(&kept)?) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Lists letters, a line each.
///
/// # Errors
/// A bad configuration, or a state that is missing, in use or damaged.
pub fn list(config: &Path, selection: &LetterSelection) -> Result<(), Failure> {
    print(&open(config)?, selection, |kept| {
        let letter = &kept.letter;
        let key = letter.key.as_deref().unwrap_or("-");
        Ok(format!(
            "{}\t{}\t{} {}@{}\t{}\t{}",
            kept.id,
            letter.reason.as_str(),
            letter.position.source,
            shortened(&letter.position.partition, NAME_CHARACTERS_MAX),
            letter.position.offset,
            shortened(key, NAME_CHARACTERS_MAX),
            shortened(&letter.detail, DETAIL_CHARACTERS_MAX),
        ))
    })
}

/// Prints letters in full, a JSON object each.
///
/// # Errors
/// As [`list`].
pub fn list_json(config: &Path, selection: &LetterSelection) -> Result<(), Failure> {
    print(&open(config)?, selection, |kept| Ok(letter_json(kept)?))
}

/// Shows everything about a letter.
///
/// # Errors
/// As [`list`], and when there is no such letter.
pub fn show(config: &Path, id: u64) -> Result<(), Failure> {
    let letters = open(config)?;
    let Some(kept) = letters.get(id)? else {
        return Err(Failure::new(format!(
            "there is no dead letter {id}: it was replayed, removed or never there\n\
             hint: vectide dlq list CONFIG"
        )));
    };
    match std::io::stdout().write_all(describe(&kept).as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn describe(kept: &KeptLetter) -> String {
    let letter = &kept.letter;
    let position = &letter.position;
    let mut text = format!(
        "id         {}\nreason     {}\ndetail     {}\nsource     {}\npartition  {}\noffset     {}\n\
         time       {}\n",
        kept.id,
        letter.reason.as_str(),
        shortened(&letter.detail, usize::MAX),
        position.source,
        shortened(&position.partition, usize::MAX),
        position.offset,
        time_text(kept.written_at),
    );
    if let Some(key) = &letter.key {
        text += &format!("key        {}\n", shortened(key, usize::MAX));
    }
    if letter.is_cut {
        text += "only a part of its bytes was kept: it can't be replayed\n";
    }
    if let Some(raw_key) = &letter.raw_key {
        text += &format!("\nbytes of the key:\n{}\n", shown_bytes(raw_key).trim_end());
    }
    if letter.is_tombstone {
        text += "\nthe record had no value\n";
    } else {
        text += &format!("\nbytes:\n{}\n", shown_bytes(&letter.raw).trim_end());
    }
    text
}

/// Replays letters: prints what became of them as JSON, and each that stays on standard error.
///
/// # Errors
/// A bad configuration, a state that is missing or in use, or what ended the pipeline.
pub fn replay(config: &Path, selection: LetterSelection) -> Result<(), Failure> {
    let loaded = validate::load(config)?;
    // A state is not made by a replay, and it is told before models are opened.
    drop(DeadLetters::open(&loaded.state_directory())?);
    let (plan, redecoders) = validate::open_without_sources(loaded)?;
    let report = vectide_engine::replay(plan, redecoders, selection)?;
    for refusal in &report.refusals {
        let detail = shortened(&refusal.detail, usize::MAX);
        eprintln!("letter {} stays: {}: {detail}", refusal.id, refusal.reason);
        if !refusal.hint.is_empty() {
            eprintln!("  hint: {}", refusal.hint);
        }
    }
    let told = report.refusals.len() as u64;
    if report.refused > told {
        eprintln!("{} more letters stay", report.refused - told);
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
