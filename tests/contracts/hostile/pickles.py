"""Pickles that run code, read or write a file, or fill the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PICKLES: dict[str, Callable[[Path], bytes]] = {
    "system": lambda canary: b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode(),
    "posix": lambda canary: b"cposix\nsystem\n(S'touch %s'\ntR." % str(canary).encode(),
    "eval": lambda canary: b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.' % str(canary).encode(),
    "open": lambda canary: b"cio\nopen\n(S'%s'\nS'w'\ntR." % str(canary).encode(),
    "import": lambda canary: b"cimportlib\nimport_module\n(S'antigravity'\ntR.",
    "popen": lambda canary: b"csubprocess\nPopen\n(S'true'\ntR.",
    "getattr": lambda canary: b"cbuiltins\ngetattr\n(cos\nenviron\nS'copy'\ntR)R.",
    "partial": lambda canary: b"cfunctools\npartial\n(cos\nsystem\nS'true'\ntR)R.",
    "torch load": lambda canary: b"ctorch\nload\n(S'/etc/SECRET'\ntR.",
    "torch hub": lambda canary: b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.",
    "numpy load": lambda canary: b"cnumpy\nload\n(S'/etc/SECRET'\ntR.",
    "memmap": lambda canary: b"cnumpy\nmemmap\n(S'%s'\nS'f4'\nS'w+'\nI0\n(I4\nttR." % str(canary).encode(),
    "instance": lambda canary: b"(S'touch %s'\nios\nsystem\n." % str(canary).encode(),
    "object": lambda canary: b"(cos\nsystem\nS'touch %s'\no." % str(canary).encode(),
    "build": lambda canary: b"ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb.",
    "stack": lambda canary: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "bytearray": lambda canary: b"cbuiltins\nbytearray\n(L99999999999L\ntR.",
    "counter": lambda canary: b"ccollections\nCounter\n(S'ab'\ntR.",
    "lists": lambda canary: b"]" * 3_000_000 + b".",
    "memo": lambda canary: b"\x80\x04N" + b"r\xff\xff\xff\x0f" + b".",
    "a long text": lambda canary: b"X\xff\xff\xff\x7fabc.",
    "a frame": lambda canary: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
}
