#!/usr/bin/env python3
"""Plain text of Jane Austen's six novels (public domain) out of Debian's r-cran-janeaustenr.

usage: austen_text.py UNPACKED OUT, after `dpkg -x r-cran-janeaustenr_*.deb UNPACKED`
Writes OUT/<novel>.txt. The package holds serialised R objects; the small reader here understands
the few record types in them, so no R is needed.
"""
import argparse
import bz2
import lzma
import pathlib
import struct
import zlib

# Record types of R's XDR serialisation (R internals, section 1.8).
SYMBOL, PAIRLIST, CHARS, LOGICAL, INTEGER, REAL, STRINGS, LIST = 1, 2, 9, 10, 13, 14, 16, 19
ALTREP, NIL, REFERENCE = 238, 254, 255
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 14
        self.symbols = []
        if struct.unpack_from(">i", data, 2)[0] == 3:  # version 3 adds the native encoding
            length = self.int()
            self.at += length

    def int(self):
        value = struct.unpack_from(">i", self.data, self.at)[0]
        self.at += 4
        return value

    def array(self, code, width):
        count = self.int()
        values = list(struct.unpack_from(f">{count}{code}", self.data, self.at))
        self.at += width * count
        return values

    def chars(self):
        length = self.int()
        if length == -1:
            return None
        text = self.data[self.at:self.at + length].decode("utf-8", "replace")
        self.at += length
        return text

    def item(self):
        flags = self.int()
        kind = flags & 0xFF
        if kind == NIL:
            return None
        if kind == REFERENCE:
            return self.symbols[(flags >> 8 or self.int()) - 1]
        if kind == CHARS:
            return self.chars()
        if kind == SYMBOL:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == PAIRLIST:
            if flags & HAS_ATTRIBUTES:
                self.item()
            tag = self.item() if flags & HAS_TAG else None
            head = self.item()
            return [(tag, head)] + (self.item() or [])
        if kind == ALTREP:
            _info, state, _attributes = self.item(), self.item(), self.item()
            return state
        if kind in (STRINGS, LIST):
            value = [self.item() for _ in range(self.int())]
        elif kind in (LOGICAL, INTEGER):
            value = self.array("i", 4)
        elif kind == REAL:
            value = self.array("d", 8)
        else:
            raise SystemExit(f"an R record of the unknown type {kind} at byte {self.at}")
        return (value, dict(self.item())) if flags & HAS_ATTRIBUTES else value


def decompress(record):
    """One lazy-load record: four bytes of length, then a letter for the method or plain zlib."""
    method = record[4:5]
    if method == b"2":
        return bz2.decompress(record[5:])
    if method == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(record[5:])
    return zlib.decompress(record[4:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unpacked", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    [folder] = args.unpacked.glob("**/janeaustenr/data")
    records = (folder / "Rdata.rdb").read_bytes()
    values, attributes = Reader(zlib.decompress((folder / "Rdata.rdx").read_bytes(), 47)).item()
    places, place_attributes = values[attributes["names"].index("variables")]
    for name, (offset, length) in zip(place_attributes["names"], places):
        lines = Reader(decompress(records[offset:offset + length])).item()
        if isinstance(lines, tuple):
            lines = lines[0]
        if all(isinstance(line, str) for line in lines):
            (args.out / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{name}: {len(lines)} lines")


if __name__ == "__main__":
    main()
