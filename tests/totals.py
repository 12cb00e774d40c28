#!/usr/bin/env python3
"""Adds up JUnit files: one line for each, the failed tests by name, and the totals alone on the last line."""
import pathlib
import sys
import xml.etree.ElementTree as xml


def count(path):
    passed, failed, skipped = 0, [], 0
    for case in xml.parse(path).getroot().iter("testcase"):
        name = ".".join(filter(None, [case.get("classname"), case.get("name")]))
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            failed.append(name)
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main():
    passed, failed, skipped = 0, [], 0
    for path in sorted(map(pathlib.Path, sys.argv[1:])):
        try:
            p, f, s = count(path)
        except (xml.ParseError, OSError) as e:
            p, f, s = 0, [f"{path}: {e}"], 0
        print(f"{path.stem:<14} {p:5} passed {len(f):4} failed {s:4} skipped")
        passed, failed, skipped = passed + p, failed + f, skipped + s
    for name in failed:
        print(f"FAILED {name}")
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed or passed == 0 else 0


sys.exit(main())
