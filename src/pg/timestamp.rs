//! Timestamp: microseconds since 1970-01-01 UTC, with the text forms that stores, manifests and sentinels use.
//! A text without an offset from UTC is refused: the zone of whoever wrote it is not known here.

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

const MICROS: i64 = 1_000_000;
const DAY_SECS: i64 = 86_400;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Microseconds since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The instant `secs` seconds after 1970-01-01 UTC; the far ends of the range saturate.
    pub fn from_secs(secs: i64) -> Timestamp {
        Timestamp(secs.saturating_mul(MICROS))
    }

    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub fn secs(self) -> i64 {
        self.0.div_euclid(MICROS)
    }

    /// Parses an RFC 3339 time. A space may stand for `T`, and the offset, which must be there, may be as short
    /// as PostgreSQL prints it (`+02`). Digits below a microsecond are cut off.
    pub fn parse_rfc3339(text: &str) -> Result<Timestamp> {
        scan(text).ok_or_else(|| {
            Error::new(Kind::Usage, format!("\"{text}\" is not a time"))
                .hint("Write it with an offset from UTC, as in 2026-11-21T03:40:00Z or 2026-11-21 03:40:00+02.")
        })
    }

    /// Parses the form of the HTTP header Last-Modified, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110; its two
    /// obsolete forms are not read, no store sends them).
    pub fn http_date(text: &str) -> Option<Timestamp> {
        let (weekday, rest) = text.trim().split_once(", ")?;
        let words: Vec<&str> = rest.split(' ').collect();
        let [day, month, year, time, "GMT"] = words[..] else {
            return None;
        };
        let month = MONTHS.iter().position(|name| *name == month)? + 1;
        let mut clock = time.split(':');
        let mut two = || number(clock.next()?, 2);
        let date = (number(year, 4)?, month as i64, number(day, 2)?);
        let at = instant(date, (two()?, two()?, two()?))?;
        (WEEKDAYS.contains(&weekday) && clock.next().is_none()).then(|| Timestamp::from_secs(at))
    }

    /// `20261121T034000Z`, as AWS's Signature Version 4 wants it.
    pub fn compact(self) -> String {
        let (hour, minute, second) = self.clock();
        format!("{}T{hour:02}{minute:02}{second:02}Z", self.date())
    }

    /// `20261121`, the day in UTC.
    pub fn date(self) -> String {
        let (year, month, day) = self.civil();
        format!("{year:04}{month:02}{day:02}")
    }

    /// `2026-11-21 03:40:00 GMT`, as PostgreSQL's backup manifest and `backup_label` on a UTC server have it.
    pub fn gmt(self) -> String {
        let (year, month, day) = self.civil();
        let (hour, minute, second) = self.clock();
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} GMT")
    }

    /// `2026-11-21 03:40:00.000000+00`, which PostgreSQL reads in its configuration too: names of time zones, `Z`
    /// among them, it does not know there yet.
    pub fn postgres(self) -> String {
        let text = self.to_string();
        text.replace('T', " ").replace('Z', "+00")
    }

    /// Year, month and day in UTC.
    fn civil(self) -> (i64, i64, i64) {
        civil_from_days(self.secs().div_euclid(DAY_SECS))
    }

    /// Hour, minute and second in UTC.
    fn clock(self) -> (i64, i64, i64) {
        let second = self.secs().rem_euclid(DAY_SECS);
        (second / 3600, second / 60 % 60, second % 60)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        let (hour, minute, second) = self.clock();
        let micros = self.0.rem_euclid(MICROS);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Timestamp> {
        Timestamp::parse_rfc3339(text)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse_rfc3339(&text).map_err(|e| serde::de::Error::custom(e.message()))
    }
}

/// `YYYY-MM-DD`, `T` or space, `HH:MM:SS`, fraction, offset.
fn scan(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let (day, clock) = (text.get(..10)?, text.get(11..19)?);
    let field = |part: &str, at: usize| number(part.get(at..at + 2)?, 2);
    let marks = day.get(4..5)? == "-"
        && day.get(7..8)? == "-"
        && matches!(text.get(10..11)?, "T" | "t" | " ")
        && clock.get(2..3)? == ":"
        && clock.get(5..6)? == ":";
    let date = (number(day.get(..4)?, 4)?, field(day, 5)?, field(day, 8)?);
    let secs = instant(date, (field(clock, 0)?, field(clock, 3)?, field(clock, 6)?))?;
    let (micros, zone) = fraction(text.get(19..)?)?;
    let micros_utc = (secs - offset(zone)?) * MICROS + micros;
    marks.then_some(Timestamp(micros_utc))
}

/// Microseconds of a leading `.digits`, if there is one, and the rest of the text.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(digits) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let kept = &digits[..end.min(6)];
    let micros = number(kept, kept.len())? * 10_i64.pow(6 - kept.len() as u32);
    (end > 0).then_some((micros, &digits[end..]))
}

