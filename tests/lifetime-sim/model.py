#!/usr/bin/env python3
"""A model of what two years cost (docs/benchmarks.md): numbers alone, no node and no network.

Usage: tests/lifetime-sim/model.py reuse|troubles|with [SEED...]

The blocks of history.rs come and go (with another generator of random numbers: its seeds are not
those of the simulation), in 52 epochs of 28 steps. Files stand for their blocks: those of a file
come and go together, and each has the file's mean length where it is moved. A round of the node
follows each step. There is no trouble: no kill, no lie, no wrong clock, and each put fills packs.
All results are multiples of what the live bytes need in full packs (bill.rs).

reuse   what dead bytes, storage without a blob, and writes cost with reuseStorage, for several
        values of the epochs that a repack is compared over (the planner: 1) and of the packs that
        may be bought for the sake of storage.
troubles
        reuseStorage with kills, each of which costs the storage and the write of a full pack (it is
        stored, and no row points at it), and with a wrong clock as well: for three epochs, from the
        middle on, nothing is taken over that ends with the present epoch.
with    walrusCommand alone, for several numbers of epochs bought at a time, and of epochs that a
        repack is compared over (the planner: those that are bought but one). `late`: blobs are
        extended and repacked in the last 2.5 steps of an epoch, else as soon as they are due.
"""

import math
import random
import sys

SHARDS = 200
FAULTY = (SHARDS - 1) // 3
ROWS, COLUMNS = SHARDS - 2 * FAULTY, SHARDS - FAULTY
UNIT = 1 << 20
TARGET = (64 << 20) * SHARDS * SHARDS // 1_000_000
EPOCHS, STEPS, BLOCKS = 52, 28, 100_000
# FROST per unit, in epochs of storage.
WRITE = 0.2
# Bytes that a block, and a pack, take beside the blocks' own.
BLOCK_OVERHEAD, PACK_OVERHEAD = 80, 60
LEAD = 14
# Storage that ends within so many steps is not taken over; blobs are extended in the last third.
SPARE, EXTENDS = LEAD / 4, LEAD / 3
ROOMY, NEARLY = 4, 20


