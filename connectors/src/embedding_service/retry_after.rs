//! How long a service asks to be left alone: `Retry-After`, in seconds or as a date.
//!
//! A date is read by the service's own clock where its answer has that (`Date`): clocks that differ would cut the
//! wait short or make it minutes longer.
//!
//! Invariant: what can't be read asks for nothing, and a date that has passed for no time; how long is too long
//! the breaker knows, for both forms alike.

use std::time::{Duration, SystemTime};
use ureq::http::HeaderMap;

/// The wait that an answer's headers ask for, `now` being our own time.
pub(super) fn wait_asked(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = text("retry-after")?;
    let their_now = text("date").and_then(date).unwrap_or(now);
    seconds(asked).or_else(|| Some(date(asked)?.duration_since(their_now).unwrap_or_default()))
}

/// Some services write fractions, which HTTP does not know.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A date in any of the three forms of HTTP.
fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half past seven, by our clock.
    const NOW: &str = "Wed, 21 Oct 2026 07:30:00 GMT";

    fn check(headers: &[(&'static str, &'static str)], expected: Option<Duration>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        assert_eq!(
            wait_asked(&map, date(NOW).unwrap()),
            expected,
            "{headers:?}"
        );
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (value, expected) in [
            ("7", seconds(7)),
            (" 0.5 ", Some(Duration::from_millis(500))),
            ("Wed, 21 Oct 2026 07:30:09 GMT", seconds(9)),
            ("Wednesday, 21-Oct-26 07:31:00 GMT", seconds(60)),
            ("Wed Oct 21 07:30:01 2026", seconds(1)),
            ("Wed, 21 Oct 2026 07:28:00 GMT", seconds(0)),
            ("Thu, 21 Oct 2027 07:30:00 GMT", seconds(365 * 24 * 3600)),
            ("", None),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("1e300", None),
            ("Wed, 32 Oct 2026 07:30:00 GMT", None),
            ("Wed, 21 Oct 2026 07:30:09", None),
            ("soon", None),
        ] {
            check(&[("retry-after", value)], expected);
        }
        check(&[], None);
    }

    #[test]
    fn a_date_is_read_by_the_clock_of_who_wrote_it() {
        let asked = ("retry-after", "Wed, 21 Oct 2026 09:30:05 GMT");
        let ahead = ("date", "Wed, 21 Oct 2026 09:30:00 GMT");
        check(&[asked, ahead], Some(Duration::from_secs(5)));
        check(&[("retry-after", "7"), ahead], Some(Duration::from_secs(7)));
        let unreadable = ("date", "today");
        check(
            &[asked, unreadable],
            Some(Duration::from_secs(2 * 3600 + 5)),
        );
    }
}
