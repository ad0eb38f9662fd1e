#!/usr/bin/env python3
"""line.py A B MBIT ROUND_TRIP_MS [LOSS]: a long, narrow line between two network devices that it makes, for machines whose kernel has no
netem. What goes into TUN device A comes out of B and the other way round, at so many Mbit/s each way and half the round trip later; of packets,
LOSS (0.001: one in a thousand) are lost at random. Says "ready" when both are there, which may be moved into network namespaces then, and
then every second in which something moved what went each way, in Mbit/s, and how many packets were dropped. Ends when it is killed, and the devices with it. Needs root."""
import collections
import fcntl
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# What waits for its turn, as in a router: a quarter of a second. Beyond it packets are dropped, which is how TCP learns of the line's width.
QUEUE_SECONDS = 0.25
# Packets per look: the other direction is not kept waiting.
BURST = 64


def device(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


class Direction:
    """From one device to the other. `free` is when the last byte that was taken in will have gone out."""

    def __init__(self, source, target, bytes_per_second, delay, loss):
        self.source, self.target, self.rate, self.delay, self.loss = source, target, bytes_per_second, delay, loss
        self.free, self.under_way = 0.0, collections.deque()
        self.bytes, self.dropped = 0, 0

    def take(self, now):
        for _ in range(BURST):
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            begin = max(self.free, now)
            if begin - now > QUEUE_SECONDS or random.random() < self.loss:
                self.dropped += 1
                continue
            self.bytes += len(packet)
            self.free = begin + len(packet) / self.rate
            self.under_way.append((self.free + self.delay, packet))

    def give(self, now):
        while self.under_way and self.under_way[0][0] <= now:
            try:
                os.write(self.target, self.under_way[0][1])
            except (BlockingIOError, OSError):
                pass  # The device is down, or full: the packet is lost, as on any line.
            self.under_way.popleft()


def main():
    names, rate, delay = sys.argv[1:3], float(sys.argv[3]) * 125_000, float(sys.argv[4]) / 2000
    loss = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0
    a, b = (device(name) for name in names)
    directions = {a: Direction(a, b, rate, delay, loss), b: Direction(b, a, rate, delay, loss)}
    print("ready", flush=True)
    told = time.monotonic()
    while True:
        if time.monotonic() - told >= 1:
            told += 1
            a_b, b_a = directions[a], directions[b]
            if a_b.bytes or b_a.bytes:
                print(f"{time.time():.0f} {a_b.bytes / 125000:.1f} {b_a.bytes / 125000:.1f} {a_b.dropped + b_a.dropped}", flush=True)
            for way in directions.values():
                way.bytes = way.dropped = 0
        due = [way.under_way[0][0] for way in directions.values() if way.under_way]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select([a, b], [], [], wait)
        for fd in readable:
            directions[fd].take(time.monotonic())
        for way in directions.values():
            way.give(time.monotonic())


main()
