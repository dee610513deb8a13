"""As much of a WebSocket client (RFC 6455) as listening to ComfyUI takes; standard library only."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass
class Events:
    """What a server has sent so far, in order; filled by a thread while the connection is open."""

    messages: list[dict[str, Any]] = field(default_factory=list)  # {"type": ..., "data": ...}
    binary: list[bytes] = field(default_factory=list)  # previews: 4-byte event type, then the payload

    def of_type(self, name: str) -> list[Any]:
        """Return the data of all messages of one type."""
        return [message["data"] for message in self.messages if message.get("type") == name]

    def wait_for(self, condition: Callable[[Events], object], timeout: float = 30.0) -> bool:
        """Wait until `condition` of what has come so far is true; return whether it became so in time."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@contextmanager
def listen(port: int, path: str) -> Iterator[Events]:
    """Connect to 127.0.0.1 and collect messages until the block ends.

    Raises:
        ConnectionError: the server does not speak WebSocket at this path.
    """
    events = Events()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        stream = connection.makefile("rwb")
        shake_hands(stream, port, path)
        connection.settimeout(None)
        reader = threading.Thread(target=read_all, args=(stream, events), daemon=True)
        reader.start()
        try:
            yield events
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            reader.join(timeout=10)


def shake_hands(stream: BinaryIO, port: int, path: str) -> None:
    """Ask for the upgrade (RFC 6455, 4.1) and read the answer's headers."""
    key = base64.b64encode(os.urandom(16)).decode()
    stream.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    stream.flush()
    status = stream.readline().decode()
    if " 101 " not in status:
        raise ConnectionError(f"{path} must answer with 101, got {status.strip()!r}")
    while stream.readline().strip():
        pass  # the headers say nothing that we need


def read_all(stream: BinaryIO, events: Events) -> None:
    """Read messages until the connection ends."""
    message, kind = b"", TEXT
    while (frame := read_frame(stream)) is not None:
        final, opcode, payload = frame
        if opcode == CLOSE:
            return
        if opcode == PING:
            send_frame(stream, PONG, payload)
        elif opcode in (0, TEXT, BINARY):
            message, kind = (message + payload, kind) if opcode == 0 else (payload, opcode)
            if final and kind == TEXT:
                events.messages.append(json.loads(message))
            elif final:
                events.binary.append(message)


def read_frame(stream: BinaryIO) -> tuple[bool, int, bytes] | None:
    """Read one frame of a server (never masked); return (final, opcode, payload), None at the end."""
    try:
        head = stream.read(2)
        if len(head) < 2:
            return None
        length = head[1] & 0x7F
        if length >= 126:
            size, code = (2, ">H") if length == 126 else (8, ">Q")
            length = struct.unpack(code, stream.read(size))[0]
        return bool(head[0] & 0x80), head[0] & 0x0F, stream.read(length)
    except (OSError, struct.error):
        return None


def send_frame(stream: BinaryIO, opcode: int, payload: bytes) -> None:
    """Send one short frame; a client must mask (the mask may be zero, which leaves the payload as it is)."""
    stream.write(bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload)
    stream.flush()
