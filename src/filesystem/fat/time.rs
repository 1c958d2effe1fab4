//! Dates and times of a directory entry: local time of an unnamed zone, from 1980 to 2107.
//!
//! ```text
//!   date  15..9 year - 1980 | 8..5 month | 4..0 day
//!   time  15..11 hours      | 10..5 minutes | 4..0 seconds / 2
//! ```

use crate::filesystem::Timestamp;

/// A date and time of day as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    /// Year, month, day.
    pub date: u16,
    /// Hours, minutes, two-second steps.
    pub time: u16,
    /// Hundredths of a second after that, 0 to 199; creation alone has them.
    pub centiseconds: u8,
}

impl Stamp {
    /// The time in UTC; `minutes` is what the zone is ahead of it. `None` when nothing was
    /// recorded, or nothing that is a time.
    pub fn to_utc(self, minutes: i32) -> Option<Timestamp> {
        let (year, month, day) =
            (i64::from(self.date >> 9).saturating_add(1980), self.date >> 5 & 0x0f, self.date & 0x1f);
        let (hour, minute, second) = (self.time >> 11, self.time >> 5 & 0x3f, (self.time & 0x1f) << 1);
        if !(1..=12).contains(&month) || day == 0 || hour > 23 || minute > 59 || second > 59 || self.centiseconds > 199
        {
            return None;
        }
        let seconds = days_from_civil(year, i64::from(month), i64::from(day)).checked_mul(86_400)?;
        let of_day =
            [(hour, 3600), (minute, 60), (second, 1)].map(|(count, each)| i64::from(count).saturating_mul(each));
        let hundredths = u32::from(self.centiseconds);
        let seconds = seconds.checked_add(of_day.iter().sum())?.checked_add(i64::from(hundredths / 100))?;
        let ahead = i64::from(minutes).checked_mul(60)?;
        Some(Timestamp {
            seconds: seconds.checked_sub(ahead)?,
            nanoseconds: (hundredths % 100).saturating_mul(10_000_000),
        })
    }

    /// The nearest time that can be stored: rounded down, and not outside of 1980 to 2107.
    pub fn from_utc(time: Timestamp, minutes: i32) -> Self {
        const FIRST: i64 = 315_532_800;
        const LAST: i64 = 4_354_819_199;
        let local = time.seconds.saturating_add(i64::from(minutes).saturating_mul(60));
        if local < FIRST {
            return Self { date: 1 << 5 | 1, time: 0, centiseconds: 0 };
        }
        let nanoseconds = if local > LAST { 0 } else { time.nanoseconds };
        let local = local.min(LAST);
        let (year, month, day) = civil_from_days(local.div_euclid(86_400));
        let of_day = local.rem_euclid(86_400);
        let field = |value: i64| u16::try_from(value).unwrap_or(0);
        let odd = if of_day % 2 == 1 { 100 } else { 0u32 };
        Self {
            date: field(year.saturating_sub(1980)) << 9 | field(month) << 5 | field(day),
            time: field(of_day / 3600) << 11 | field(of_day / 60 % 60) << 5 | field(of_day % 60 / 2),
            centiseconds: u8::try_from(odd.saturating_add(nanoseconds.min(999_999_999) / 10_000_000)).unwrap_or(0),
        }
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, from 1980 on. A day past the end of
/// its month is one of the next month.
#[allow(clippy::arithmetic_side_effects, reason = "the year is 1980 to 2107, month and day are below 32")]
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years that start in March end in the leap day.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
#[allow(clippy::arithmetic_side_effects, reason = "the days are those of 1980 to 2107")]
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_and_step_survives_the_round_trip() {
        for day in 0..46_751 {
            let seconds = 315_532_800 + day * 86_400 + (day * 7919) % 86_400;
            let time = Timestamp { seconds, nanoseconds: 340_000_000 };
            assert_eq!(Stamp::from_utc(time, 0).to_utc(0), Some(time));
            if day > 0 && day < 46_750 {
                assert_eq!(Stamp::from_utc(time, -90).to_utc(-90), Some(time));
            }
        }
    }

    #[test]
    fn a_time_is_local_and_the_offset_is_taken_off() {
        // 2024-02-29 13:45:58 and 1.99 s, as `date -d` has it: 1709214358
        let stamp = Stamp { date: 44 << 9 | 2 << 5 | 29, time: 13 << 11 | 45 << 5 | 29, centiseconds: 199 };
        let utc = |minutes| stamp.to_utc(minutes).unwrap();
        assert_eq!(utc(0), Timestamp { seconds: 1_709_214_359, nanoseconds: 990_000_000 });
        assert_eq!(utc(120).seconds, 1_709_214_359 - 7200);
        assert_eq!(utc(-90).seconds, 1_709_214_359 + 5400);
    }

    #[test]
    fn what_is_no_time_is_not_recorded() {
        for (date, time) in [(0, 0), (1 << 5, 0), (13 << 5 | 1, 0), (1 << 5 | 1, 24 << 11), (1 << 5 | 1, 30)] {
            assert_eq!(Stamp { date, time, centiseconds: 0 }.to_utc(0), None, "{date:x} {time:x}");
        }
    }

    #[test]
    fn times_outside_of_the_range_are_its_ends() {
        let at = |seconds| Stamp::from_utc(Timestamp { seconds, nanoseconds: 0 }, 0);
        assert_eq!(at(0), Stamp { date: 33, time: 0, centiseconds: 0 });
        assert_eq!(at(i64::MAX), at(4_354_819_199));
        assert_eq!(at(i64::MAX).date >> 9, 127);
    }
}
