"""falaj trace, as a file that Perfetto reads: what a request did on its way is found in it, by its W3C trace."""

import http.client
import json
import threading

from conftest import SLOW, deploy_echo, eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_found_on_its_way_over_the_nodes(cluster, tmp_path):
    deploy_echo(cluster, tmp_path, 1)
    stop = threading.Event()
    statuses = []

    def ask():
        connection = http.client.HTTPConnection(cluster.http, timeout=60 * SLOW)
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]})
        while not stop.is_set():
            connection.request("POST", "/v2/models/echo/infer", body, {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        eventually("requests are answered", lambda: statuses)
        done = cluster.run("trace", "--seconds", "1", "--out", tmp_path / "trace.json")
    finally:
        stop.set()
        thread.join(60 * SLOW)
    assert set(statuses) == {200}
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    nodes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    actors = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert set(nodes.values()) == {n["name"] for n in cluster.file["nodes"]}
    assert f"{len(slices)} messages on {len(nodes)} nodes" in done.stdout
    assert all(e["dur"] >= 0 and e["ts"] >= 0 and e["args"]["waited_us"] >= 0 and (e["pid"], e["tid"]) in actors for e in slices)
    of_request = [e for e in slices if e["args"].get("trace") == TRACE]
    passed = {(nodes[e["pid"]].split("-")[0], actors[e["pid"], e["tid"]].split("/")[1]) for e in of_request if e["name"] == "Infer"}
    assert {("control", "router"), ("serving", "replica")} <= passed, passed
    arrows = [e["ph"] for e in events if e.get("id") == TRACE]
    assert arrows.count("s") == 1 and arrows.count("f") == 1 and len(arrows) == len(of_request)
    # Recording is over everywhere: nothing is left, and nothing is added.
    for name in nodes.values():
        left = json.loads(cluster.run("call", f"node/agent/{name}", "GetSpans", "{}", "--node", name).stdout)
        assert not left.get("spans"), name
    cluster.audited("cluster.trace", "person/admin")


def test_who_may_not_trace_and_what_is_refused(cluster, tmp_path):
    cluster.run("principal", "person/visitor")
    assert cluster.run("trace", "--as", "visitor", "--out", tmp_path / "t.json", check=False).returncode == 4
    unknown = cluster.run("trace", "--node", "nowhere", "--out", tmp_path / "t.json", check=False)
    assert unknown.returncode == 5 and "no node 'nowhere' is up" in unknown.stderr
    assert cluster.run("trace", "--seconds", "600", check=False).returncode == 2
    assert not (tmp_path / "t.json").exists()
