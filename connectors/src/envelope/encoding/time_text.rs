//! Times that are counted from 1970 or midnight, as ISO 8601 text.
//!
//! Invariant: a point in time has one text whatever unit it was counted in, as the fraction has no
//! trailing zeros; what ISO 8601 can't say (years beyond 9999) is left to the caller as `false`.

use std::fmt::Write;
use time::{Date, OffsetDateTime};

/// 1970-01-01 as a Julian day.
const EPOCH_JULIAN_DAY: i64 = 2_440_588;

const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Unit {
    fn nanoseconds(self, count: i64) -> i128 {
        let per_unit = match self {
            Self::Milliseconds => 1_000_000,
            Self::Microseconds => 1_000,
            Self::Nanoseconds => 1,
        };
        i128::from(count) * per_unit
    }
}

/// Whether a time is one everywhere, or what a clock on the wall showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    Utc,
    Local,
}

/// `2024-02-29`.
pub(crate) fn write_date(days: i64, out: &mut String) -> bool {
    let julian_day = days
        .checked_add(EPOCH_JULIAN_DAY)
        .and_then(|day| i32::try_from(day).ok());
    let Some(date) = julian_day.and_then(|day| Date::from_julian_day(day).ok()) else {
        return false;
    };
    push_date(date, out);
    true
}

/// `2024-02-29T13:45:01.5`, with `Z` where it is one everywhere.
pub(crate) fn write_date_time(count: i64, unit: Unit, zone: Zone, out: &mut String) -> bool {
    let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(unit.nanoseconds(count)) else {
        return false;
    };
    push_date(at.date(), out);
    let (hour, minute, second) = at.to_hms();
    push(out, format_args!("T{hour:02}:{minute:02}:{second:02}"));
    push_fraction(u128::from(at.nanosecond()), out);
    if zone == Zone::Utc {
        out.push('Z');
    }
    true
}

/// `13:45:01.5`; MySQL's times of day may be negative and longer than a day.
pub(crate) fn write_time(count: i64, unit: Unit, out: &mut String) {
    let nanoseconds = unit.nanoseconds(count);
    if nanoseconds < 0 {
        out.push('-');
    }
    let nanoseconds = nanoseconds.unsigned_abs();
    let seconds = nanoseconds / NANOSECONDS_PER_SECOND;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    push(
        out,
        format_args!("{hours:02}:{minutes:02}:{:02}", seconds % 60),
    );
    push_fraction(nanoseconds % NANOSECONDS_PER_SECOND, out);
}

/// `PT90061.5S`.
pub(crate) fn write_duration(count: i64, unit: Unit, out: &mut String) {
    write_duration_nanoseconds(unit.nanoseconds(count), out);
}

/// `PT90061.5S`, of nanoseconds.
pub(crate) fn write_duration_nanoseconds(nanoseconds: i128, out: &mut String) {
    out.push_str("PT");
    if nanoseconds < 0 {
        out.push('-');
    }
    let nanoseconds = nanoseconds.unsigned_abs();
    let seconds = nanoseconds / NANOSECONDS_PER_SECOND;
    push(out, format_args!("{seconds}"));
    push_fraction(nanoseconds % NANOSECONDS_PER_SECOND, out);
    out.push('S');
}

fn push_date(date: Date, out: &mut String) {
    let (year, month, day) = date.to_calendar_date();
    if year < 0 {
        out.push('-');
    }
    let (year, month) = (year.unsigned_abs(), u8::from(month));
    push(out, format_args!("{year:04}-{month:02}-{day:02}"));
}

fn push_fraction(nanoseconds: u128, out: &mut String) {
    if nanoseconds > 0 {
        push(out, format_args!(".{nanoseconds:09}"));
        out.truncate(out.trim_end_matches('0').len());
    }
}

/// Writing to a string never fails.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn one_text_whatever_the_unit() {
        for (count, unit) in [
            (1_709_214_301_500, Unit::Milliseconds),
            (1_709_214_301_500_000, Unit::Microseconds),
            (1_709_214_301_500_000_000, Unit::Nanoseconds),
        ] {
            let utc = text(|out| assert!(write_date_time(count, unit, Zone::Utc, out)));
            assert_eq!(utc, "2024-02-29T13:45:01.5Z");
            let local = text(|out| assert!(write_date_time(count, unit, Zone::Local, out)));
            assert_eq!(local, "2024-02-29T13:45:01.5");
        }
    }

    #[test]
    fn edges() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (19_782, "2024-02-29"),
            (2_932_896, "9999-12-31"),
            (-719_529, "-0001-12-31"),
        ] {
            let date = text(|out| assert!(write_date(days, out)));
            assert_eq!(date, expected, "{days}");
        }
        for days in [2_932_897, i64::from(i32::MAX), i64::MAX, i64::MIN] {
            assert_eq!(text(|out| assert!(!write_date(days, out))), "");
        }
        let beyond = i64::MAX;
        assert!(!write_date_time(
            beyond,
            Unit::Milliseconds,
            Zone::Utc,
            &mut String::new()
        ));
        let before = text(|out| assert!(write_date_time(-1, Unit::Microseconds, Zone::Local, out)));
        assert_eq!(before, "1969-12-31T23:59:59.999999");
    }

    #[test]
    fn times_and_durations() {
        let time = |count, unit| text(|out| write_time(count, unit, out));
        assert_eq!(time(0, Unit::Milliseconds), "00:00:00");
        assert_eq!(time(49_501_123_456, Unit::Microseconds), "13:45:01.123456");
        assert_eq!(
            time(-3_020_399_000_000, Unit::Microseconds),
            "-838:59:59",
            "the least of MySQL"
        );
        let duration = |count, unit| text(|out| write_duration(count, unit, out));
        assert_eq!(duration(90_061_500_000, Unit::Microseconds), "PT90061.5S");
        assert_eq!(duration(-1, Unit::Nanoseconds), "PT-0.000000001S");
        assert_eq!(time(i64::MIN, Unit::Milliseconds).chars().next(), Some('-'));
    }
}
