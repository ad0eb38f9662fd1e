//! Anything may happen between two backups, in any order: each point must be what the guest had written, in two
//! repositories whose chains know nothing of each other.

use crate::lab::{Guest, MIB, Points, back_up_beside, lab};

const BACKUPS: usize = 30;

/// xorshift64*: the same story on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// A range of whole sectors of at most `max` bytes within `size`.
    fn range(&mut self, size: u64, max: u64) -> (u64, u64) {
        let at = self.below(size / 512) * 512;
        (at, ((self.below(max / 512) + 1) * 512).min(size - at))
    }
}

#[test]
fn thirty_backups_of_a_guest_with_an_eventful_life() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &[("vda", "qcow2", 4 * MIB), ("vdb", "qcow2", MIB), ("vdc", "raw", MIB)]);
    let source = lab.source();
    let mut dice = Dice(0x5eed);
    let (mut here, mut there) = (Points::new(), Points::new());
    let (mut running, mut snapshots, mut deltas, mut story) = (true, 0, 0, Vec::new());
    for round in 0..BACKUPS {
        for _ in 0..dice.below(4) {
            let target = ["vda", "vdb", "vdc"][dice.below(3) as usize];
            let size = guest.model[target].len() as u64;
            let what = dice.below(20);
            if !running {
                guest.start();
                running = true;
            }
            match what {
                0..8 => {
                    let (at, len) = dice.range(size, 300 << 10);
                    let pattern = dice.below(256) as u8;
                    story.push(format!("{round}: write {pattern} to {target} at {at}, {len}"));
                    guest.write(target, pattern, at, len);
                }
                8..11 => {
                    let (at, len) = dice.range(size, 300 << 10);
                    story.push(format!("{round}: zero {target} at {at}, {len}"));
                    guest.zero(target, at, len, what == 8);
                }
                11 => {
                    snapshots += 1;
                    story.push(format!("{round}: snapshot"));
                    let overlay = lab.dir.join("images").join(format!("{}-s{snapshots}.qcow2", guest.name));
                    let spec = format!("vda,snapshot=external,file={}", overlay.display());
                    let mut args = vec!["snapshot-create-as", &guest.uuid, "s", "--disk-only", "--no-metadata"];
                    args.extend([
                        "--diskspec",
                        &spec,
                        "--diskspec",
                        "vdb,snapshot=no",
                        "--diskspec",
                        "vdc,snapshot=no",
                    ]);
                    lab.virsh(&args);
                }
                12 if snapshots > 0 => {
                    story.push(format!("{round}: commit"));
                    // Fails when the snapshots were committed before.
                    let _ = lab.try_virsh(&["blockcommit", &guest.uuid, "vda", "--active", "--pivot", "--wait"]);
                }
                13 if target != "vdc" => {
                    story.push(format!("{round}: grow {target}"));
                    let grown = size + 64 * 1024;
                    // QEMU refuses while a crash's broken bitmaps are there; the next backup takes them away.
                    if lab.try_virsh(&["blockresize", &guest.uuid, target, &format!("{grown}B")]).is_ok() {
                        guest.model.get_mut(target).unwrap().resize(grown as usize, 0);
                    }
                }
                14 | 15 => {
                    story.push(format!("{round}: power off"));
                    guest.power_off();
                    running = false;
                }
                16 => {
                    story.push(format!("{round}: QEMU is killed"));
                    for target in ["vda", "vdb", "vdc"] {
                        guest.try_qemu_io(target, "flush");
                    }
                    guest.kill_qemu();
                    running = false;
                }
                17 => {
                    story.push(format!("{round}: a checkpoint is deleted"));
                    if let Some(name) = guest.checkpoints().first() {
                        // Refused when the crash took its bitmaps.
                        let _ = lab.try_virsh(&["checkpoint-delete", &guest.uuid, name]);
                    }
                }
                18 => {
                    story.push(format!("{round}: the newest points are deleted here"));
                    here = Points::new();
                }
                _ => {}
            }
        }
        story.push(format!("{round}: backup"));
        let (parents, others) = if dice.below(3) == 0 { (&mut there, &here) } else { (&mut here, &there) };
        let points = back_up_beside(&guest, &*source, parents, &[others]);
        deltas += points.values().filter(|point| point.reason.is_none()).count();
        for (target, bytes) in &guest.model {
            assert!(points[*target].bytes == *bytes, "{target} is wrong in round {round}; {}", story.join("\n"));
        }
        *parents = points;
    }
    // The story is worth something only if tracking was used in it.
    assert!(deltas >= BACKUPS / 2, "only {deltas} deltas; {}", story.join("\n"));
}
