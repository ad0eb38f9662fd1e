//! Digests files whose header, index and digests agree with their groups.

const HEADER: usize = 64;
const ENTRY: usize = 32;
const MAP: usize = 2048;
const GROUP_BLOCKS: u64 = 8192;
/// Groups a made-up file has at most: more than one page of the index (256 entries).
const GROUPS_MAX: u64 = 300;

/// Of which so many are held at most: each costs the reader a walk over its 8192 blocks, and the fuzzer wants many runs.
const GROUPS_HELD_MAX: usize = 2;

/// A file made of the input: its first four bytes tell how many blocks the disk has, the rest is taken as groups, each after
/// a byte that tells how it is made. Groups beyond the input's end are empty.
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    let (word, mut rest) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let blocks = u64::from(u32::from_le_bytes(*word)) % (GROUPS_MAX * GROUP_BLOCKS);
    let groups = blocks.div_ceil(GROUP_BLOCKS);
    let mut file = b"SENDIGST".to_vec();
    for word in [1u32, 65536, 8192, 16] {
        file.extend(word.to_le_bytes());
    }
    file.extend(blocks.to_le_bytes());
    file.extend(groups.to_le_bytes());
    file.resize(HEADER, 0);
    let (mut index, mut held) = (Vec::new(), 0);
    for number in 0..groups {
        let in_group = (blocks - number * GROUP_BLOCKS).min(GROUP_BLOCKS);
        let made = if held < GROUPS_HELD_MAX { group(&mut rest, in_group) } else { None };
        match made {
            Some((group, data, zero)) if data + zero > 0 => {
                held += 1;
                index.extend((file.len() as u64).to_le_bytes());
                index.extend(data.to_le_bytes());
                index.extend(zero.to_le_bytes());
                index.extend(&blake3::hash(&group).as_bytes()[..16]);
                file.extend(group);
            }
            _ => index.extend([0; ENTRY]),
        }
    }
    file.extend(index);
    file
}

/// Takes a group from the input: how it is made, its state map's first bytes (the map repeats them). With it, how many of its
/// blocks are data and zeros.
fn group(rest: &mut &[u8], in_group: u64) -> Option<(Vec<u8>, u32, u32)> {
    let (how, pattern) = rest.split_first()?;
    let (pattern, left) = pattern.split_at(pattern.len().min(1 + usize::from(how >> 2)));
    *rest = left;
    if how & 1 == 0 || pattern.is_empty() {
        return None;
    }
    let mut group: Vec<u8> = pattern.iter().copied().cycle().take(MAP).collect();
    // Unless told so, no state that does not exist and nothing beyond the disk's end.
    if how & 2 == 0 {
        for at in 0..GROUP_BLOCKS {
            let (byte, shift) = ((at / 4) as usize, at % 4 * 2);
            if at >= in_group || group[byte] >> shift & 3 == 3 {
                group[byte] &= !(3 << shift);
            }
        }
    }
    let (mut data, mut zero) = (0, 0);
    for at in 0..in_group {
        let state = group[(at / 4) as usize] >> (at % 4 * 2) & 3;
        data += u32::from(state == 2);
        zero += u32::from(state == 1);
    }
    // What the digests are does not matter to anybody.
    group.resize(MAP + 16 * data as usize, *how);
    Some((group, data, zero))
}

/// Digests files of a full point and of one on it, and inputs for [`sealed`].
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = crate::point::files().digests;
    seeds.push([&20_000u32.to_le_bytes()[..], &[13, 0b1001_0010, 2, 2, 0x55, 0, 1, 0xaa, 7, 0xff, 0x1b]].concat());
    seeds.push([&2_200_000u32.to_le_bytes()[..], &[0; 270], &[1, 0x66, 1, 0x99]].concat());
    seeds
}
