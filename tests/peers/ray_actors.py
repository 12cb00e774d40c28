"""The Ray peer of `falaj bench links`: ray_actors.py SECONDS ROUNDS. Prints "name value" lines. One actor in a process of its own, asked
by this one: Ray's own way between two processes of a machine, without TLS (which can only help it). Needs ray from PyPI."""

import os
import statistics
import sys
import time

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
try:
    import ray
except ImportError:
    sys.exit("ray is not installed (./run test --peers installs it, or pip install ray)")

PAYLOAD = b"x" * 100


@ray.remote
class Echo:
    def echo(self, data):
        return data


def percentile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def main(seconds, rounds):
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    echo = Echo.remote()
    for _ in range(200):
        ray.get(echo.echo.remote(PAYLOAD))
    p50, p99, rates = [], [], []
    for _ in range(rounds):
        waits = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            ray.get(echo.echo.remote(PAYLOAD))
            waits.append((time.perf_counter() - begin) * 1e6)
        p50.append(percentile(waits, 0.5))
        p99.append(percentile(waits, 0.99))
        # 256 under way: the oldest is waited for, then the next one is sent.
        begin = time.perf_counter()
        waiting = [echo.echo.remote(PAYLOAD) for _ in range(256)]
        done = 0
        while time.perf_counter() - begin < seconds:
            ready, waiting = ray.wait(waiting, num_returns=min(64, len(waiting)))
            ray.get(ready)
            done += len(ready)
            waiting += [echo.echo.remote(PAYLOAD) for _ in ready]
        rates.append(done / (time.perf_counter() - begin))
        ray.get(waiting)
    print("link_rtt_p50", statistics.median(p50))
    print("link_rtt_p99", statistics.median(p99))
    print("link_pipelined", statistics.median(rates))
    ray.shutdown()


main(float(sys.argv[1]), int(sys.argv[2]))
