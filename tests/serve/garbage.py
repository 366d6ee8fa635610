"""What strangers send, and how to send it."""

import re
import socket
import struct

HEAD = b"Host: localhost\r\n"
SHAKE = b"GET / HTTP/1.1\r\n" + HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
# Words that are Python's, a package's or the machine's, and none of a sentence.
INTERNAL = re.compile(
    r"Traceback|Error\b|Exception|<class|object at|0x[0-9a-f]{4}|NoneType|\bdict\b|\bslot\b|codec|struct|msgpack\.|"
    r"\bb['\"]|bytearray|\.py\b|unpack|ndarray|np\.|Errno|charmap|invalid literal|site-packages|aiohttp"
)


def internal(sentence: str) -> bool:
    """It holds such words, but in what it quotes of a stranger's."""
    return INTERNAL.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", sentence)) is not None


def body(path: bytes, data: bytes, kind: bytes = b"multipart/form-data; boundary=x", more: bytes = b"") -> bytes:
    head = b"POST " + path + b" HTTP/1.1\r\n" + HEAD + b"Content-Type: " + kind + b"\r\n" + more
    return head + (b"\r\n" if b"Transfer" in more else b"Content-Length: %d\r\n\r\n" % len(data)) + data


def get(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# Kind by which it is counted -> what is sent.
BYTES: dict[str, list[bytes]] = {
    "silent": [b""],
    "tls": [b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(150))],
    "half": [b"GET / HTT", b"GET /\r\n", b"GET / HTTP/1.1\r\nHost: lo", b"\r\n" * 9],
    "http": [
        bytes(range(128, 256)), bytes(100), b"SSH-2.0-OpenSSH_8.9\r\n", b"\x05\x01\x00", b"EHLO you\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        get(b"Host: localhost", b"no header"),
        get(b"Host: localhost", b"Content-Length: x"), get(b"Host: localhost", b"X: " + b"a" * 9000),
        get(b"Host: localhost", *(b"X%d: a" % i for i in range(200))), b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n" + HEAD + b"\r\n", b"FOO / HTTP/1.1\r\n" + HEAD + b"\r\n",
    ],
}  # fmt: skip
HANDSHAKES = [
    SHAKE.replace(b"13", b"12") + KEY, SHAKE.replace(b"Version", b"Wersion") + KEY, SHAKE + b"\r\n",
    SHAKE + b"Sec-WebSocket-Key: abc\r\n\r\n", SHAKE + b"Sec-WebSocket-Key: !\xff\xfe\r\n\r\n",
]  # fmt: skip
FRAMES = [
    b"\xf2\x81\0\0\0\0a", b"\xc2\x81\0\0\0\0a", b"\x83\x81\0\0\0\0a", b"\x8f\x80\0\0\0\0", b"\x81\x82\0\0\0\0\xff\xfe",
    b"\x89\xfe\x00\x80\0\0\0\0" + bytes(128), b"\x09\x80\0\0\0\0", b"\x80\x81\0\0\0\0a", b"\x88\x81\0\0\0\0a",
    b"\x02\x81\0\0\0\0a\x82\x81\0\0\0\0a", b"\x88\x82\0\0\0\0\x00\x01", b"\x88\x84\0\0\0\0\x03\xe8\xff\xff",
]  # fmt: skip


def say(port: int, data: bytes, *, hang_up: bool = False, reset: bool = False) -> bytes:
    """The answer, up to the end of an HTTP one's body or of the connection.

    `hang_up`: nothing more is said, and so nothing answered by HTTP; `reset`: the connection is broken off at once.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.sendall(data)
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        if hang_up:
            peer.shutdown(socket.SHUT_WR)
        answer, whole = b"", None
        while not (whole and whole[1] and len(whole[2]) >= int(whole[1])) and (part := peer.recv(2**16)):
            answer += part
            whole = re.match(rb"HTTP/1\.. [2-5].*?Content-Length: (\d+)\r\n.*?\r\n\r\n(.*)", answer, re.DOTALL)
        return answer
