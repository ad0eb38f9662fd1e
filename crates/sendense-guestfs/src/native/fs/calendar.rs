//! Dates that are stored as calendar fields.

use crate::meta::GuestTime;

/// A calendar date and time of day as a point in time; none when it is no date. `offset_minutes` is the zone, east of UTC.
pub fn point(date: (i64, u32, u32), time: (u32, u32, u32), offset_minutes: i64) -> Option<GuestTime> {
    let ((year, month, day), (hour, minute, second)) = (date, time);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years begin in March here, so that the day that only some of them have comes last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = i64::from((153 * ((month + 9) % 12) + 2) / 5 + day - 1);
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let of_day = i64::from(hour * 3600 + minute * 60 + second);
    Some(GuestTime { seconds: days * 86_400 + of_day - offset_minutes * 60, nanoseconds: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_since_1970() {
        let seconds = |date, time, zone| point(date, time, zone).map(|time| time.seconds);
        assert_eq!(seconds((1970, 1, 1), (0, 0, 0), 0), Some(0));
        assert_eq!(seconds((2000, 2, 29), (12, 0, 1), 60), Some(951_822_001));
        assert_eq!(seconds((1969, 12, 31), (23, 59, 59), 0), Some(-1));
        assert_eq!(seconds((2024, 13, 1), (0, 0, 0), 0), None);
    }
}
