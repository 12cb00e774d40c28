"""Where a cluster lives: a disk that fills up, a directory that somebody else uses, ports that are taken, stores of a newer falaj."""

import os
import signal
import socket
import struct
import subprocess

import onnx
import pytest
from conftest import FALAJ, ROOT, SLOW, Cluster, eventually, falaj, processes_of
from onnx import TensorProto, helper

EXAMPLE = ROOT / "configs/examples/credit.toml"
DATA = ROOT / "configs/examples/data/german_credit.csv"
PURPOSE = ("--purpose", "credit-scoring")


def node(directory):
    """A node that is expected to end by itself."""
    return subprocess.run([FALAJ, "node", "--dir", str(directory)], capture_output=True, text=True, timeout=30 * SLOW)


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def rows(file, name, count):
    header, *lines = DATA.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{name}{i}-{lines[i % len(lines)]}" for i in range(count))]) + "\n")
    return file


# ---- a full disk -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        eventually("no process uses the disk", lambda: not processes_of(place))
        subprocess.run(["umount", place], check=True)


def fill(place):
    """Takes all that is left; gives back what must be removed for room."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as f:
        try:
            while True:
                f.write(b"x" * 65536)
        except OSError:
            pass
        try:
            while True:
                f.write(b"x")
        except OSError:
            pass
    return filler


def test_a_full_disk_refuses_and_loses_nothing_that_was_acknowledged(small_disk, tmp_path):
    c = Cluster(small_disk / "c").up()
    try:
        view = tmp_path / "view.toml"
        view.write_text(EXAMPLE.read_text().split("# Ten-fold")[0])
        c.run("apply", "-f", view)
        c.run("features", "ingest", "applicants", DATA)
        filler = fill(small_disk)

        # Pages that were freed may take a few writes; then each says so, and what was there is there.
        written = 1000
        for turn in range(200):
            done = c.run("features", "ingest", "applicants", rows(tmp_path / "more.csv", f"M{turn}-", 500), check=False)
            if done.returncode != 0:
                break
            written += 500
        assert done.returncode == 9 and "free some space" in done.stderr, done
        deployment = tmp_path / "deployment.toml"
        for turn in range(200):  # each one new: what is there already needs no room
            deployment.write_text(f'[deployment]\nname = "d{turn}"\nmodel = "m"\n')
            done = c.run("apply", "-f", deployment, check=False)
            if done.returncode != 0:
                break
        assert done.returncode == 9 and "free some space" in done.stderr, done
        for name in ("features-1", "features-2", "control"):
            os.kill(c.pid(name), signal.SIGKILL)
        filler.unlink()
        eventually("all acknowledged rows are there", lambda: int(c.run("features", "count", "applicants").stdout) >= written, timeout=60)
        assert c.json("features", "get", "applicants", "A0001", *PURPOSE)["rows"][0]["status"] == "present"
        c.run("features", "ingest", "applicants", rows(tmp_path / "after.csv", "after", 500))
        c.run("apply", "-f", deployment)
        c.run("audit", "verify")
        for name in ("features-1", "features-2", "control"):
            eventually(f"cluster.json knows the new {name}", lambda name=name: c.pid(name) in processes_of(c.dir / "nodes" / name))
    finally:
        c.down()


def test_no_cluster_is_made_on_a_full_disk(small_disk):
    filler = fill(small_disk)
    for command in ("init", "up"):
        done = falaj(command, "--dir", small_disk / "c", check=False)
        assert done.returncode == 9 and "No space left" in done.stderr, done
    filler.unlink()
    falaj("init", "--dir", small_disk / "c")


# ---- directories and ports -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """A cluster's directory with a control node that does not run."""
    http, https = free_ports(2)
    falaj("init", "--dir", tmp_path / "c", "--listen", "127.0.0.1:0", "--http", f"127.0.0.1:{http}", "--https", f"127.0.0.1:{https}")
    return tmp_path / "c"


def set_key(directory, key, value):
    config = directory / "nodes/control/config.toml"
    config.write_text("".join(f'{key} = "{value}"\n' if line.startswith(f"{key} ") else line for line in config.read_text().splitlines(True)))


