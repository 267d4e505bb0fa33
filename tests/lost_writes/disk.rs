//! A disk that has written what it was made to, and nothing else for certain.
//!
//! It is played from the calls of a process. What a file holds is certain once a sync of the file began
//! after it; that a name stands for a file, once a sync of its folder did. Everything after that may be
//! there or not when the power fails: each write by itself, in any order, the last one torn at a block;
//! names in the order in which they were given, as journaling file systems do.
//!
//! Stricter than ext4 and XFS, where a file's sync takes its name along.

use crate::trace::Call;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use vectide_tests::Random;

/// What a disk writes as a whole.
const BLOCK_BYTES: usize = 512;

type Inode = usize;

/// What names in folders stand for from now on; `None` for nothing.
type NameChanges = Vec<(Inode, String, Option<Inode>)>;

/// The folder that everything is in.
const ROOT: Inode = 0;

/// A step of the disk, with its place among the calls.
enum Step {
    /// Names change together.
    Names(NameChanges),
    Write(Inode, u64, Vec<u8>),
    Truncate(Inode, u64),
    /// Covers the steps of calls before this one.
    Sync(Inode, usize),
}

/// Everything that was done to a folder.
pub(crate) struct Disk {
    steps: Vec<(usize, Step)>,
    folders: BTreeSet<Inode>,
}

#[derive(Clone)]
struct Descriptor {
    inode: Inode,
    offset: u64,
    appends: bool,
}

/// Follows the calls.
struct Player<'a> {
    root: &'a str,
    names: BTreeMap<(Inode, String), Inode>,
    descriptors: HashMap<i64, Descriptor>,
    lengths: Vec<u64>,
    folders: BTreeSet<Inode>,
    steps: Vec<(usize, Step)>,
}

