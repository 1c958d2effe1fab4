//! The two forms of a point in time: 7 bytes binary, 17 bytes of digits. Both end in a signed zone
//! of 15-minute steps east of Greenwich.

use crate::filesystem::Timestamp;

/// A point in time of the local one, as recorded, and its zone. `None` when a field is out of range:
/// writers put zeros where there is no time.
fn to_timestamp(date: (i16, i8, i8), time: [i8; 3], zone: u8, nanoseconds: u32) -> Option<Timestamp> {
    let [hour, minute, second] = time;
    if !((0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second)) {
        return None;
    }
    let local = Timestamp::civil_seconds(date, time)?;
    // Zones past 13 hours are garbage; the kernel takes them for UTC, and so do we.
    let zone = Some(i64::from(zone.cast_signed())).filter(|zone| (-52..=52).contains(zone)).unwrap_or(0);
    Some(Timestamp { seconds: local.checked_sub(zone.checked_mul(900)?)?, nanoseconds })
}

/// ECMA-119, 9.1.5: years since 1900, month, day, hour, minute, second, zone.
pub(super) fn short(field: [u8; 7]) -> Option<Timestamp> {
    let [year, month, day, hour, minute, second, zone] = field;
    let year = i16::from(year).checked_add(1900)?;
    let small = |field: u8| i8::try_from(field).ok();
    to_timestamp((year, small(month)?, small(day)?), [small(hour)?, small(minute)?, small(second)?], zone, 0)
}

/// ECMA-119, 8.4.26.1: sixteen digits `YYYYMMDDHHMMSScc`, and the zone.
pub(super) fn long(field: [u8; 17]) -> Option<Timestamp> {
    let [y0, y1, y2, y3, mo0, mo1, d0, d1, h0, h1, mi0, mi1, s0, s1, c0, c1, zone] = field;
    let date = (number(&[y0, y1, y2, y3])?, number(&[mo0, mo1])?, number(&[d0, d1])?);
    let time = [number(&[h0, h1])?, number(&[mi0, mi1])?, number(&[s0, s1])?];
    let hundredths: u32 = number(&[c0, c1]).unwrap_or(0);
    to_timestamp(date, time, zone, hundredths.checked_mul(10_000_000)?)
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
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
