"""Peers that no falaj is: certificates by `openssl`, and links that send whatever bytes a test wants, over real TLS. The little of
Cap'n Proto that this takes is written by hand, so that nothing keeps a test from writing it wrong."""

import datetime
import hashlib
import socket
import ssl
import struct
import subprocess
import threading
import time

from conftest import SLOW

CONTROL, NORMAL, BULK = 0, 1, 2  # lanes
TELL, ASK, REPLY, REFUSAL, HEARTBEAT, HEARTBEAT_REPLY = 0, 1, 2, 3, 7, 8  # kinds of envelopes
WIRE_VERSION = 1
FILES = {"control": 0x9CB313ADE97AFA51, "features": 0x934419BB4E2E479C, "serving": 0xE8B26FF6035E8B26, "foreign": 0xBEC5D908678163F9}


def type_id(file_id, name):
    """Of a struct at the top of a schema file, as `capnp` derives it."""
    return int.from_bytes(hashlib.md5(file_id.to_bytes(8, "little") + name.encode()).digest()[:8], "big") | 1 << 63


GET_STATUS = type_id(FILES["control"], "GetStatus")
APPLY = type_id(FILES["control"], "Apply")


class Struct:
    def __init__(self, data=(), pointers=()):
        self.data, self.pointers = list(data), list(pointers)


def message(root):
    """One framed message of one segment. Pointers: None, text, bytes, a Struct, or a list of equal Structs, of texts or of 64-bit numbers."""
    words = [0]

    waiting = [(0, root)]  # a list and no recursion: some tests nest deeply
    while waiting:
        at, what = waiting.pop()
        start = len(words)
        if isinstance(what, Struct):
            words.extend([*what.data, *[0] * len(what.pointers)])
            words[at] = ((start - at - 1) << 2) & 0xFFFFFFFF | len(what.data) << 32 | len(what.pointers) << 48
            waiting.extend((start + len(what.data) + i, p) for i, p in enumerate(what.pointers) if p is not None)
            continue
        if isinstance(what, list) and isinstance(what[0], str):
            words.extend([0] * len(what))
            words[at] = ((start - at - 1) << 2 | 1) & 0xFFFFFFFF | (len(what) << 3 | 6) << 32
            waiting.extend((start + i, one) for i, one in enumerate(what))
            continue
        if isinstance(what, list):
            width = 1 if isinstance(what[0], int) else len(what[0].data) + len(what[0].pointers)
            kind = 5 if isinstance(what[0], int) else 7
            words[at] = ((start - at - 1) << 2 | 1) & 0xFFFFFFFF | ((len(what) if kind == 5 else len(what) * width) << 3 | kind) << 32
            if kind == 5:
                words.extend(what)
                continue
            words.append(len(what) << 2 | len(what[0].data) << 32 | len(what[0].pointers) << 48)
            for i, one in enumerate(what):
                words.extend([*one.data, *[0] * len(one.pointers)])
                waiting.extend((start + 1 + i * width + len(one.data) + n, p) for n, p in enumerate(one.pointers) if p is not None)
            continue
        content = what.encode() + b"\0" if isinstance(what, str) else what
        words[at] = ((start - at - 1) << 2 | 1) & 0xFFFFFFFF | (len(content) << 3 | 2) << 32
        padded = content + b"\0" * (-len(content) % 8)
        words.extend(struct.unpack(f"<{len(padded) // 8}Q", padded))
    return struct.pack("<II", 0, len(words)) + struct.pack(f"<{len(words)}Q", *words)


class Reader:
    """A struct within the bytes of a segment."""

    def __init__(self, segment, at=None):
        self.segment = segment
        self.start, self.data, self.pointers = at or self.follow(0)

    def follow(self, word):
        (pointer,) = struct.unpack_from("<Q", self.segment, word * 8)
        assert pointer & 3 == 0, "a struct is expected"
        return word + 1 + (pointer & 0xFFFFFFFF) // 4, pointer >> 32 & 0xFFFF, pointer >> 48

    def number(self, format_, offset):
        return struct.unpack_from(format_, self.segment, self.start * 8 + offset)[0] if offset < self.data * 8 else 0

    def content(self, index):
        """Bytes of a Data; of a Text with its NUL."""
        if index >= self.pointers:  # what is empty at the end of a struct may be left out
            return b""
        word = self.start + self.data + index
        (pointer,) = struct.unpack_from("<Q", self.segment, word * 8)
        at = (word + 1) * 8 + (pointer & 0xFFFFFFFF) // 4 * 8
        return self.segment[at : at + (pointer >> 35)] if pointer else b""

    def text(self, index):
        return self.content(index)[:-1].decode()

    def structs(self, index):
        word = self.start + self.data + index
        (pointer,) = struct.unpack_from("<Q", self.segment, word * 8)
        tag = word + 1 + (pointer & 0xFFFFFFFF) // 4
        (shape,) = struct.unpack_from("<Q", self.segment, tag * 8)
        count, data, pointers = (shape & 0xFFFFFFFF) // 4, shape >> 32 & 0xFFFF, shape >> 48
        return [Reader(self.segment, (tag + 1 + i * (data + pointers), data, pointers)) for i in range(count)]


def nested(depth):
    """A struct within a struct within..."""
    made = Struct([0])
    for _ in range(depth):
        made = Struct([0], [made])
    return made


def hello(name, lane, incarnation=None, cluster="falaj", version=WIRE_VERSION, session=7):
    return message(Struct([version | lane << 32, incarnation or time.time_ns(), session], [cluster, name, None, None]))


def envelope(kind, to="control/membership", type_=GET_STATUS, correlation=1, budget_us=10_000_000):
    return message(Struct([kind, type_, correlation, budget_us, 0, 0, 0], [Struct([0, 0, 0], [to]), Struct([0, 0, 9], [None]), None]))