impl Player<'_> {
    /// The folder and the name that a path stands for, when they are in the root.
    fn place(&self, at: Option<i64>, path: &str) -> Option<(Inode, String)> {
        let (mut folder, rest) = match at {
            Some(descriptor) if !path.starts_with('/') => {
                (self.descriptors.get(&descriptor)?.inode, path)
            }
            _ => (ROOT, path.strip_prefix(self.root)?),
        };
        let mut parts: Vec<&str> = rest
            .split('/')
            .filter(|it| !it.is_empty() && *it != ".")
            .collect();
        let name = parts.pop().unwrap_or("").to_owned();
        for part in parts {
            folder = *self.names.get(&(folder, part.to_owned()))?;
        }
        Some((folder, name))
    }

    fn found(&self, place: &(Inode, String)) -> Option<Inode> {
        if place.1.is_empty() {
            return Some(place.0);
        }
        self.names.get(place).copied()
    }

    fn name(&mut self, at: usize, changes: NameChanges) {
        for (folder, name, inode) in &changes {
            let place = (*folder, name.clone());
            match inode {
                Some(inode) => self.names.insert(place, *inode),
                None => self.names.remove(&place),
            };
        }
        self.steps.push((at, Step::Names(changes)));
    }

    fn make(&mut self, at: usize, (folder, name): (Inode, String)) -> Inode {
        let inode = self.lengths.len();
        self.lengths.push(0);
        self.name(at, vec![(folder, name, Some(inode))]);
        inode
    }

    fn truncate(&mut self, at: usize, inode: Inode, length: u64) {
        self.lengths[inode] = length;
        self.steps.push((at, Step::Truncate(inode, length)));
    }

    fn open(&mut self, at: usize, place: (Inode, String), flags: &str, descriptor: i64) {
        let is_set = |flag: &str| flags.split('|').any(|it| it == flag);
        let inode = match self.found(&place) {
            Some(inode) => {
                if is_set("O_TRUNC") {
                    self.truncate(at, inode, 0);
                }
                inode
            }
            None if is_set("O_CREAT") => self.make(at, place),
            None => return,
        };
        let opened = Descriptor {
            inode,
            offset: 0,
            appends: is_set("O_APPEND"),
        };
        self.descriptors.insert(descriptor, opened);
    }

    fn write(&mut self, at: usize, descriptor: i64, offset: Option<u64>, bytes: Vec<u8>) {
        let Some(open) = self.descriptors.get_mut(&descriptor) else {
            return;
        };
        let length = &mut self.lengths[open.inode];
        let from = offset.unwrap_or(if open.appends { *length } else { open.offset });
        let end = from + bytes.len() as u64;
        if offset.is_none() {
            open.offset = end;
        }
        *length = end.max(*length);
        self.steps.push((at, Step::Write(open.inode, from, bytes)));
    }

    fn play(&mut self, at: usize, call: Call) {
        match call {
            Call::Open {
                at: folder,
                path,
                flags,
                descriptor,
            } => {
                self.descriptors.remove(&descriptor);
                if let Some(place) = self.place(folder, &path) {
                    self.open(at, place, &flags, descriptor);
                }
            }
            Call::Close(descriptor) => drop(self.descriptors.remove(&descriptor)),
            Call::Duplicate { from, to } => {
                if let Some(open) = self.descriptors.get(&from).cloned() {
                    self.descriptors.insert(to, open);
                }
            }
            Call::Write {
                descriptor,
                offset,
                bytes,
            } => self.write(at, descriptor, offset, bytes),
            Call::Seek(descriptor, offset) => {
                if let Some(open) = self.descriptors.get_mut(&descriptor) {
                    open.offset = offset;
                }
            }
            Call::Truncate(descriptor, length) => {
                if let Some(open) = self.descriptors.get(&descriptor) {
                    self.truncate(at, open.inode, length);
                }
            }
            Call::Sync { descriptor, since } => {
                if let Some(open) = self.descriptors.get(&descriptor) {
                    self.steps.push((at, Step::Sync(open.inode, since)));
                }
            }
            Call::Rename { from, to } => {
                let from = self.place(from.0, &from.1);
                let to = self.place(to.0, &to.1);
                let (Some(from), Some(to)) = (from, to) else {
                    return;
                };
                let inode = self.found(&from).unwrap();
                self.name(at, vec![(from.0, from.1, None), (to.0, to.1, Some(inode))]);
            }
            Call::Remove(folder, path) => {
                if let Some((folder, name)) = self.place(folder, &path) {
                    self.name(at, vec![(folder, name, None)]);
                }
            }
            Call::MakeFolder(folder, path) => {
                if let Some(place) = self.place(folder, &path) {
                    let inode = self.make(at, place);
                    self.folders.insert(inode);
                }
            }
            Call::End => self.descriptors.clear(),
        }
    }
}

impl Disk {
    /// What the calls did to the folder `root`, which was empty.
    pub(crate) fn play(calls: Vec<Call>, root: &Path) -> Self {
        let mut player = Player {
            root: root.to_str().unwrap(),
            names: BTreeMap::new(),
            descriptors: HashMap::new(),
            lengths: vec![0],
            folders: BTreeSet::new(),
            steps: Vec::new(),
        };
        for (at, call) in calls.into_iter().enumerate() {
            player.play(at, call);
        }
        Self {
            steps: player.steps,
            folders: player.folders,
        }
    }

    /// Steps there are.
    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The last bytes that were written before a step to a file of that name.
    pub(crate) fn last_written(&self, name: &str, before: usize) -> Option<&[u8]> {
        let steps = &self.steps[..before];
        let named = steps.iter().find_map(|(_, step)| match step {
            Step::Names(changes) => changes.iter().find(|it| it.1 == name)?.2,
            _ => None,
        })?;
        steps.iter().rev().find_map(|(_, step)| match step {
            Step::Write(inode, _, written) if *inode == named => Some(&**written),
            _ => None,
        })
    }

