#!/usr/bin/env python3
"""The house rules that no compiler checks. Run by ctest and first of all by `./run test`; takes about a second.

Each rule is a function that yields complaints "path:line: what; remedy". The tables below are the truth about who may
include whom and what lives where; ARCHITECTURE.md explains them.
"""
import collections
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# ---- tables ------------------------------------------------------------------------------------------------------------------

# Box: (folder, boxes it may include). A file belongs to the box with the longest matching prefix.
BOXES = {
    "base": ("runtime/base/", []),
    "messages": ("messages/", ["base"]),
    "config": ("runtime/config", ["base", "messages"]),
    "net": ("runtime/net/", ["base", "messages", "config"]),
    "kernels": ("kernels/", ["base"]),
    "storage": ("storage/", ["base", "messages", "config"]),
    "host": ("runtime/host/", ["base", "messages"]),
    "cluster": ("runtime/cluster/", ["base", "messages", "config", "net", "storage", "host"]),
    "actors": ("actors/", ["base", "messages", "config", "net", "kernels", "storage", "host", "cluster"]),
    "simulations": ("simulations/", ["base", "messages", "config", "net", "kernels", "storage", "host", "cluster", "actors"]),
    "nodes": ("nodes/", ["base", "messages", "config", "net", "kernels", "storage", "host", "cluster", "actors", "simulations"]),
    "tests": ("tests/", ["base", "messages", "config", "net", "kernels", "storage", "host", "cluster", "actors", "simulations", "nodes"]),
}

# Third-party include prefix: where it may stand (first matching prefix wins; patterns are path prefixes).
THIRD_PARTY = [
    ("caf/", ["runtime/host/caf_host.cpp", "tests/peers/"]),
    ("boost/", ["runtime/net/", "tests/net/", "tests/fuzz/"]),
    ("openssl/", ["runtime/net/", "storage/seal.cpp", "storage/digest.cpp", "storage/audit_log.cpp", "storage/audit_signer.cpp", "tests/net/"]),
    ("capnp/", ["messages/", "runtime/config", "runtime/net/", "runtime/host/", "runtime/cluster/", "storage/", "actors/", "simulations/", "nodes/", "tests/"]),
    ("kj/", ["messages/", "runtime/config", "runtime/net/", "runtime/host/", "runtime/cluster/", "storage/", "actors/", "simulations/", "nodes/", "tests/"]),
    ("lmdb.h", ["storage/lmdb_kv.cpp"]),
    ("oneapi/", ["kernels/cpu/"]),
    ("dnnl", ["kernels/cpu/"]),
    ("onnx/", ["kernels/onnx/", "tests/kernels/"]),
    ("google/protobuf/", ["kernels/onnx/", "tests/kernels/"]),
    ("nccl.h", ["kernels/cuda/", "kernels/collective/nccl."]),
    ("cuda", ["kernels/cuda/", "kernels/collective/nccl."]),
    ("cublas", ["kernels/cuda/"]),
    ("cudnn", ["kernels/cuda/"]),
    ("spdlog/fmt/", ["runtime/base/format.hpp", "runtime/base/log.cpp"]),
    ("fmt/", ["runtime/base/format.hpp"]),
    ("spdlog/", ["runtime/base/log."]),
    ("toml++/", ["runtime/config.cpp"]),
    ("CLI/", ["nodes/"]),
    ("simdjson.h", ["runtime/net/http/"]),
    ("zlib.h", ["runtime/net/http/", "kernels/npz.cpp", "tests/net/", "tests/kernels/npz_test.cpp"]),
    ("zstd", ["storage/artifact_store.cpp"]),
    ("gtest/", ["tests/"]),
    ("gmock/", ["tests/"]),
    ("benchmark/", ["tests/"]),
]
SYSTEM_FOLDERS = {"sys", "netinet", "arpa", "net", "linux", "asm", "experimental", "sanitizer"}

