#!/usr/bin/env python3
"""clang-tidy over many files: python3 tests/clang_tidy.py BUILD_FOLDER JOBS FILE...

clang-tidy takes seconds for each file, and most files have not changed since they were last found clean. What was clean is
remembered in the user's cache folder under a hash of the preprocessed text, the flags and .clang-tidy.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "falaj" / "clang-tidy"


def fingerprint(entry, rules):
    """None when the file does not preprocess: clang-tidy will say why."""
    words = shlex.split(entry["command"])
    words = words[next(i for i, w in enumerate(words) if "clang++" in w):]
    command = [w for i, w in enumerate(words) if w not in ("-c", "-MD") and w not in ("-o", "-MT", "-MF") and words[i - 1] not in ("-o", "-MT", "-MF")]
    result = subprocess.run(command + ["-E", "-P", "-Wno-everything"], cwd=entry["directory"], capture_output=True)
    if result.returncode != 0:
        return None
    flags = " ".join(w.replace(str(ROOT), "") for w in command)
    return hashlib.sha256(rules + flags.encode() + result.stdout).hexdigest()


def check(folder, entry, rules):
    key = fingerprint(entry, rules)
    if key and (CACHE / key).exists():
        return entry["file"], True, "remembered"
    result = subprocess.run(["clang-tidy-19", "-quiet", "-p", folder, entry["file"]], capture_output=True, text=True)
    if result.returncode == 0 and key:
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / key).touch()
    return entry["file"], result.returncode == 0, result.stdout + ("" if result.returncode == 0 else result.stderr)


def main():
    folder, jobs, wanted = sys.argv[1], int(sys.argv[2]), {str((ROOT / f).resolve()) for f in sys.argv[3:]}
    rules = (ROOT / ".clang-tidy").read_bytes()
    entries = [e for e in json.loads((pathlib.Path(folder) / "compile_commands.json").read_text()) if e["file"] in wanted]
    bad = remembered = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(check, folder, e, rules) for e in entries]):
            file, clean, text = future.result()
            remembered += text == "remembered"
            if not clean:
                bad += 1
                print(f"--- {os.path.relpath(file, ROOT)}\n{text}", flush=True)
    print(f"clang-tidy: {len(entries)} files, {remembered} of them unchanged since they were clean, {bad} with complaints")
    return 1 if bad or not entries else 0


sys.exit(main())
