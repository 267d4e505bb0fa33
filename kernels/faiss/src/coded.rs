//! Searching the coded segments of a generation together: one choice of lists, one table and one set of
//! candidates for all of them, whose scores are then computed from the stored vectors.
//!
//! Invariant: which rows are candidates depends on the query, the generation and the live rows, not on how
//! the rows are divided into segments: the candidates are all that reach the sum of the `depth`-th best.

use crate::bitmap::Bitmap;
use crate::budget::Budget;
use crate::codes::Codes;
use crate::dot::Query;
use crate::generation::Generation;
use crate::rows::Rows;
use crate::scan::Table;
use crate::top::Top;
use std::slice::{from_mut, from_ref};
use vectide_model::Effort;

/// Lists looked through at [`Effort::NOMINAL`], in square roots of all lists, and rows whose score is
/// computed. Measured for a recall@10 of 0.98 on sentences by all-MiniLM-L6-v2 (the index benchmark's):
/// 108 of 900 lists at 200,000 rows, 164 of 2,048 at 1,000,000. A choice of lists that grows as the root keeps
/// the share of rows falling and the recall level.
const NOMINAL_PROBES: f32 = 3.6;
const NOMINAL_DEPTH: f32 = 400.0;
/// Rows looked through at least, which takes some 30 microseconds. Questions that have nothing to do with
/// the rows find theirs scattered over many lists: with 19 % of the lists of 33,000 sentences recall was 0.89.
const NOMINAL_ROWS: f32 = 32_768.0;
/// Rows whose score is computed for each hit beyond ten.
const DEPTH_PER_HIT: usize = 4;
/// How many times the depth candidates with the same sum may come to before some are left out.
const TIES_MAX: usize = 16;
/// Rows that are all scored where a filter leaves so few, one in so many at most: that takes half a
/// millisecond, and finding them by their codes would take looking through most lists.
const EXACT_ROWS: usize = 12_288;
const EXACT_SHARE: usize = 8;
/// What of the rows to look through has to pass a filter, by the share that passes: between none of them (1) and
/// all (0). With a tenth that lies together, apart from most questions, 0.5 found 0.962 of the true hits and 0.35
/// 0.979 where 0.980 were found without a filter.
const PASSING_POWER: f32 = 0.3;
/// The share of the rows from which on as many are scored as without a filter; of fewer rows fewer stand between
/// a hit and the place that its code gives it, down to the root of the share.
const FULL_DEPTH_SHARE: f32 = 0.25;
/// How far ahead vectors are asked for.
const AHEAD: usize = 4;

/// Lists to look through, of so many that hold so many live rows, which are this share of those that would be
/// live without the filter.
fn probes(effort: Effort, lists: usize, live: usize, share: f32) -> usize {
    let lists_wanted = NOMINAL_PROBES * (lists as f32).sqrt();
    // Rows that pass a filter lie further away, but nearer than if all that are looked through had to pass it.
    let rows_wanted = NOMINAL_ROWS * share.powf(PASSING_POWER);
    let for_rows = lists as f32 * rows_wanted / live.max(1) as f32;
    let probes = lists_wanted.max(for_rows) * effort.factor();
    (probes.ceil() as usize).clamp(1, lists.max(1))
}

/// Whether a filter leaves so few rows that all are scored.
pub(crate) fn are_few(live: usize, unfiltered: usize) -> bool {
    live <= EXACT_ROWS && live.saturating_mul(EXACT_SHARE) <= unfiltered
}

/// Rows whose score is computed for `k` hits among this share of the rows.
fn depth(effort: Effort, k: usize, share: f32) -> usize {
    let narrowed = (share / FULL_DEPTH_SHARE).sqrt().min(1.0);
    let for_ten = (NOMINAL_DEPTH * narrowed * effort.factor().sqrt()).ceil() as usize;
    let for_more = k.saturating_sub(10).saturating_mul(DEPTH_PER_HIT);
    for_ten.saturating_add(for_more).max(k)
}

/// A segment of the generation that is searched.
#[derive(Clone, Copy)]
pub(crate) struct CodedSegment<'a> {
    /// Its codes.
    pub(crate) codes: &'a Codes,
    /// Its vectors.
    pub(crate) rows: &'a Rows,
    /// Its live rows that pass the filter.
    pub(crate) live: &'a Bitmap,
    /// How many are live, whether they pass or not.
    pub(crate) live_unfiltered: usize,
}