/// Seconds east of UTC of `Z`, `+HH`, `+HHMM` or `+HH:MM`.
fn offset(text: &str) -> Option<i64> {
    let text = text.trim_start();
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = match text.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let hours = number(text.get(1..3)?, 2)?;
    let minutes = match text.get(3..)? {
        "" => 0,
        rest => number(rest.strip_prefix(':').unwrap_or(rest), 2)?,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Exactly `digits` decimal digits, at most 9.
fn number(text: &str, digits: usize) -> Option<i64> {
    let fits = text.len() == digits && digits > 0 && digits <= 9;
    (fits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Seconds since 1970 of a UTC date and time that exist; second 60 is the first of the next minute.
fn instant(date: (i64, i64, i64), clock: (i64, i64, i64)) -> Option<i64> {
    let (hour, minute, second) = clock;
    let days = days_from_civil(date)?;
    let valid = hour < 24 && minute < 60 && second <= 60;
    valid.then_some(days * DAY_SECS + hour * 3600 + minute * 60 + second)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar; `None` if there is no such date.
///
/// Years are counted from March, so that the leap day is the last of its year, in eras of 400 years, which all
/// have 146,097 days.
fn days_from_civil((year, month, day): (i64, i64, i64)) -> Option<i64> {
    let from_march = (month + 9) % 12;
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    // A 31st of April becomes another date on the way back.
    let exists = (1..=12).contains(&month) && civil_from_days(days) == (year, month, day);
    exists.then_some(days)
}

/// The date that is `days` after 1970-01-01; the inverse of `days_from_civil`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_of_the_same_instant() {
        let at = Timestamp(1_795_232_400_123_456);
        assert_eq!(at.to_string(), "2026-11-21T03:40:00.123456Z");
        for text in [
            "2026-11-21T03:40:00.123456Z",
            "2026-11-21t03:40:00.1234569z",
            "2026-11-21 05:40:00.123456+02",
            "2026-11-21 05:40:00.123456 +0200",
            "2026-11-20T22:10:00.123456-05:30",
        ] {
            assert_eq!(Timestamp::parse_rfc3339(text).unwrap(), at, "{text}");
        }
        assert_eq!(at.compact(), "20261121T034000Z");
        assert_eq!(at.date(), "20261121");
        assert_eq!(at.gmt(), "2026-11-21 03:40:00 GMT");
        assert_eq!(at.postgres(), "2026-11-21 03:40:00.123456+00");
    }

    #[test]
    fn dates_at_the_borders_of_the_calendar() {
        // Seconds as date(1) gives them for these instants.
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59Z", -1),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("1999-12-31T23:59:60Z", 946_684_800),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("0001-01-01T00:00:00Z", -62_135_596_800),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ];
        for (text, secs) in cases {
            let parsed = Timestamp::parse_rfc3339(text).unwrap();
            assert_eq!(parsed, Timestamp::from_secs(secs), "{text}");
            assert_eq!(parsed.secs(), secs);
            assert_eq!(
                Timestamp::parse_rfc3339(&parsed.to_string()).unwrap(),
                parsed
            );
        }
    }

    #[test]
    fn every_day_of_eight_centuries_comes_back() {
        let first = days_from_civil((1600, 1, 1)).unwrap();
        for days in first..first + 2 * 146_097 {
            assert_eq!(days_from_civil(civil_from_days(days)), Some(days));
        }
    }

    #[test]
    fn refuses_what_is_no_instant() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T03:40:00",
            "2026-11-21T03:40:00.Z",
            "2026-11-21T03:40:00+",
            "2026-11-21T03:40:00+2",
            "2026-11-21T03:40:00+24",
            "2026-11-21T03:40:00+02:60",
            "2026-11-21T03:40:00 Europe/Berlin",
            "2026-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01x00:00:00Z",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Zx",
            "2026-01-0éT00:00:00Z",
        ] {
            let error = Timestamp::parse_rfc3339(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn http_dates() {
        let at = Timestamp::http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(at.to_string(), "1994-11-06T08:49:37.000000Z");
        for text in [
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Xxx, 06 Nov 1994 08:49:37 GMT",
            "06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(Timestamp::http_date(text), None, "{text}");
        }
    }

    #[test]
    fn the_ends_of_the_range_print_without_panic() {
        for value in [i64::MIN, i64::MAX] {
            assert!(!Timestamp(value).to_string().is_empty());
        }
        assert_eq!(Timestamp::from_secs(i64::MAX), Timestamp(i64::MAX));
    }

    #[test]
    fn json_is_the_same_text() {
        let json = serde_json::to_string(&Timestamp(0)).unwrap();
        assert_eq!(json, "\"1970-01-01T00:00:00.000000Z\"");
        assert_eq!(
            serde_json::from_str::<Timestamp>(&json).unwrap(),
            Timestamp(0)
        );
    }
}
