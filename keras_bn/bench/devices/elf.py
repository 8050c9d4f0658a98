"""What a program file was built for, read from its ELF header, so that it is not tried in vain."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x7fELF"
# e_machine of elf.h and the word size, by the names of developer.android.com/ndk/guides/abis.
ABIS = {
    (183, 64): "arm64-v8a",
    (40, 32): "armeabi-v7a",
    (62, 64): "x86_64",
    (3, 32): "x86",
    (243, 64): "riscv64",
}
PT_INTERP = 3
# A header and its program headers fit into this many bytes, the dynamic linker's path as well.
HEAD_BYTES = 65536


@dataclass(frozen=True)
class Program:
    """What an ELF file was built for.

    Attributes:
        abi: Android's name of its architecture; "machine 8, 32 bit" for one without a name.
        linker: Path of the dynamic linker that it asks for; None if it is linked statically.
    """

    abi: str
    linker: str | None


def read(path: str | os.PathLike[str]) -> Program:
    """What the program at `path` was built for.

    Raises:
        FileNotFoundError, OSError: it cannot be read.
        ValueError: it is not a program in the ELF format.

    Example:
        >>> read("/bin/sh").linker.startswith("/lib")  # doctest: +SKIP
        True
    """
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        return _program(head)
    except (struct.error, IndexError, ValueError):
        raise ValueError(
            f"{os.fspath(path)} is not a program for Android: it begins with {head[:4]!r}, and "
            f"programs there are ELF files, which begin with {MAGIC!r}."
        ) from None


def _program(head: bytes) -> Program:
    if head[:4] != MAGIC:
        raise ValueError
    bits = {1: 32, 2: 64}.get(head[4], 0)
    order = {1: "<", 2: ">"}.get(head[5], "")
    if not bits or not order:
        raise ValueError
    (machine,) = struct.unpack_from(order + "H", head, 18)
    # e_phoff, then e_phentsize and e_phnum; the addresses before them are as wide as the machine's.
    table_at, sizes_at, address = (32, 54, "Q") if bits == 64 else (28, 42, "I")
    (table,) = struct.unpack_from(order + address, head, table_at)
    size, count = struct.unpack_from(order + "HH", head, sizes_at)
    linker = None
    for at in range(table, table + size * count, size or 1):
        if struct.unpack_from(order + "I", head, at) == (PT_INTERP,):
            # p_offset and p_filesz; the flags stand before them in 64-bit files only.
            first = at + (8 if bits == 64 else 4)
            (offset,) = struct.unpack_from(order + address, head, first)
            linker = head[offset:].partition(b"\0")[0].decode(errors="replace")
    return Program(ABIS.get((machine, bits), f"machine {machine}, {bits} bit"), linker)
