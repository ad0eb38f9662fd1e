#!/usr/bin/env python3
"""disk.py FILE SIZE_MIB DATA_MIB: a sparse disk image; half of its data is noise, half is text that zstd shrinks to a third."""
import os
import random
import sys

path, size_mib, data_mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
MIB = 1 << 20
PIECE = 16 * MIB
random.seed(1)
words = ["".join(random.choices("etaoinshrdlucmfwypvbgkjqxz", k=random.randint(2, 10))) for _ in range(3000)]
lines, length = [], 0
while length < 2 * PIECE:
    line = "2026-11-%02d %s service=%s id=%d %s\n" % (
        random.randint(1, 30), random.choice(words), random.choice(words[:20]), random.getrandbits(16),
        " ".join(random.choices(words[:600], k=7)))
    lines.append(line)
    length += len(line)
text = "".join(lines).encode()

pieces = data_mib * MIB // PIECE
stride = size_mib * MIB // pieces
with open(path, "wb") as disk:
    disk.truncate(size_mib * MIB)
    for number in range(pieces):
        disk.seek(number * stride // MIB * MIB)
        if number % 2:
            disk.write(os.urandom(PIECE))
        else:
            # Another part of the text each time; blocks are compressed one by one, so repetition is not seen.
            at = random.randrange(PIECE)
            disk.write(text[at:at + PIECE])
