"""The command line: completion in a real shell, bearer tokens over HTTPS, what `bench` prints."""

import json
import pathlib
import shutil
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request

import pytest
from conftest import FALAJ, ROOT, eventually, falaj


# ---- completion ----------------------------------------------------------------------------------------------------------------


def completed(*words):
    """What bash offers for the last of these words after `falaj`."""
    script = f"""
      source <('{FALAJ}' completion bash) || exit 1
      COMP_WORDS=(falaj "$@"); COMP_CWORD=$#; COMPREPLY=()
      $(complete -p falaj | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
      printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_bash_completes_the_tree_of_commands():
    listed = subprocess.run(["bash", "-c", f"source <('{FALAJ}' completion bash); complete -p falaj"], capture_output=True, text=True)
    assert "-F _falaj falaj" in listed.stdout
    top = completed("")
    assert {"up", "down", "models", "features", "bench", "completion"} <= set(top)
    assert "launcher" not in top
    assert set(completed("mod")) == {"model", "models"}
    assert {"info", "run", "train", "evaluate", "prune", "distill", "boost", "bench"} <= set(completed("model", ""))
    assert set(completed("bench", "")) == {"actors", "links", "lanes", "overload", "http", "kernels"}
    assert set(completed("models", "")) == {"import", "list", "show", "export", "alias"}
    assert "--alias" in completed("models", "show", "--a")
    assert set(completed("status", "-o", "")) == {"table", "json"}
    assert completed("get", "feat") == ["feature_view"]
    assert "configs" in completed("up", "--dir", "conf")
    assert "README.md" in completed("apply", "-f", "READ")
    assert "README.md" not in completed("up", "--dir", "READ")
    assert completed("features", "get", "--as", "snapshot", "--fi") == ["--field"]


@pytest.mark.parametrize("shell, check", [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "-n"])])
def test_scripts_are_whole(shell, check, tmp_path):
    script = falaj("completion", shell).stdout
    assert "models" in script and "launcher" not in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([*check, tmp_path / "script"], check=True, timeout=60)
    assert falaj("completion", "tcsh", check=False).returncode == 2


# ---- bearer tokens -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(cluster):
    """(cluster, https://HOST:PORT, TLS context) of the cluster's gateway."""
    context = ssl.create_default_context(cafile=str(cluster.dir / "ca/ca.crt"))
    context.check_hostname = False
    config = (cluster.dir / "nodes/control/config.toml").read_text()
    address = next(line.split('"')[1] for line in config.splitlines() if line.startswith("https = "))
    return cluster, f"https://{address}", context


def status_of(gateway, token, path="/v2/models/none"):
    _, address, context = gateway
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), context=context, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_a_bearer_token_opens_the_gateway_until_it_expires(gateway):
    cluster = gateway[0]
    token = cluster.run("token", "--bearer", "--principal", "person/admin").stdout.strip()
    assert len(token) == 64
    assert token not in (cluster.dir / "nodes/control/tokens.toml").read_text()
    assert status_of(gateway, token)[0] == 404  # admin may ask: there is no such model
    assert status_of(gateway, "f" * 64) == (401, '{"error":"the bearer token is not known here"}')
    assert status_of(gateway, None)[0] == 401
    other = cluster.run("token", "--bearer", "--principal", "service/nobody").stdout.strip()
    assert status_of(gateway, other)[0] == 403  # known, but rights.toml gives it nothing
    short = cluster.run("token", "--bearer", "--principal", "person/admin", "--ttl", "1s").stdout.strip()
    eventually("it has expired", lambda: status_of(gateway, short) == (401, '{"error":"the bearer token has expired"}'))
    assert status_of(gateway, token)[0] == 404


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["--bearer"], 2, "--principal"),
        (["--bearer", "--principal", "node/control"], 2, "person/NAME"),
        (["--bearer", "--principal", "service/a", "--ttl", "soon"], 2, "30d"),
        (["--principal", "service/a"], 2, "--bearer"),
    ],
)
def test_bad_bearer_tokens_are_refused(gateway, arguments, code, says):
    cluster = gateway[0]
    file = cluster.dir / "nodes/control/tokens.toml"
    before = file.read_text() if file.exists() else None
    refused = cluster.run("token", *arguments, check=False)
    assert refused.returncode == code and says in refused.stderr, refused.stderr
    assert (file.read_text() if file.exists() else None) == before


def test_a_bearer_token_needs_a_gateway(tmp_path):
    assert falaj("token", "--bearer", "--principal", "service/a", "--dir", tmp_path, check=False).returncode == 5


# ---- bench ---------------------------------------------------------------------------------------------------------------------------

NAMES = {
    "actors": ["ping_pong", "fan_in", "ring", "spawn", "idle_actor_bytes"],
    "links": [
        *(f"link_{what}_{share}" for what in ("rtt", "open") for share in ("p50", "p99", "p999")),
        "link_pipelined",
        "link_one_way",
        "link_large",
        *(f"bare_tls_rtt_{share}" for share in ("p50", "p99", "p999")),
        "bare_tls_large",
    ],
    "http": [f"http_{what}_{connections}" for connections in (1, 16) for what in ("rps", "p50", "p99")],
    "lanes": ["control_p50", "control_p99", "control_flooded_p50", "control_flooded_p99", "flood", "bulk"],
    "overload": [f"overload_{what}" for what in ("peak", "offered", "goodput", "goodput_share", "refused", "late", "other", "p50", "p99", "longest", "bytes_first_half", "bytes_second_half")],
    "kernels": ["matmul_64", "matmul_256", "matmul_1024", "predict_rows_1", "predict_rows_64", "train_rows"],
}

MAY_BE_NONE = [f"overload_{what}" for what in ("goodput", "goodput_share", "refused", "late", "other", "p50", "p99")]


@pytest.mark.parametrize("part", NAMES)
def test_bench_prints_one_object_a_line(part):
    before = set(pathlib.Path(tempfile.gettempdir()).glob("falaj-*"))
    done = falaj("bench", part, "--json", "--seconds", "0.02", "--rounds", "1")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == NAMES[part]
    for line in lines:
        peers = ["erlang", "caf"] if part in ("actors", "links") else []
        assert list(line) == ["name", "unit", "falaj", *peers]
        assert line["falaj"] > 0 or line["name"] in MAY_BE_NONE, line
        assert all(line[peer] is None for peer in peers), line
    assert "bench: " in done.stderr
    assert set(pathlib.Path(tempfile.gettempdir()).glob("falaj-bench*")) <= before


def test_a_pinned_bench_keeps_its_processes_apart():
    done = falaj("bench", "links", "--pin", "--json", "--seconds", "0.02", "--rounds", "1")
    assert json.loads(done.stdout.splitlines()[0])["falaj"] > 0


def test_bench_asks_a_running_cluster_for_a_model_by_name(cluster):
    assert "--model" in cluster.run("bench", "http", check=False).stderr
    assert cluster.run("bench", "http", "--model", "none", check=False).returncode == 5
