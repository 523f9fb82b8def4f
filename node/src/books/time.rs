//! Moments and lengths of time as people write them.
//!
//! Owns: UTC dates from and to milliseconds since 1970, and lengths like `7d`. Never: bills: nothing here
//! is exact about leap seconds or zones. Called by the `ledger` verbs' flags and tables.

use std::time::{SystemTime, UNIX_EPOCH};

use potluck_protocol::unit::UnixMillis;

const DAY_MS: u64 = 86_400_000;

/// Our wall clock, for people.
#[must_use]
pub fn wall_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `2026-11-24 16:05:09Z`; a dash for the beginning of time, which stands for "unknown".
pub(super) fn shown(at: UnixMillis) -> String {
    let ms = at.get();
    if ms == 0 {
        return "-".into();
    }
    let (year, month, day) = civil(ms / DAY_MS);
    let second = ms % DAY_MS / 1_000;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day since 1970-01-01 (Howard Hinnant's algorithm, for days after that).
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last one.
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The day since 1970-01-01 of a date; `None` when there is no such day.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let sane = (1_970..=9_999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sane {
        return None;
    }
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let year = if month > 2 { year } else { year - 1 };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let found = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    // The 31st of April is the 1st of May: not what was written.
    (civil(found).2 == day).then_some(found)
}

/// A date (`2026-11-24`, `2026-11-24T16:00:00Z`, in UTC) or a length (`7d`) before now.
///
/// # Errors
/// What is expected, when it is neither.
pub(super) fn parse_since(text: &str) -> Result<UnixMillis, String> {
    since(text, wall_now()).ok_or_else(|| {
        "expected a date like 2026-11-24 or 2026-11-24T16:00:00Z, or a length like 7d, 12h, 30m".into()
    })
}

fn since(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    length(text).map(|length| now.saturating_sub(length)).or_else(|| date(text))
}

/// A whole number with s, m, h or d.
fn length(text: &str) -> Option<UnixMillis> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => DAY_MS,
        _ => return None,
    };
    digits(number, 1..=9)?.checked_mul(unit).map(UnixMillis::new)
}

fn date(text: &str) -> Option<UnixMillis> {
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, Some(time.strip_suffix('Z').unwrap_or(time))),
        None => (text, None),
    };
    let mut parts = date.splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let day = days(digits(year, 4..=4)?, digits(month, 2..=2)?, digits(day, 2..=2)?)?;
    let mut second = 0;
    if let Some(time) = time {
        let mut parts = time.splitn(3, ':');
        let (hour, minute, rest) = (parts.next()?, parts.next()?, parts.next().unwrap_or("00"));
        let (hour, minute, rest) = (digits(hour, 2..=2)?, digits(minute, 2..=2)?, digits(rest, 2..=2)?);
        if hour > 23 || minute > 59 || rest > 59 {
            return None;
        }
        second = hour * 3_600 + minute * 60 + rest;
    }
    Some(UnixMillis::new(day * DAY_MS + second * 1_000))
}

/// A number of so many digits and nothing else.
fn digits(text: &str, count: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let plain = count.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_as_they_are_shown() {
        for (ms, text) in [
            (1_000, "1970-01-01 00:00:01Z"),
            (951_782_399_000, "2000-02-28 23:59:59Z"),
            (951_868_799_000, "2000-02-29 23:59:59Z"),
            (1_700_000_000_000, "2023-11-14 22:13:20Z"),
            (1_795_536_309_000, "2026-11-24 16:05:09Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(shown(UnixMillis::new(ms)), text);
            assert_eq!(date(text), Some(UnixMillis::new(ms)), "{text}");
        }
        for day in (0..100_000u64).step_by(17) {
            let (year, month, number) = civil(day);
            assert_eq!(days(year, month, number), Some(day));
        }
    }

    #[test]
    fn since_is_a_date_or_so_long_ago() {
        let now = UnixMillis::new(1_700_000_000_000);
        assert_eq!(since("7d", now), Some(UnixMillis::new(1_699_395_200_000)));
        assert_eq!(since("90s", now), Some(UnixMillis::new(1_699_999_910_000)));
        assert_eq!(since("2026-11-24", now), Some(UnixMillis::new(1_795_478_400_000)));
        assert_eq!(since("2026-11-24T16:05", now), since("2026-11-24 16:05:00Z", now));
        for wrong in [
            "",
            "d",
            "-7d",
            "7",
            "7w",
            "1.5h",
            "2026-13-01",
            "2026-02-29",
            "2023-04-31",
            "26-11-24",
            "2026-11-24T25:00",
            "2026-11-24T16",
            "２026-11-24",
            "9999999999d",
            "2026-11-24Tzz:00:00Z",
        ] {
            assert_eq!(since(wrong, now), None, "{wrong}");
        }
    }
}
