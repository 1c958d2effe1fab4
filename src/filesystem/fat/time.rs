//! Dates and times of a directory entry: local time of an unnamed zone, from 1980 to 2107.
//!
//! ```text
//!   date  15..9 year - 1980 | 8..5 month | 4..0 day
//!   time  15..11 hours      | 10..5 minutes | 4..0 seconds / 2
//! ```

use crate::filesystem::Timestamp;

/// A date and time of day as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::filesystem) struct Stamp {
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
        let small = |field: u16| i8::try_from(field).ok();
        let (year, month, day) = (self.date >> 9, self.date >> 5 & 0x0f, self.date & 0x1f);
        let (hour, minute, second) = (self.time >> 11, self.time >> 5 & 0x3f, (self.time & 0x1f) << 1);
        if hour > 23 || minute > 59 || second > 59 || self.centiseconds > 199 {
            return None;
        }
        let date = (i16::try_from(year).ok()?.checked_add(1980)?, small(month)?, small(day)?);
        let seconds = Timestamp::civil_seconds(date, [small(hour)?, small(minute)?, small(second)?])?;
        let hundredths = u32::from(self.centiseconds);
        let seconds = seconds.checked_add(i64::from(hundredths / 100))?;
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
        let civil = jiff::Timestamp::from_second(local.min(LAST)).unwrap_or_default();
        let civil = jiff::tz::Offset::UTC.to_datetime(civil);
        let field = |value: i16| u16::try_from(value).unwrap_or(0);
        let odd = if civil.second() % 2 == 1 { 100 } else { 0u32 };
        Self {
            date: field(civil.year().saturating_sub(1980)) << 9
                | field(civil.month().into()) << 5
                | field(civil.day().into()),
            time: field(civil.hour().into()) << 11
                | field(civil.minute().into()) << 5
                | field((civil.second() / 2).into()),
            centiseconds: u8::try_from(odd.saturating_add(nanoseconds.min(999_999_999) / 10_000_000)).unwrap_or(0),
        }
    }
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
