//! Who a root hub's reader becomes: a user that owns nothing and that no other process is.
//!
//! Processes of one user may kill and trace each other and look into each other's folders of `/proc`. So two readers are two
//! users, and neither is `nobody`, as whom other services run. The number is that of the process, above a base: the kernel gives
//! it to one process at a time, also where several hubs run on a machine, and nothing has to be kept or given back.
//!
//! The range is one that nobody hands out: above the users and groups that directory services make (those of SSSD end at
//! 2,000,200,000) and above containers (systemd's and those of `/etc/subuid` end below), and below 2^31, from where on systemd
//! and others keep numbers for themselves. No file of a reader's belongs to it; it reads what it holds open.
//!
//! Invariant: an id of the range is never used for a process that is not a reader of ours.

use std::fs;

/// The id for a root hub's reader where the kernel knows no ids of the range: "nobody", who owns nothing.
pub const NOBODY: u32 = 65_534;
/// The first id of the range.
pub const FIRST: u32 = 2_130_706_432;
/// The highest process id that Linux ever gives.
const PROCESS_ID_MAX: u32 = 1 << 22;

/// What the reader with this process id becomes.
pub fn of_process(process_id: u32) -> u32 {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    choose(process_id, &read("/proc/self/uid_map"), &read("/proc/self/gid_map"))
}

/// Whether an id is one that a reader has for itself.
pub fn is_own(id: u32) -> bool {
    (FIRST..=FIRST + PROCESS_ID_MAX).contains(&id)
}

/// In a container with users of its own only those exist that its maps name, and often these are 65,536.
fn choose(process_id: u32, users: &str, groups: &str) -> u32 {
    match FIRST.checked_add(process_id) {
        Some(id) if is_own(id) && is_mapped(id, users) && is_mapped(id, groups) => id,
        _ => NOBODY,
    }
}

/// Whether a map (first id inside, first id outside, how many) names an id.
fn is_mapped(id: u32, map: &str) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u32>().ok());
        let (Some(Some(inside)), Some(Some(_)), Some(Some(count))) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        id.checked_sub(inside).is_some_and(|above| above < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "         0          0 4294967295\n";

    #[test]
    fn each_process_has_an_id_of_its_own_where_the_kernel_knows_it() {
        assert_eq!((choose(1, ALL, ALL), choose(4_194_304, ALL, ALL)), (2_130_706_433, 2_134_900_736));
        assert!(is_own(choose(1, ALL, ALL)) && is_own(choose(4_194_304, ALL, ALL)));
        // No such process, and then an id that may be another's.
        assert_eq!((choose(4_194_305, ALL, ALL), choose(u32::MAX, ALL, ALL)), (NOBODY, NOBODY));
        assert!(!is_own(NOBODY) && !is_own(0) && !is_own(FIRST - 1));
    }

    #[test]
    fn in_a_container_only_mapped_ids_exist() {
        let small = "0 100000 65536\n";
        let split = "0 100000 65536\n2130706432 300000 101\n";
        for (users, groups, expected) in [
            (small, small, NOBODY),
            (ALL, small, NOBODY),
            (split, ALL, FIRST + 100),
            (split, "", NOBODY),
            ("0 0\n", "x y z\n", NOBODY),
        ] {
            assert_eq!(choose(100, users, groups), expected, "{users:?} {groups:?}");
        }
        assert_eq!(choose(101, split, ALL), NOBODY, "one behind the last");
    }
}