def encoded(length):
    symbol = -(-max(length, 1) // (ROWS * COLUMNS))
    symbol += symbol % 2
    return SHARDS * (64 * SHARDS + 32) + SHARDS * (ROWS + COLUMNS) * symbol


def longest_within(size):
    symbol = (size - SHARDS * (64 * SHARDS + 32)) // (SHARDS * (ROWS + COLUMNS))
    return ROWS * COLUMNS * (symbol - symbol % 2)


def units(size):
    return -(-size // UNIT)


FULL = encoded(TARGET)
FULL_UNITS = units(FULL)
PER_BYTE = FULL_UNITS / TARGET


def history(seed):
    """The files: the steps in which they come and go, and the lengths of their blocks."""
    rng = random.Random(seed)
    steps = EPOCHS * STEPS
    sessions = [e * STEPS + rng.randrange(STEPS) for e in range(EPOCHS) for _ in range(2)]
    files, blocks = [], 0
    while blocks < BLOCKS:
        comes = rng.choice(sessions)
        dies = rng.random() < 0.6 and comes + 1 < steps
        goes = rng.randrange(comes + 1, steps) if dies else None
        count = min(rng.randint(1, 39), BLOCKS - blocks)
        lengths = [int(2048 * math.exp(math.log(8) * rng.random())) for _ in range(count)]
        files.append((comes, goes, lengths))
        blocks += count
    return sorted(files, key=lambda file: file[0])


class Blob:
    def __init__(self, length, storage, end):
        self.length, self.storage, self.end = length, storage, end
        # Bytes and number of its live blocks, by file.
        self.files = {}
        self.bytes = self.blocks = 0
        self.released = None

    def packed(self):
        return self.bytes + BLOCK_OVERHEAD * self.blocks


class Model:
    def __init__(self, seed, bought, compared):
        self.files = history(seed)
        self.bought, self.compared = bought, compared
        self.blobs, self.of_file, self.left = set(), {}, []
        self.paid = dict(put=0.0, repack=0.0, extend=0.0)
        self.counts = dict(stores=0, reused=0, repacks=0)
        self.at_ends = dict(idle=0.0, dead=0.0, unfilled=0.0)

    def run(self):
        come, go, need = {}, {}, 0.0
        for number, (comes, goes, lengths) in enumerate(self.files):
            come.setdefault(comes, []).append(number)
            if goes is not None:
                go.setdefault(goes, []).append(number)
            last = EPOCHS - 1 if goes is None else goes // STEPS
            need += sum(lengths) * PER_BYTE * (last - comes // STEPS + 1 + WRITE)
        for step in range(EPOCHS * STEPS):
            self.step, self.epoch = step, step // STEPS
            self.to_come = STEPS - step % STEPS
            self.forget_ended()
            blocks = [(n, b) for n in come.get(step, ()) for b in self.files[n][2]]
            self.fill(blocks, "put")
            for number in go.get(step, ()):
                for blob in self.of_file.pop(number, ()):
                    length, count = blob.files.pop(number)
                    blob.bytes -= length
                    blob.blocks -= count
            self.to_come -= 1 - 1e-6
            self.round()
            if self.to_come < 1:
                self.end_of_epoch()
        result = {"paid": sum(self.paid.values()) / need}
        result.update({name: paid / need for name, paid in self.paid.items()})
        result.update({name: sum_ / need for name, sum_ in self.at_ends.items()})
        result.update(self.counts)
        return result

    def forget_ended(self):
        lost = [blob for blob in self.blobs if blob.end <= self.epoch]
        assert all(blob.bytes == 0 for blob in lost), "a live blob has ended"
        self.blobs.difference_update(lost)
        self.left = [left for left in self.left if left[1] > self.epoch]

    def end_of_epoch(self):
        for blob in self.blobs:
            if blob.released is None:
                content = blob.length * PER_BYTE
                self.at_ends["unfilled"] += units(blob.storage) - content
                self.at_ends["dead"] += content - blob.bytes * PER_BYTE
        self.at_ends["idle"] += sum(units(size) for size, _ in self.left)

    def wanted(self):
        """For how many epochs storage is asked for that is left, and where these end."""
        epochs = 2 if self.to_come <= SPARE else 1
        return epochs, self.epoch + epochs

    def target(self):
        _, end = self.wanted()
        nearly = [s for s, e in self.left if e >= end and FULL - FULL // NEARLY <= s < FULL]
        return longest_within(min(nearly)) if nearly else TARGET

    def room(self, length):
        _, end = self.wanted()
        return sum(1 for s, e in self.left if s >= encoded(length) and e >= end)

    def fill(self, blocks, purpose):
        pack, length, target = [], PACK_OVERHEAD, self.target()
        for block in blocks:
            if length + block[1] + BLOCK_OVERHEAD > target:
                self.store(pack, length, purpose)
                pack, length, target = [], PACK_OVERHEAD, self.target()
            pack.append(block)
            length += block[1] + BLOCK_OVERHEAD
        if pack:
            self.store(pack, length, purpose)

    def store(self, blocks, length, purpose):
        size = encoded(length)
        _, end = self.wanted()
        fitting = [left for left in self.left if left[0] >= size and left[1] >= end]
        paid = units(size) * WRITE
        if fitting and min(fitting)[0] <= size + size // ROOMY:
            left = min(fitting)
            self.left.remove(left)
            blob = Blob(length, *left)
            self.counts["reused"] += 1
        else:
            blob = Blob(length, size, self.epoch + self.bought)
            paid += units(size) * (min(blob.end, EPOCHS) - self.epoch)
        self.paid[purpose] += paid
        self.counts["stores"] += 1
        self.counts["repacks"] += purpose == "repack"
        for number, block in blocks:
            of_file = blob.files.setdefault(number, [0, 0])
            of_file[0] += block
            of_file[1] += 1
            self.of_file.setdefault(number, set()).add(blob)
            blob.bytes += block
            blob.blocks += 1
        self.blobs.add(blob)

    def cheapest(self, candidates, room=math.inf):
        """The blobs whose repacking makes the sum least, of [(units, blob)]."""
        candidates.sort(key=lambda c: -c[0] / c[1].packed())
        target = self.target()
        full = units(encoded(target))

        def packs(length):
            rest = length % target
            return length // target * full + (units(encoded(rest)) if rest else 0)

        otherwise = sum(c[0] for c in candidates) * self.compared
        best, taken, packed, order = otherwise, 0, 0, []
        for kept, blob in candidates:
            if packed + blob.packed() > room * target:
                continue
            packed += blob.packed()
            otherwise -= kept * self.compared
            order.append(blob)
            cost = otherwise + packs(packed) * self.price_of_unit()
            if cost < best:
                best, taken = cost, len(order)
        return order[:taken]

    def repack(self, blobs):
        blocks = []
        for blob in blobs:
            for number, (length, count) in blob.files.items():
                mean = length // count
                blocks += [(number, mean)] * (count - 1) + [(number, length - mean * (count - 1))]
                self.of_file[number].discard(blob)
            blob.files, blob.bytes, blob.blocks, blob.released = {}, 0, 0, self.step
        self.fill(blocks, "repack")

    def extend(self, blob):
        end = self.epoch + self.bought
        added = max(0, min(end, EPOCHS) - blob.end)
        self.paid["extend"] += units(blob.storage) * added
        blob.end = end


class Reuse(Model):
    """With reuseStorage."""

    def __init__(self, seed, compared=1, seeds=40):
        super().__init__(seed, 2, compared)
        self.seeds = seeds

    def price_of_unit(self):
        return self.compared + WRITE

    def round(self):
        for blob in [b for b in self.blobs if b.released is not None and b.released < self.step]:
            self.blobs.remove(blob)
            self.left.append((blob.storage, blob.end))
        counted = self.step % 2 == 0
        if counted:
            for blob in self.blobs:
                if not blob.bytes and blob.released is None:
                    blob.released = self.step
        target = self.target()
        full = units(encoded(target))
        candidates = []
        for blob in self.blobs:
            if not blob.bytes:
                continue
            kept = units(blob.storage)
            if blob.packed() * 100 >= blob.length * 98:
                kept = min(kept, units(encoded(blob.length)))
            due = blob.end == self.epoch + 1 and self.to_come <= LEAD
            if due or (counted and blob.packed() * full < kept * target):
                candidates.append((kept, blob))
        room = self.room(target)
        if counted and self.to_come > STEPS / 2:
            room += 1 + len(self.blobs) // self.seeds
        self.repack(self.cheapest(candidates, room))
        if self.to_come <= EXTENDS:
            for blob in self.blobs:
                if blob.bytes and blob.end == self.epoch + 1:
                    self.extend(blob)


class Killed(Reuse):
    """With reuseStorage and kills, in one of 50 steps."""

    def __init__(self, seed, wrong_clock):
        super().__init__(seed)
        self.random = random.Random(seed)
        self.wrong_clock = wrong_clock
        self.counts["kills"] = 0

    def wanted(self):
        if self.wrong_clock and EPOCHS // 2 <= self.epoch < EPOCHS // 2 + 3:
            return 2, self.epoch + 2
        return super().wanted()

    def round(self):
        super().round()
        if self.random.random() >= 0.02:
            return
        self.counts["kills"] += 1
        self.paid["repack"] += FULL_UNITS * WRITE
        large = [left for left in self.left if left[0] >= FULL - FULL // NEARLY]
        if large:
            self.left.remove(min(large))
        else:
            self.paid["repack"] += FULL_UNITS * self.bought


class With(Model):
    """With walrusCommand alone."""

    def __init__(self, seed, bought, compared, late):
        super().__init__(seed, bought, compared)
        self.late = late

    def price_of_unit(self):
        # A new pack is paid for from the present epoch on.
        return self.compared + 1 + WRITE

    def round(self):
        self.blobs = {blob for blob in self.blobs if blob.bytes}
        if self.to_come > (2.5 if self.late else LEAD):
            return
        due = [blob for blob in self.blobs if blob.end <= self.epoch + 1]
        repacked = self.cheapest([(units(blob.storage), blob) for blob in due])
        self.repack(repacked)
        for blob in due:
            if blob.bytes:
                self.extend(blob)


def show(title, make, seeds):
    results = [make(seed).run() for seed in seeds]
    mean = {name: sum(r[name] for r in results) / len(results) for name in results[0]}
    form = lambda value: f"{value:.3f}" if value < 10 else f"{value:.0f}"
    print(title, " ".join(f"{name} {form(value)}" for name, value in mean.items()), flush=True)


def main():
    way = sys.argv[1] if len(sys.argv) > 1 else ""
    seeds = [int(seed) for seed in sys.argv[2:]] or [1, 2]
    if way == "reuse":
        for compared in (1, 1.5, 2, 3):
            for part in (20, 40, 80):
                title = f"compared over {compared}, 1 + 1/{part} of the packs bought:"
                show(title, lambda seed: Reuse(seed, compared, part), seeds)
    elif way == "troubles":
        show("none:", Reuse, seeds)
        show("kills:", lambda seed: Killed(seed, False), seeds)
        show("kills and a wrong clock:", lambda seed: Killed(seed, True), seeds)
    elif way == "with":
        for bought in (2, 3, 5, 8):
            for compared in sorted({bought - 1, 4, 6, 8, 12}):
                for late in (False, True):
                    title = f"bought {bought}, compared over {compared}, {'late' if late else 'due'}:"
                    show(title, lambda seed: With(seed, bought, compared, late), seeds)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