def test_two_clusters_on_one_directory_are_refused(tmp_path):
    c = Cluster(tmp_path / "c").up()
    try:
        before = c.file
        for command, word in (("up", "runs from"), ("init", "holds a cluster already")):
            done = falaj(command, "--dir", c.dir, check=False)
            assert done.returncode == 6 and word in done.stderr, done
        done = node(c.dir / "nodes/control")
        assert done.returncode == 6 and "in use by process" in done.stderr, done
        assert c.file == before and len(c.json("status")["view"]["nodes"]) == 7
    finally:
        c.down()


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for command in ("init", "up"):
        done = falaj(command, "--dir", tmp_path, check=False)
        assert done.returncode == 6 and "not empty" in done.stderr, done
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
    done = node(tmp_path)
    assert done.returncode != 0 and "config.toml" in done.stderr, done


@pytest.mark.parametrize("key", ["listen", "http", "https"])
def test_a_port_in_use_is_named(made, key):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        set_key(made, key, address)
        done = node(made / "nodes/control")
        assert done.returncode == 6 and address in done.stderr and "in use; choose another port" in done.stderr, done
    assert not (made / "cluster.json").exists()


@pytest.mark.parametrize("address, word", [("127.0.0.1", "host:port"), ("127.0.0.1:99999", "host:port"), ("10.255.255.1:0", "cannot listen"), ("nowhere:1", "give an IP address")])
def test_an_address_that_cannot_be_listened_on_is_named(made, address, word):
    set_key(made, "listen", address)
    done = node(made / "nodes/control")
    assert done.returncode in (1, 2) and address.split(":")[0] in done.stderr and word in done.stderr, done


@pytest.mark.parametrize(
    "file, line, word", [("config.toml", 'lisen = "127.0.0.1:1"', "unknown key 'lisen'; did you mean 'listen'?"), ("rights.toml", "verb = 5", "did you mean 'verbs'?")]
)
def test_a_nodes_own_files_are_read_as_strictly(made, file, line, word):
    path = made / "nodes/control" / file
    lines = path.read_text().rstrip().splitlines() + [line]
    path.write_text("\n".join(lines) + "\n")
    done = node(made / "nodes/control")
    assert done.returncode == 2 and f"{path}:{len(lines)}:1: " in done.stderr and word in done.stderr, done


def test_clear_text_is_refused_off_loopback(made):
    set_key(made, "http", f"0.0.0.0:{free_ports(1)[0]}")
    done = node(made / "nodes/control")
    assert done.returncode == 2 and "loopback" in done.stderr, done


# ---- newer formats --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def used(made, tmp_path):
    """The directory of a node that has run: it holds a store of each kind, and a model."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "relu.onnx")
    with Node(made / "nodes/control"):
        eventually("it answers", lambda: falaj("status", "--dir", made, check=False).returncode == 0)
        falaj("models", "import", tmp_path / "relu.onnx", "--name", "m", "--dir", made)
    return made / "nodes/control"


class Node:
    def __init__(self, directory):
        self.process = subprocess.Popen([FALAJ, "node", "--dir", str(directory)], stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(30 * SLOW) == 0


@pytest.mark.parametrize("store", ["store/control", "store/spool", "artifacts", "audit"])
def test_a_store_of_a_newer_format_is_refused_with_the_remedy(used, store):
    form = used / store / "FORMAT"
    kind, _, version = form.read_text().strip().rpartition(" ")
    form.write_text(f"{kind} {int(version) + 1}\n")
    for done in (node(used), falaj("store", "check", used / store, check=False)):
        assert done.returncode == 1 and "made by a newer falaj; upgrade this node" in done.stderr and store in done.stderr, done
    form.write_text(f"{kind} {version}\n")
    with Node(used):
        eventually("nothing was changed", lambda: "m " in falaj("models", "list", "--dir", used.parents[1], check=False).stdout)


def crc32c(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("which", ["manifests", "chunks"])
def test_a_manifest_of_a_newer_format_is_refused_with_the_remedy(used, tmp_path, which):
    file = next(f for f in (used / "artifacts" / which).rglob("*") if f.is_file())
    content = bytearray(file.read_bytes())
    struct.pack_into("<H", content, 4, 2)
    struct.pack_into("<I", content, 6, crc32c(content[:6] + content[10:]))
    file.chmod(0o600)
    file.write_bytes(content)
    with Node(used):
        cluster = used.parents[1]
        eventually("it answers", lambda: falaj("status", "--dir", cluster, check=False).returncode == 0)
        done = falaj("models", "export", "m", tmp_path / "m.onnx", "--version", 1, "--dir", cluster, check=False)
        assert done.returncode != 0 and "made by a newer falaj; upgrade this node" in done.stderr, done
        assert not (tmp_path / "m.onnx").exists()
