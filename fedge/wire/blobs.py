"""A large body that travels in chunks, at the pace at which its receiver grants credit.

The header of the message that carries a blob declares it under ``blob``: id, length, sha256 and number of chunks. The
receiver checks that against its limit, allocates once, and grants a window of chunks; then it grants more as chunks
arrive, so that never more than the window is under way. Chunks come in order, each of 256 KiB but the last. A blob of
one chunk needs no credit: it is the body of the message that declares it.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from fedge.errors import ProtocolError
from fedge.wire.frames import CHUNK, Buffer, Kind, Message

LIMIT = 1 << 30
WINDOW = 8 << 20
ALIGN = 64

_HEX = re.compile(r"[0-9a-f]{64}")


class Blob:
    """Bytes to send, hashed once however many receivers there are. The buffer must not change until all have it."""

    __slots__ = ("_sha256", "chunks", "length", "view")

    def __init__(self, data: Buffer):
        """``data`` is any contiguous buffer; it is viewed, never copied."""
        self.view = memoryview(data).cast("B").toreadonly()
        self.length = len(self.view)
        self.chunks = chunks_of(self.length)
        self._sha256 = ""

    @property
    def sha256(self) -> str:
        """The hash in hexadecimal digits, taken when it is first asked for."""
        if not self._sha256:
            self._sha256 = hashlib.sha256(self.view).hexdigest()
        return self._sha256

    def chunk(self, n: int) -> memoryview:
        """The n-th chunk, counted from 0, as a view."""
        return self.view[n * CHUNK : (n + 1) * CHUNK]


@dataclass(frozen=True)
class Declaration:
    """What a sender says of a blob before any of it comes."""

    id: str
    length: int
    sha256: str
    chunks: int

    @classmethod
    def read(cls, value: Any, limit: int) -> Declaration:
        """Check what stood in a header, against a limit in bytes; ProtocolError says what is wrong with it."""
        if not isinstance(value, dict) or set(value) != {"id", "length", "sha256", "chunks"}:
            raise ProtocolError("a blob is declared by id, length, sha256 and chunks, and nothing else")
        id, length, sha256, chunks = value["id"], value["length"], value["sha256"], value["chunks"]
        if not isinstance(id, str) or not 0 < len(id) <= 64:
            raise ProtocolError("the id of a blob is a text of 1 to 64 characters")
        if type(length) is not int or length < 0:
            raise ProtocolError(f"blob {id!r}: the length is a whole number of bytes")
        if length > limit:
            raise ProtocolError(f"blob {id!r}: {length} bytes announced, at most {limit} are allowed")
        if not isinstance(sha256, str) or not _HEX.fullmatch(sha256):
            raise ProtocolError(f"blob {id!r}: the sha256 is 64 hexadecimal digits in lower case")
        if type(chunks) is not int or chunks != chunks_of(length):
            raise ProtocolError(f"blob {id!r}: {length} bytes travel in {chunks_of(length)} chunks")
        return cls(id, length, sha256, chunks)


class Outgoing:
    """A blob on its way to one receiver."""

    def __init__(self, id: str, blob: Blob):
        self.id = id
        self.blob = blob
        self.sent = 0
        self.granted = 0

    @property
    def done(self) -> bool:
        """Whether every chunk has been given out."""
        return self.sent == self.blob.chunks

    def declare(self) -> dict[str, Any]:
        """What to put under ``blob`` in the header of the message that carries it."""
        return {"id": self.id, "length": self.blob.length, "sha256": self.blob.sha256, "chunks": self.blob.chunks}

    def grant(self, n: Any) -> None:
        """Take the receiver's credit for ``n`` more chunks; ProtocolError if that makes more than there are."""
        if type(n) is not int or n < 1 or self.granted + n > self.blob.chunks:
            raise ProtocolError(f"blob {self.id!r}: a credit that is no number of chunks still to come")
        self.granted += n

    def next(self) -> Message | None:
        """The next chunk, or None while there is no credit for one."""
        if self.sent == self.granted:
            return None
        n = self.sent
        self.sent += 1
        return Message(Kind.CHUNK, {"id": self.id, "n": n}, self.blob.chunk(n))


class Incoming:
    """A blob that is arriving: each chunk is written at once to its place in one buffer."""

    def __init__(self, declared: Declaration, window: int = WINDOW):
        """``window`` is how many bytes may be under way; it is rounded down to whole chunks, but at least one."""
        self.declared = declared
        self._window = max(1, window // CHUNK)
        self._buffer = aligned(declared.length)
        self._view = memoryview(self._buffer)
        self._hash = hashlib.sha256()
        self._got = 0
        self._granted = 0

    @property
    def done(self) -> bool:
        """Whether every chunk is here."""
        return self._got == self.declared.chunks

    def credit(self) -> int:
        """How many more chunks to grant now; 0 for none. What is returned counts as granted."""
        room = min(self._got + self._window, self.declared.chunks) - self._granted
        # in quarters of the window: one message of credit for many chunks, and the sender never runs dry
        if room < max(1, self._window // 4) and self._granted + room < self.declared.chunks:
            return 0
        self._granted += room
        return room

    def take(self, header: dict[str, Any], body: Buffer) -> None:
        """Store one chunk; ProtocolError if it is not the one that is due, or not of its size."""
        id, n = header.get("id"), header.get("n")
        if id != self.declared.id:
            raise ProtocolError(f"a chunk of blob {str(id)[:64]!r} came, {self.declared.id!r} is on its way")
        if type(n) is not int or not 0 <= n < self.declared.chunks:
            raise ProtocolError(f"blob {id!r}: there is no chunk {str(n)[:20]} among {self.declared.chunks}")
        if n != self._got:
            what = "came twice" if n < self._got else f"came when {self._got} was due"
            raise ProtocolError(f"blob {id!r}: chunk {n} {what}")
        if n >= self._granted:
            raise ProtocolError(f"blob {id!r}: chunk {n} came without credit")
        start = n * CHUNK
        end = min(start + CHUNK, self.declared.length)
        if len(body) != end - start:
            raise ProtocolError(f"blob {id!r}: chunk {n} has {len(body)} bytes instead of {end - start}")
        self._view[start:end] = body
        self._hash.update(body)
        self._got += 1

    def finish(self) -> bytearray:
        """The whole blob, which is the caller's from now on; ProtocolError if it is not what was declared."""
        if not self.done:
            raise ProtocolError(f"blob {self.declared.id!r} is not complete")
        self._view.release()
        if self._hash.hexdigest() != self.declared.sha256:
            raise ProtocolError(f"blob {self.declared.id!r}: the bytes do not have the hash that was announced")
        return self._buffer


def chunks_of(length: int) -> int:
    """In how many chunks a blob of so many bytes travels."""
    return -(-length // CHUNK)


def aligned(length: int) -> bytearray:
    """A bytearray that begins at a multiple of 64 bytes, so that tensors viewed on it can be aligned too.

    Deleting from its front moves a bytearray's start without a copy, as long as little is deleted; the shortest ones
    may be moved after all, and then are merely not aligned.
    """
    buffer = bytearray(length + ALIGN)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    del buffer[: -address % ALIGN]
    del buffer[length:]
    return buffer