class Closed(Exception):
    pass


class Connection:
    def __init__(self, address, certificate=None, key=None, authority=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # nodes are named by SPIFFE ids
        context.verify_mode = ssl.CERT_REQUIRED if authority else ssl.CERT_NONE
        if authority:
            context.load_verify_locations(authority)
        if certificate:
            context.load_cert_chain(certificate, key)
        host, port = address.rsplit(":", 1)
        plain = socket.create_connection((host, int(port)), timeout=20 * SLOW)
        self.tls = context.wrap_socket(plain)

    def send(self, content):
        try:
            self.tls.sendall(content)
        except (OSError, ssl.SSLError) as e:
            raise Closed(str(e)) from e

    def exactly(self, count):
        content = b""
        while len(content) < count:
            try:
                more = self.tls.recv(count - len(content))
            except TimeoutError:
                raise
            except (OSError, ssl.SSLError) as e:
                raise Closed(str(e)) from e
            if not more:
                raise Closed("end")
            content += more
        return content

    def message(self):
        """The bytes of the next message's only segment."""
        more, words = struct.unpack("<II", self.exactly(8))
        assert more == 0
        return self.exactly(words * 8)

    def closed_by_peer(self):
        try:
            while True:
                self.message()
        except Closed:
            return True

    def close(self):
        self.tls.close()


class Link:
    """The three connections of a peer; heartbeats go on until close()."""

    def __init__(self, address, name, certificate, key, authority, **options):
        incarnation = time.time_ns()
        self.lanes = []
        for lane in (CONTROL, NORMAL, BULK):
            connection = Connection(address, certificate, key, authority)
            connection.send(hello(name, lane, incarnation, **options))
            connection.message()  # its Hello
            self.lanes.append(connection)
        self.over = threading.Event()
        self.writing = threading.Lock()
        self.beating = threading.Thread(target=self.beat)
        self.beating.start()

    def beat(self):
        heart = message(Struct([HEARTBEAT, 0, 1, 0, 0, 0, 0], [None, None, None]))
        while not self.over.wait(0.1):
            try:
                with self.writing:
                    self.lanes[CONTROL].send(heart)
            except Closed:
                return

    def send(self, content, lane=NORMAL):
        with self.writing:
            self.lanes[lane].send(content)

    def next(self, lane=NORMAL):
        """(kind, correlation, body) of the next answer."""
        while True:
            head = Reader(self.lanes[lane].message())
            kind = head.number("<H", 0)
            if kind not in (HEARTBEAT, HEARTBEAT_REPLY):
                return kind, head.number("<Q", 16), self.lanes[lane].message()

    def answer(self, lane=NORMAL):
        kind, _, body = self.next(lane)
        return kind, body

    def ask(self, *parts, lane=NORMAL):
        self.send(b"".join(parts), lane)
        return self.answer(lane)

    def close(self):
        self.over.set()
        self.beating.join()
        for connection in self.lanes:
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Program:
    """One connection for everything, as messages/WIRE.md has it. Heartbeats are answered while it waits in next()."""

    def __init__(self, address, name, certificate, key, authority, incarnation=None):
        self.line = Connection(address, certificate, key, authority)
        self.line.send(hello(name, CONTROL, incarnation, session=0))
        self.line.message()

    def next(self):
        while True:
            head = Reader(self.line.message())
            kind, correlation = head.number("<H", 0), head.number("<Q", 16)
            if kind != HEARTBEAT:
                return kind, correlation, head, self.line.message()
            self.line.send(message(Struct([HEARTBEAT_REPLY, 0, correlation, 0, 0, 0, 0], [None, None, None])))

    def ask(self, actor, type_, body):
        """(kind, body) of the answer."""
        self.line.send(envelope(ASK, actor, type_) + message(body))
        while True:
            kind, _, _, answer = self.next()
            if kind in (REPLY, REFUSAL):
                return kind, answer

    def question(self):
        """The next ask, and the envelope of a reply to it, which is still to be given a type."""
        while True:
            kind, correlation, head, body = self.next()
            if kind == ASK:
                asker = Reader(head.segment, head.follow(head.start + head.data + 1))
                back = Struct([asker.number("<Q", at) for at in (0, 8, 16)], [None])
                return body, lambda type_: message(Struct([REPLY, type_, correlation, 0, 0, 0, 0], [back, None, None]))

    def close(self):
        self.line.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---- certificates ----------------------------------------------------------------------------------------------------------------


def openssl(*args, **options):
    return subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, text=True, **options).stdout


def issue(ca, directory, uri, days_from, days_to):
    """A certificate by the authority in `ca`, valid from and to so many days from now, as FILE.crt and FILE.key in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    key, request, made = directory / "made.key", directory / "made.csr", directory / "made.crt"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", "/O=Falaj/CN=made", "-out", request)
    (directory / "index").write_text("")
    (directory / "config").write_text(
        f"[ca]\ndefault_ca=c\n[c]\ndatabase={directory}/index\nnew_certs_dir={directory}\nrand_serial=yes\ndefault_md=sha256\n"
        f"policy=p\nunique_subject=no\nemail_in_dn=no\n[p]\nO=supplied\nCN=supplied\n[x]\nbasicConstraints=critical,CA:FALSE\n"
        f"keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:{uri}\n"
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    when = [(now + datetime.timedelta(days=d)).strftime("%Y%m%d%H%M%SZ") for d in (days_from, days_to)]
    openssl(
        "ca", "-batch", "-notext", "-config", directory / "config", "-extensions", "x", "-cert", ca / "ca.crt", "-keyfile", ca / "ca.key",
        "-startdate", when[0], "-enddate", when[1], "-in", request, "-out", made,
    )
    return made, key