# Call: (pattern, files where it may stand, remedy).
BANNED = [
    ("a real clock", r"\b(system_clock|steady_clock|high_resolution_clock)\s*::\s*now|\bclock_gettime\s*\(|\bgettimeofday\s*\(|\bstd::time\s*\(|(?<![\w.:>])time\s*\((nullptr|NULL|0|&)",
     ["runtime/base/clock.cpp"], "take a Clock&, or ctx.now()"),
    ("sleeping", r"\bsleep_(for|until)\b|\b(u|nano)sleep\s*\(|(?<![\w.>:])sleep\s*\(\s*\d|(?<!\w)::sleep\s*\(",
     ["runtime/base/thread."], "use ctx.sleep() or ctx.after(); in a test poll a condition with a deadline"),
    ("a raw thread", r"\bstd::(j?thread\b(?!::(hardware_concurrency|id))|async\b)|\bpthread_create\b",
     ["runtime/base/thread."], "use Thread, BlockingPool or TimerThread of runtime/base/thread.hpp"),
    ("a random device", r"\brandom_device\b|\bstd::mt19937|\bs?rand\s*\(|\bgetrandom\s*\(",
     ["runtime/base/random."], "take a Random&; production seeds come from entropy_seed()"),
    ("the environment", r"\b(secure_)?getenv\s*\(", ["nodes/", "tests/"], "make it a field of the configuration"),
    ("a capture of everything by value", r"\[=[\],]", [], "name what is captured"),
]
NO_MUTEX = ["actors/", "simulations/"]

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
BASELINE = ROOT / "tests/tidy_baseline.txt"

CPP = {".cpp", ".hpp", ".cu", ".cuh"}
TEXT = CPP | {".py", ".capnp", ".md", ".txt", ".toml", ".json", ".sh", ".cmake", ""}


# ---- helpers -----------------------------------------------------------------------------------------------------------------

def tracked():
    """Paths under the root: what git tracks or would track; in an unpacked archive, everything but build/."""
    try:
        out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return sorted(p for p in set(out.splitlines()) if (ROOT / p).is_file())
    except (OSError, subprocess.CalledProcessError):
        every = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
        return sorted(str(p) for p in every if p.parts[0] not in ("build", ".git", ".cache"))


class Source:
    def __init__(self, path):
        self.path = path
        self.text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        self._code = None

    @property
    def code(self):
        """The text with comments, strings and characters blanked, line breaks kept."""
        if self._code is None:
            pattern = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'', re.S)
            self._code = pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), self.text)
        return self._code

    def line_of(self, offset):
        return self.text.count("\n", 0, offset) + 1


def starts_with_any(path, prefixes):
    return any(path.startswith(prefix) for prefix in prefixes)


def box_of(path):
    best = ""
    box = None
    for name, (prefix, _) in BOXES.items():
        if path.startswith(prefix) and len(prefix) > len(best):
            best, box = prefix, name
    return box


# ---- rules -------------------------------------------------------------------------------------------------------------------

def rule_includes(files, sources):
    """Includes go down the levels only; third-party headers stay in their files."""
    known = set(files)
    for source in sources:
        box = box_of(source.path)
        for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', source.text, re.M):
            place = f"{source.path}:{source.line_of(match.start())}"
            target = match.group(2)
            generated = re.sub(r"\.capnp\.h$", ".capnp", target)
            if match.group(1) == '"':
                if target not in known and generated not in known:
                    yield f"{place}: \"{target}\" is no file of this repository; write the path from its root"
                    continue
                other = box_of(target)
                if box and other != box and other not in BOXES[box][1]:
                    yield f"{place}: {box} may not include {other} ({target}); it may see: {', '.join(BOXES[box][1]) or 'nothing'}"
                continue
            for prefix, allowed in THIRD_PARTY:
                if target.startswith(prefix):
                    if not starts_with_any(source.path, allowed):
                        yield f"{place}: <{target}> lives only in {', '.join(allowed)}"
                    break
            else:
                if "/" in target and target.split("/")[0] not in SYSTEM_FOLDERS:
                    yield f"{place}: <{target}> is no known third party; add it to THIRD_PARTY in tests/tidy.py with its one place"


def rule_banned_calls(files, sources):
    """Time, sleep, threads, randomness and the environment are arguments."""
    for source in sources:
        for name, pattern, allowed, remedy in BANNED:
            if starts_with_any(source.path, allowed):
                continue
            for match in re.finditer(pattern, source.code):
                yield f"{source.path}:{source.line_of(match.start())}: {name}; {remedy}"
        if starts_with_any(source.path, NO_MUTEX):
            for match in re.finditer(r"\bstd::(recursive_|shared_)?mutex\b", source.code):
                yield f"{source.path}:{source.line_of(match.start())}: a mutex; actors share nothing, send a message"