/// A row that may be a hit.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    sum: i32,
    segment: u32,
    row: u32,
}

/// The candidates with the greatest sums.
struct Candidates {
    depth: usize,
    found: Vec<Candidate>,
    /// Below it no row can be a candidate any more.
    floor: i32,
    /// Cut when there are so many.
    cut_at: usize,
}

impl Candidates {
    fn new(depth: usize) -> Self {
        Self {
            depth,
            found: Vec::with_capacity(depth.min(4096) * 2),
            floor: i32::MIN,
            cut_at: depth.saturating_mul(2),
        }
    }

    fn push(&mut self, candidate: Candidate) {
        self.found.push(candidate);
        if self.found.len() >= self.cut_at {
            self.cut();
        }
    }

    /// Leaves those that reach the sum of the `depth`-th.
    fn cut(&mut self) {
        if self.found.len() <= self.depth {
            return;
        }
        let (_, last, _) = self
            .found
            .select_nth_unstable_by_key(self.depth - 1, |it| std::cmp::Reverse(it.sum));
        self.floor = last.sum;
        self.found.retain(|it| it.sum >= self.floor);
        if self.found.len() > self.depth.saturating_mul(TIES_MAX) {
            // So many equal rows: the choice is the same in each search of the same segments.
            self.found
                .sort_unstable_by_key(|it| (std::cmp::Reverse(it.sum), it.segment, it.row));
            self.found.truncate(self.depth);
        }
        self.cut_at = self.found.len().max(self.depth).saturating_mul(2);
    }
}

/// Offers the best `k` of the live rows, and others.
pub(crate) fn search(
    generation: &Generation,
    segments: &[CodedSegment<'_>],
    query: &Query<'_>,
    (k, effort): (usize, Effort),
    top: &mut Top,
    budget: &mut Budget,
) {
    let live: usize = segments.iter().map(|segment| segment.live.live()).sum();
    let unfiltered: usize = segments.iter().map(|it| it.live_unfiltered).sum();
    let share = live as f32 / unfiltered.max(1) as f32;
    let depth = depth(effort, k, share);
    if live <= depth || are_few(live, unfiltered) {
        for segment in segments {
            let tops = from_mut(&mut *top);
            segment
                .rows
                .scan(from_ref(query), segment.live, tops, budget);
        }
        return;
    }
    let mut candidates = Candidates::new(depth);
    let probes = probes(effort, generation.lists(), live, share);
    choose(generation, segments, query, probes, &mut candidates, budget);
    candidates.cut();
    let mut found = candidates.found;
    // In the order of memory.
    found.sort_unstable_by_key(|it| (it.segment, it.row));
    for (at, candidate) in found.iter().enumerate() {
        if let Some(next) = found.get(at + AHEAD) {
            segments[next.segment as usize]
                .rows
                .prefetch(next.row as usize);
        }
        let rows = segments[candidate.segment as usize].rows;
        let row = candidate.row as usize;
        top.offer_row(query.dot(rows.vector(row)), || rows.chunk(row));
    }
}

/// Looks through the lists nearest to the query, and through more if they have too few live rows.
fn choose(
    generation: &Generation,
    segments: &[CodedSegment<'_>],
    query: &Query<'_>,
    probes: usize,
    candidates: &mut Candidates,
    budget: &mut Budget,
) {
    let scores = generation.list_scores(query);
    let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if probes < order.len() {
        order.select_nth_unstable_by(probes, by_score);
    }
    order[..probes].sort_unstable_by(by_score);
    let table = Table::new(
        query.components(),
        generation.codebook(),
        generation.parts(),
    );
    let best = scores[order[0]];
    for visited in 0..order.len() {
        if budget.is_over() {
            return;
        }
        if visited >= probes {
            if candidates.found.len() >= candidates.depth {
                return;
            }
            if visited == probes {
                order[probes..].sort_unstable_by(by_score);
            }
        }
        let list = order[visited];
        let bias = table.units_of(scores[list] - best);
        for (segment, number) in segments.iter().zip(0..) {
            let (places, blocks) = segment.codes.list(list);
            let floor = candidates.floor.saturating_sub(bias);
            table.scan(blocks, places.len(), floor, &mut |at, sum| {
                let row = segment.codes.row(places.start + at);
                let sum = i32::from(sum) + bias;
                if sum >= candidates.floor && segment.live.contains(row) {
                    candidates.push(Candidate {
                        sum,
                        segment: number,
                        row: row as u32,
                    });
                }
            });
        }
    }
}
