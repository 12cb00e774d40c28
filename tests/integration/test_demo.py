"""The demo as a newcomer runs it: it succeeds, its table is true to what it shows, and it leaves nothing behind."""

import json

from conftest import SLOW, falaj, processes_of


def test_demo(tmp_path):
    table = tmp_path / "table.json"
    directory = tmp_path / "cluster"
    shown = falaj("demo", "--dir", directory, "--json", table, timeout=120)
    figures = json.loads(table.read_text())
    assert figures["rows"] == 1000
    assert figures["http_requests"] == 10_000 and figures["http_failed"] == 0
    assert figures["actor_requests"] == 10_000 and figures["actor_failed"] == 0
    assert figures["recoveries"] >= 2
    assert 0.6 < figures["auc"] < 0.9 and 0.6 < figures["accuracy"] < 0.9
    for name in ("train_s", "http_rps", "http_p50_ms", "http_p99_ms", "actor_p50_us"):
        assert figures[name] > 0, name
    assert "SIGKILL" in shown.stdout + shown.stderr
    assert not processes_of(directory)
    assert figures["train_s"] < 60 * SLOW