def rule_unordered_iteration(files, sources):
    """What actors and simulations do must not depend on hash order."""
    for source in sources:
        if not starts_with_any(source.path, ["actors/", "simulations/"]):
            continue
        names = re.findall(r"\bunordered_(?:map|set)\s*<.*>\s+(\w+)\s*[;{=]", source.code)
        for name in set(names):
            for match in re.finditer(r"for\s*\([^;()]*:\s*(?:this->)?" + re.escape(name) + r"\s*\)", source.code):
                yield f"{source.path}:{source.line_of(match.start())}: iterates over the unordered '{name}'; use std::map or sort first"


def rule_python_sleeps(files, sources):
    """Tests wait for conditions: only the helpers of tests/ that poll with a deadline may sleep between two looks."""
    for path in files:
        if path.endswith(".py") and pathlib.Path(path).name.startswith("test_"):
            for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
                if re.search(r"\btime\.sleep\s*\(|\bfrom time import .*sleep", line):
                    yield f"{path}:{number}: sleeps; use the polling helper of the test folder"


def rule_schemas(files, sources):
    """Each schema id is used once, and each schema says at its head what it is for."""
    seen = {}
    for path in files:
        if not path.endswith(".capnp"):
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        for match in re.finditer(r"@(0x[0-9a-f]+)", re.sub(r"#[^\n]*", "", text)):
            number = int(match.group(1), 16)
            if number < 1 << 63:
                yield f"{path}: id {match.group(1)} lacks its high bit; make one with `capnp id`"
            if number in seen:
                yield f"{path}: id {match.group(1)} is already used by {seen[number]}; make one with `capnp id`"
            seen[number] = path
        if not re.match(r"@0x[0-9a-f]{16};\n#", text):
            yield f"{path}:1: begin with the id and then a comment: who talks to whom, ordering, ownership, what a lost connection means"


def rule_folder_table(files, sources):
    """The folder table of ARCHITECTURE.md lists the folders there are."""
    page = ROOT / "ARCHITECTURE.md"
    if not page.exists():
        yield "ARCHITECTURE.md: missing"
        return
    listed = set(re.findall(r"^\| `([\w./-]+/)` \|", page.read_text(encoding="utf-8"), re.M))
    there = set()
    for path in files:
        parts = pathlib.PurePath(path).parts[:-1]
        if not parts or parts[0].startswith("."):
            continue
        depth = 2 if parts[0] in ("runtime", "kernels", "actors") and len(parts) > 1 else 1
        there.add("/".join(parts[:depth]) + "/")
        there.add(parts[0] + "/")
    there -= {"runtime/"}
    for folder in sorted(there - listed):
        yield f"ARCHITECTURE.md: the folder table lacks `{folder}`"
    for folder in sorted(listed - there):
        yield f"ARCHITECTURE.md: the folder table names `{folder}`, which does not exist"


def rule_named_files(files, sources):
    """A file that ARCHITECTURE.md or README.md names exists."""
    for page in ("ARCHITECTURE.md", "README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for match in re.finditer(r"`((?:[\w-]+/)+[\w.-]+\.(?:hpp|cpp|capnp|py|md|toml|txt|sh))`", text):
            if not (ROOT / match.group(1)).exists():
                yield f"{page}:{text.count(chr(10), 0, match.start()) + 1}: names `{match.group(1)}`, which does not exist"


def functions(source):
    """(name, first line, lines) of each function definition, by brace matching."""
    code = re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda m: re.sub(r"[^\n]", " ", m.group()), source.code, flags=re.M)
    scopes = []  # per open brace: (is it a namespace or a type, is a function open here, start, name)
    head_start = 0
    for match in re.finditer(r"[{};]", code):
        char, at = match.group(), match.start()
        if char == ";":
            if code.count("(", head_start, at) <= code.count(")", head_start, at):
                head_start = at + 1
        elif char == "{":
            head = code[head_start:at].strip()
            head = re.sub(r"^(template\s*<[^{}]*?>\s*(requires[^{}]*?)?\n)+", "", head)
            container = bool(re.match(r"(inline\s+)?namespace\b|extern\b", head)) or bool(
                re.search(r"\b(class|struct|union|enum)\b[^()]*$", head))
            inside = any(not c for c, *_ in scopes)
            name = re.search(r"([\w:~]+|operator[^\s(]+)\s*\(", head)
            is_function = not inside and not container and name is not None and not re.search(r"=\s*$", head)
            start = head_start + len(code[head_start:at]) - len(code[head_start:at].lstrip())
            scopes.append((container, is_function, start, name.group(1) if name else ""))
            head_start = at + 1
        else:
            if scopes:
                _, is_function, start, name = scopes.pop()
                if is_function:
                    first, last = source.line_of(start), source.line_of(at)
                    yield name, first, last - first + 1
            head_start = at + 1