    /// Writes to `target` what is there after the power failed before a step; without `random`,
    /// everything.
    pub(crate) fn write(&self, before: usize, mut random: Option<&mut Random>, target: &Path) {
        let steps = &self.steps[..before];
        let names = self.names(steps, random.as_deref_mut());
        let mut contents: HashMap<Inode, Content> = HashMap::new();
        for (at, step) in steps {
            match step {
                Step::Write(inode, ..) | Step::Truncate(inode, _) => {
                    contents
                        .entry(*inode)
                        .or_default()
                        .pending
                        .push((*at, step));
                }
                Step::Sync(inode, since) => {
                    contents.entry(*inode).or_default().sync(*since);
                }
                Step::Names(_) => {}
            }
        }
        let mut folders = vec![(ROOT, target.to_owned())];
        while let Some((folder, path)) = folders.pop() {
            fs::create_dir_all(&path).unwrap();
            for ((_, name), inode) in
                names.range((folder, String::new())..(folder + 1, String::new()))
            {
                let path = path.join(name);
                if self.folders.contains(inode) {
                    folders.push((*inode, path));
                } else {
                    let content = contents.remove(inode).unwrap_or_default();
                    content.write(random.as_deref_mut(), &path);
                }
            }
        }
    }

    /// The names that are there.
    fn names(
        &self,
        steps: &[(usize, Step)],
        random: Option<&mut Random>,
    ) -> BTreeMap<(Inode, String), Inode> {
        let changes: Vec<_> = steps
            .iter()
            .filter_map(|(at, step)| match step {
                Step::Names(changes) => Some((*at, changes)),
                _ => None,
            })
            .collect();
        let is_synced = |(at, changes): &(usize, &NameChanges)| {
            steps.iter().any(|(_, step)| match step {
                Step::Sync(inode, since) => {
                    at < since && changes.iter().any(|(folder, ..)| folder == inode)
                }
                _ => false,
            })
        };
        let certain = changes
            .iter()
            .rposition(is_synced)
            .map_or(0, |last| last + 1);
        let kept = random.map_or(changes.len(), |random| {
            certain + random.below((changes.len() - certain + 1) as u64) as usize
        });
        let mut names = BTreeMap::new();
        for (_, changes) in &changes[..kept] {
            for (folder, name, inode) in *changes {
                let place = (*folder, name.clone());
                match inode {
                    Some(inode) => names.insert(place, *inode),
                    None => names.remove(&place),
                };
            }
        }
        names
    }
}

/// What a file holds.
#[derive(Default)]
struct Content<'a> {
    certain: Vec<u8>,
    pending: Vec<(usize, &'a Step)>,
}

impl Content<'_> {
    fn sync(&mut self, since: usize) {
        let covered = self
            .pending
            .iter()
            .take_while(|(at, _)| *at < since)
            .count();
        for (_, step) in self.pending.drain(..covered) {
            apply(&mut self.certain, step, usize::MAX);
        }
    }

    fn write(mut self, mut random: Option<&mut Random>, path: &Path) {
        let last = self.pending.len().saturating_sub(1);
        for (number, (_, step)) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let Some(random) = random.as_deref_mut() else {
                apply(&mut self.certain, step, usize::MAX);
                continue;
            };
            if random.below(2) == 0 {
                continue;
            }
            let blocks = if number == last && random.below(2) == 0 {
                random.below(16) as usize
            } else {
                usize::MAX / BLOCK_BYTES
            };
            apply(&mut self.certain, step, blocks * BLOCK_BYTES);
        }
        // Journals are laid out ahead: what is zero at their end takes no room.
        let used = self
            .certain
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let file = File::create(path).unwrap();
        file.write_all_at(&self.certain[..used], 0).unwrap();
        file.set_len(self.certain.len() as u64).unwrap();
    }
}

/// Does a step to a file's bytes, the first `limit` of them.
fn apply(bytes: &mut Vec<u8>, step: &Step, limit: usize) {
    match step {
        Step::Write(_, offset, written) => {
            let written = &written[..written.len().min(limit)];
            let (from, end) = (*offset as usize, *offset as usize + written.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[from..end].copy_from_slice(written);
        }
        Step::Truncate(_, length) => bytes.resize(*length as usize, 0),
        Step::Names(_) | Step::Sync(..) => {}
    }
}
