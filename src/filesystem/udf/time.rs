//! A point in time (ECMA-167, 1/7.3): 12 bytes, to the microsecond, with its zone in minutes.

use crate::filesystem::Timestamp;

/// Length on the medium.
pub(super) const LEN: usize = 12;
/// A zone that was not recorded; the kernel reads such times as UTC, and so do we.
const NO_ZONE: i16 = -2047;

/// `None` when a field is out of range: writers put zeros where there is no time.
pub(super) fn parse(field: [u8; LEN]) -> Option<Timestamp> {
    let [zone0, zone1, year0, year1, month, day, hour, minute, second, centi, hundred_micro, micro] = field;
    let small = |field: u8| i8::try_from(field).ok();
    let time = [small(hour)?, small(minute)?, small(second)?];
    let [hour, minute, second] = time;
    if !((0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second)) {
        return None;
    }
    let date = (i16::from_le_bytes([year0, year1]), small(month)?, small(day)?);
    let local = Timestamp::civil_seconds(date, time)?;
    let kind_and_zone = i16::from_le_bytes([zone0, zone1]);
    // Twelve bits with a sign, behind four of the kind: 1 is local time.
    let zone = kind_and_zone.wrapping_shl(4) >> 4;
    let is_local = kind_and_zone.cast_unsigned() >> 12 == 1 && zone != NO_ZONE;
    let east = if is_local { i64::from(zone).checked_mul(60)? } else { 0 };
    let parts = [(centi, 10_000), (hundred_micro, 100), (micro, 1)];
    let micros = parts.into_iter().try_fold(0u32, |sum, (count, each)| {
        let count = Some(u32::from(count)).filter(|count| *count < 100)?;
        sum.checked_add(count.checked_mul(each)?)
    });
    Some(Timestamp { seconds: local.checked_sub(east)?, nanoseconds: micros.unwrap_or(0).checked_mul(1000)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind_and_zone: u16) -> Timestamp {
        let [a, b] = kind_and_zone.to_le_bytes();
        parse([a, b, 0xe5, 7, 2, 7, 12, 0, 0, 12, 34, 56]).unwrap()
    }

    #[test]
    fn a_zone_is_signed_minutes_and_may_be_missing() {
        let utc = 1_612_699_200;
        assert_eq!(at(0x1000), Timestamp { seconds: utc, nanoseconds: 123_456_000 });
        assert_eq!(at(0x1000 | 60).seconds, utc - 3600);
        assert_eq!(at(0x1000 | 0xf2e).seconds, utc + 210 * 60);
        assert_eq!(at(0x1000 | 0x801).seconds, utc, "no zone");
        assert_eq!(at(60).seconds, utc, "coordinated time has none");
        assert_eq!(parse([0; LEN]), None);
    }
}
