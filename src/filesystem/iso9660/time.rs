//! The two forms of a point in time: 7 bytes binary, 17 bytes of digits. Both end in a signed zone
//! of 15-minute steps east of Greenwich.

use crate::filesystem::Timestamp;

/// Local time as recorded, before the zone is taken off.
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Civil {
    /// `None` when a field is out of range: writers put zeros where there is no time.
    fn to_timestamp(&self, zone: i8, nanoseconds: u32) -> Option<Timestamp> {
        let in_range = (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && (0..24).contains(&self.hour)
            && (0..60).contains(&self.minute)
            && (0..=60).contains(&self.second);
        if !in_range {
            return None;
        }
        let days = days_from_civil(self.year, self.month, self.day)?;
        let local = days
            .checked_mul(86_400)?
            .checked_add(self.hour.checked_mul(3600)?)?
            .checked_add(self.minute.checked_mul(60)?)?
            .checked_add(self.second)?;
        // Zones past 13 hours are garbage; the kernel takes them for UTC, and so do we.
        let zone = if (-52..=52).contains(&zone) { i64::from(zone) } else { 0 };
        Some(Timestamp { seconds: local.checked_sub(zone.checked_mul(900)?)?, nanoseconds })
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, counted in years that start in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = month.checked_add(9)?.rem_euclid(12);
    let day_of_year =
        month_from_march.checked_mul(153)?.checked_add(2)?.div_euclid(5).checked_add(day)?.checked_sub(1)?;
    let leap_days = year_of_era.div_euclid(4).checked_sub(year_of_era.div_euclid(100))?;
    let day_of_era = year_of_era.checked_mul(365)?.checked_add(leap_days)?.checked_add(day_of_year)?;
    era.checked_mul(146_097)?.checked_add(day_of_era)?.checked_sub(719_468)
}

/// ECMA-119, 9.1.5: years since 1900, month, day, hour, minute, second, zone.
pub(super) fn short(field: [u8; 7]) -> Option<Timestamp> {
    let [year, month, day, hour, minute, second, zone] = field;
    let civil = Civil {
        year: i64::from(year).checked_add(1900)?,
        month: month.into(),
        day: day.into(),
        hour: hour.into(),
        minute: minute.into(),
        second: second.into(),
    };
    civil.to_timestamp(i8::from_le_bytes([zone]), 0)
}

/// ECMA-119, 8.4.26.1: sixteen digits `YYYYMMDDHHMMSScc`, and the zone.
pub(super) fn long(field: [u8; 17]) -> Option<Timestamp> {
    let [y0, y1, y2, y3, mo0, mo1, d0, d1, h0, h1, mi0, mi1, s0, s1, c0, c1, zone] = field;
    let civil = Civil {
        year: number(&[y0, y1, y2, y3])?,
        month: number(&[mo0, mo1])?,
        day: number(&[d0, d1])?,
        hour: number(&[h0, h1])?,
        minute: number(&[mi0, mi1])?,
        second: number(&[s0, s1])?,
    };
    let hundredths = number(&[c0, c1]).unwrap_or(0);
    let nanoseconds = u32::try_from(hundredths).ok()?.checked_mul(10_000_000)?;
    civil.to_timestamp(i8::from_le_bytes([zone]), nanoseconds)
}

fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_western_zone_is_signed_and_in_quarters_of_an_hour() {
        // 2021-02-07 12:00:00 at -03:30 is 15:30 UTC.
        let west = short([121, 2, 7, 12, 0, 0, (-14i8).cast_unsigned()]).unwrap();
        assert_eq!(west.seconds, 1_612_711_800);
        let east = short([121, 2, 7, 12, 0, 0, 23]).unwrap();
        assert_eq!(west.seconds - east.seconds, (14 + 23) * 900);
        assert_eq!(short([70, 1, 1, 0, 0, 0, 0]).unwrap().seconds, 0);
        assert_eq!(short([0, 3, 1, 0, 0, 0, 0]).unwrap().seconds, -2_203_891_200);
    }

    #[test]
    fn a_time_of_zeros_is_no_time() {
        assert_eq!(short([0; 7]), None);
        assert_eq!(long(*b"0000000000000000\0"), None);
        assert_eq!(long(*b"19700101000000xx\0").unwrap().nanoseconds, 0);
    }

    #[test]
    fn the_long_form_has_hundredths() {
        let time = long(*b"2021020712000050\xf2").unwrap();
        assert_eq!((time.seconds, time.nanoseconds), (1_612_711_800, 500_000_000));
    }
}
