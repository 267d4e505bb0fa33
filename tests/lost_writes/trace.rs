//! The calls of a process that change files, as strace writes them down.
//!
//! Invariant: a call counts when it has returned; a sync covers what was done before it began.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// What is traced: everything that changes files or what a descriptor means.
const CALLS: &str = "openat,creat,close,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,rename,\
     renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,truncate,fallocate,lseek,dup,\
     dup2,dup3,fcntl,link,linkat,copy_file_range,sendfile";

/// A call that succeeded. Paths are as they were given; `at` is the descriptor of the folder that a
/// relative one starts from.
#[derive(Debug)]
pub(crate) enum Call {
    Open {
        at: Option<i64>,
        path: String,
        flags: String,
        descriptor: i64,
    },
    Close(i64),
    Duplicate {
        from: i64,
        to: i64,
    },
    Write {
        descriptor: i64,
        /// `None`: where the descriptor stands.
        offset: Option<u64>,
        bytes: Vec<u8>,
    },
    Seek(i64, u64),
    Truncate(i64, u64),
    /// The number of the call that had returned last when it began.
    Sync {
        descriptor: i64,
        since: usize,
    },
    Rename {
        from: (Option<i64>, String),
        to: (Option<i64>, String),
    },
    Remove(Option<i64>, String),
    MakeFolder(Option<i64>, String),
    /// The process ended.
    End,
}

/// A command that runs another under strace, which writes to `log`.
pub(crate) fn traced(program: &Path, log: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-qq", "-xx", "-s", "1000000000"]);
    command.args(["-e", &format!("trace={CALLS}"), "-e", "signal=none", "-o"]);
    command.arg(log).arg(program);
    command
}

/// Reads a log; `calls` has those before it.
pub(crate) fn read(log: &str, calls: &mut Vec<Call>) {
    // By process: the line up to where another one came between, and the calls until then.
    let mut begun: HashMap<&str, (String, usize)> = HashMap::new();
    for line in log.lines() {
        let (process, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        if let Some(head) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(process, (head.trim_end().to_owned(), calls.len()));
        } else if rest.starts_with("<... ") {
            let (head, since) = begun.remove(process).unwrap();
            let (_, tail) = rest.split_once(" resumed>").unwrap();
            calls.extend(parse(&format!("{head}{tail}"), since));
        } else {
            calls.extend(parse(rest, calls.len()));
        }
    }
    calls.push(Call::End);
}

/// A call, if it succeeded and matters.
fn parse(line: &str, since: usize) -> Option<Call> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result = result.split_whitespace().next()?;
    let result: i64 = result.parse().ok().filter(|result| *result >= 0)?;
    let arguments: Vec<&str> = arguments
        .trim_end()
        .strip_suffix(')')?
        .split(", ")
        .collect();
    let number = |at: usize| -> i64 { arguments[at].parse().unwrap() };
    let at = |at: usize| (arguments[at] != "AT_FDCWD").then(|| number(at));
    let path = |at: usize| String::from_utf8(unhex(arguments[at])).unwrap();
    let written = |at: usize| {
        let mut bytes = unhex(arguments[at]);
        bytes.truncate(result as usize);
        bytes
    };
    Some(match name {
        "openat" => Call::Open {
            at: at(0),
            path: path(1),
            flags: arguments[2].to_owned(),
            descriptor: result,
        },
        "close" => Call::Close(number(0)),
        "dup" | "dup2" | "dup3" => Call::Duplicate {
            from: number(0),
            to: result,
        },
        "fcntl" if arguments[1].starts_with("F_DUPFD") => Call::Duplicate {
            from: number(0),
            to: result,
        },
        "fcntl" => return None,
        "write" => Call::Write {
            descriptor: number(0),
            offset: None,
            bytes: written(1),
        },
        "pwrite64" => Call::Write {
            descriptor: number(0),
            offset: Some(number(3) as u64),
            bytes: written(1),
        },
        "lseek" => Call::Seek(number(0), result as u64),
        "ftruncate" => Call::Truncate(number(0), number(1) as u64),
        "fsync" | "fdatasync" => Call::Sync {
            descriptor: number(0),
            since,
        },
        "rename" => Call::Rename {
            from: (None, path(0)),
            to: (None, path(1)),
        },
        "renameat" | "renameat2" => Call::Rename {
            from: (at(0), path(1)),
            to: (at(2), path(3)),
        },
        "unlink" | "rmdir" => Call::Remove(None, path(0)),
        "unlinkat" => Call::Remove(at(0), path(1)),
        "mkdir" => Call::MakeFolder(None, path(0)),
        "mkdirat" => Call::MakeFolder(at(0), path(1)),
        // One that is not understood would make the disk wrong: the comparison with the real one at
        // the end finds it.
        _ => return None,
    })
}

/// A string of `\x41` and the like.
fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim_matches('"').as_bytes();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    let bytes = text.chunks_exact(4);
    bytes
        .map(|hex| digit(hex[2]) << 4 | digit(hex[3]))
        .collect()
}
