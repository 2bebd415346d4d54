"""Where one JSON message ends in a stream of them.

SPDK writes its answers one after another; nothing but the closing brace tells where an answer ends
(lib/jsonrpc/jsonrpc_server.c). `MessageSplitter` finds that brace in one pass: it keeps its position between reads and
looks at no byte more than twice, whatever the size of the answer and of the pieces it arrives in.
"""

from __future__ import annotations

import re

# No possessive quantifiers: on groups they match wrongly before Python 3.11.5, and Debian 12 has 3.11.2. Without
# them a group remembers every repetition, so each is bounded and the loop below goes on where it stopped.
_INERT = re.compile(rb'[^"{}]*(?:"[^"\\]*(?:\\.[^"\\]*){0,32}"[^"{}]*){0,32}', re.DOTALL)
"""What cannot change the depth: what stands between braces, and up to 32 complete strings."""

_STRING_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*){0,256}', re.DOTALL)
"""The inside of a string: up to its closing quote, 256 escapes, the end of the buffer, or a backslash at its end."""

_SPACE = re.compile(rb"[ \t\r\n]*")

_OPEN, _CLOSE, _BACKSLASH = b"{}\\"

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""More than SPDK can send (SPDK_JSONRPC_SEND_BUF_SIZE_MAX is 32 MiB): a longer message is garbage that never ends."""


class FramingError(ValueError):
    """The stream holds something that is not a sequence of JSON objects."""


class MessageSplitter:
    """Cuts a byte stream into JSON objects. What is inside an object is not checked: its decoder does that.

    It works on bytes, so a UTF-8 character split across reads needs no care.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._position = 0
        self._depth = 0
        self._in_string = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of a message whose end has not arrived."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream, return the messages they complete. Raises FramingError."""
        self._buffer += data
        messages: list[bytes] = []
        consumed = 0
        while self._find_end():
            messages.append(bytes(self._buffer[consumed : self._position]))
            consumed = self._position
        if self._depth == 0:
            consumed = self._position  # white space between messages
        if consumed:
            del self._buffer[:consumed]
            self._position -= consumed
        if len(self._buffer) > self._max_message_bytes:
            raise FramingError(f"a message is longer than {self._max_message_bytes} bytes")
        return messages

    def _find_end(self) -> bool:
        """Advance to the byte after the next complete object; False when its end is not in the buffer yet."""
        if self._depth == 0 and not self._enter_object():
            return False
        buffer, position = self._buffer, self._position
        size = len(buffer)
        while True:
            if self._in_string:
                position = _end(_STRING_REST, buffer, position)
                if position >= size or (buffer[position] == _BACKSLASH and position + 1 == size):
                    break
                if buffer[position] == _BACKSLASH:
                    continue
                self._in_string = False
                position += 1
            position = _end(_INERT, buffer, position)
            if position >= size:
                break
            byte = buffer[position]
            position += 1
            if byte == _OPEN:
                self._depth += 1
            elif byte == _CLOSE:
                self._depth -= 1
                if self._depth == 0:
                    self._position = position
                    return True
            else:
                self._in_string = True
        self._position = position
        return False

    def _enter_object(self) -> bool:
        position = _end(_SPACE, self._buffer, self._position)
        self._position = position
        if position >= len(self._buffer):
            return False
        if self._buffer[position] != _OPEN:
            raise FramingError(f"expected a JSON object, got {bytes(self._buffer[position : position + 40])!r}")
        self._position += 1
        self._depth = 1
        return True


def _end(pattern: re.Pattern[bytes], buffer: bytearray, position: int) -> int:
    match = pattern.match(buffer, position)
    return match.end() if match else position
