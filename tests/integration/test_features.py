"""Feature views by the CLI: declare, ingest, read for a purpose; bad input; kills of shards and control lose no acknowledged row."""

import pytest
from conftest import ROOT, SLOW, eventually

EXAMPLE = ROOT / "configs/examples/credit.toml"
DATA = ROOT / "configs/examples/data/german_credit.csv"
PURPOSE = ("--purpose", "credit-scoring")


@pytest.fixture(scope="module")
def ingested(cluster, tmp_path_factory):
    view = tmp_path_factory.mktemp("view") / "view.toml"
    text = EXAMPLE.read_text()
    view.write_text(text[: text.index("# Ten-fold")])  # the feature view alone
    cluster.run("apply", "-f", view)
    cluster.run("features", "ingest", "applicants", DATA)
    return cluster


def count(cluster):
    return int(cluster.run("features", "count", "applicants").stdout)


def test_rows_are_there(ingested):
    assert count(ingested) == 1000
    row = ingested.json("features", "get", "applicants", "A0001", *PURPOSE)
    fields = [f["name"] for f in row["fields"]]
    values = row["rows"][0]["values"]
    assert values[fields.index("credit_amount")] == {"float32": 1169}
    assert values[fields.index("purpose")] == {"string": "radio/tv"}


def test_same_rows_same_snapshot(ingested):
    first = ingested.json("features", "snapshot", "applicants", *PURPOSE)
    second = ingested.json("features", "snapshot", "applicants", *PURPOSE)
    assert first["rows"] == "1000"
    assert first["digest"] == second["digest"]


def test_a_read_without_the_purpose_is_refused_and_audited(ingested):
    for purpose in ([], ["--purpose", "marketing"]):
        refused = ingested.run("features", "get", "applicants", "A0001", *purpose, check=False)
        assert refused.returncode == 4, refused
        assert "purpose" in refused.stderr
    ingested.audited("refused", "person/admin", "names no purpose")
    ingested.audited("refused", "person/admin", "marketing")
    ingested.run("audit", "verify")


def test_a_principal_without_the_verb_is_refused(ingested):
    ingested.run("principal", "service/nobody")
    refused = ingested.run("features", "get", "applicants", "A0001", "--as", "nobody", *PURPOSE, check=False)
    assert refused.returncode == 4, refused
    ingested.audited("refused", "service/nobody")


@pytest.mark.parametrize(
    "change, place",
    [
        (lambda rows: rows[:5] + [rows[5] + ",surplus"] + rows[6:], ":6:"),
        (lambda rows: rows[:3] + [rows[3].replace(",", ",x", 2)] + rows[4:], ":4:"),
        (lambda rows: [rows[0].replace("duration", "length")] + rows[1:], "duration"),
    ],
)
def test_bad_csv_names_the_place_and_changes_nothing(ingested, tmp_path, change, place):
    before = count(ingested)
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join(change(DATA.read_text().splitlines())) + "\n")
    refused = ingested.run("features", "ingest", "applicants", bad, check=False)
    assert refused.returncode == 2, refused
    assert "bad.csv" in refused.stderr and place in refused.stderr
    assert count(ingested) == before


def test_unknown_key_in_toml_names_line_and_nearest_key(ingested, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text('[[job]]\nname = "x"\nview = "applicants"\nlabel = "class"\npurpose = "credit-scoring"\nepoch = 3\n')
    refused = ingested.run("apply", "-f", bad, check=False)
    assert refused.returncode == 2
    assert "bad.toml:6" in refused.stderr and "epochs" in refused.stderr


def test_kills_lose_no_acknowledged_row(ingested, tmp_path, seed):
    header, *rows = DATA.read_text().splitlines()
    total = 1000
    for turn in range(10 if SLOW == 1 else 2):
        fresh = tmp_path / f"fresh{turn}.csv"
        fresh.write_text("\n".join([header] + [f"K{turn}-{row}" for row in rows[:50]]) + "\n")
        ingested.run("features", "ingest", "applicants", fresh)
        total += 50
        ingested.kill(seed.choice(["features-1", "features-2", "control"]))
        eventually("all acknowledged rows are there", lambda: count(ingested) == total)
    ingested.run("audit", "verify")