def measure(sources):
    sizes = {}
    for source in sources:
        lines = source.text.count("\n")
        if lines > FILE_LINES_MAX:
            sizes[source.path] = lines
        for name, _, length in functions(source):
            if length > FUNCTION_LINES_MAX:
                key = f"{source.path}:{name}"
                sizes[key] = max(sizes.get(key, 0), length)
    return sizes


def rule_lengths(files, sources):
    """Files over 600 lines and functions over 70 may not grow beyond tests/tidy_baseline.txt."""
    baseline = {}
    if BASELINE.exists():
        for line in BASELINE.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                size, key = line.split(maxsplit=1)
                baseline[key] = int(size)
    for key, size in sorted(measure(sources).items()):
        limit = FILE_LINES_MAX if key in {s.path for s in sources} else FUNCTION_LINES_MAX
        if size > baseline.get(key, limit):
            yield f"{key}: {size} lines, allowed {baseline.get(key, limit)}; split it (tests/tidy_baseline.txt holds what is known)"


def rule_machine_paths(files, sources):
    """Nothing names a machine on which somebody once worked."""
    pattern = re.compile("/(?:" + "|".join(["work", "home", "root", "Users"]) + r")/\w|/tmp/fala" + "j/")
    for path in files:
        if pathlib.Path(path).suffix not in TEXT or path.endswith(".csv") or path == "LICENSE":
            continue
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                yield f"{path}:{number}: a path of one machine"


def rule_headers(files, sources):
    """Each header says what it is and is safe to include twice."""
    for source in sources:
        if source.path.endswith(".hpp"):
            if not source.text.startswith("//"):
                yield f"{source.path}:1: begin with a comment: what it is, what it is not, ways to get hurt"
            if "#pragma once" not in source.text:
                yield f"{source.path}:1: no #pragma once"


RULES = [rule_includes, rule_banned_calls, rule_unordered_iteration, rule_python_sleeps, rule_schemas, rule_folder_table, rule_named_files, rule_lengths,
         rule_machine_paths, rule_headers]


def self_test():
    """The rules find what they are for: a tidy check that never complains is worth nothing."""
    def source(path, text):
        s = Source.__new__(Source)
        s.path, s.text, s._code = path, text, None
        return s

    bad = source("kernels/x.cpp", '#include "messages/message.hpp"\n#include <lmdb.h>\n#include <strange/lib.h>\nauto t = std::chrono::steady_clock::now();\nstd::thread t;\nauto f = [=] {};\n')
    found = list(rule_includes(["messages/message.hpp"], [bad])) + list(rule_banned_calls([], [bad]))
    assert len(found) == 6, found
    good = source("actors/x.cpp", 'auto s = "std::thread sleep(1)";  // steady_clock::now()\nco_await ctx.sleep(5ms);\n')
    assert not list(rule_banned_calls([], [good]))
    loop = source("actors/y.cpp", "std::unordered_map<int, std::vector<int>> seen_;\nvoid f() { for (auto& [a, b] : seen_) g(a); }\n")
    assert len(list(rule_unordered_iteration([], [loop]))) == 1
    long = source("actors/z.cpp", "namespace a {\nclass B {\n  int c(int d) const {\n" + "    if (d) {\n    }\n" * 40 + "  }\n};\n}\n")
    assert measure([long]) == {"actors/z.cpp:c": 82}, measure([long])


def main():
    files = tracked()
    sources = [Source(p) for p in files if pathlib.Path(p).suffix in CPP]
    if "--baseline" in sys.argv:
        known = sorted(measure(sources).items())
        BASELINE.write_text("# Lines of what is longer than tests/tidy.py allows: never more than today. `python3 tests/tidy.py --baseline` writes it anew.\n" +
                            "".join(f"{size} {key}\n" for key, size in known), encoding="utf-8")
    self_test()
    complaints = collections.Counter()
    for rule in RULES:
        for complaint in rule(files, sources):
            print(f"{complaint}   [{rule.__name__.removeprefix('rule_')}]")
            complaints[rule.__name__] += 1
    print(f"tidy: {len(files)} files, {sum(complaints.values())} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
