#!/usr/bin/env python3
"""What a hop of 64 B takes with Ray's compiled graphs, with Dask, and with ours, one after the other in one run.

A hop is what one more function in a chain takes: the difference between a chain of many functions and one of few,
alternately on two workers, by the number of functions between them. So what the client needs at the ends cancels.

    python3 -m venv /tmp/others && /tmp/others/bin/pip install ray dask distributed
    /tmp/others/bin/python benchmarks/others_graphs.py target/release/graph_benchmarker

What is not installed is said to be not run. Nothing here is needed by rFaaS.
"""

import json
import statistics
import subprocess
import sys
import time

FEW, MANY = 2, 12
REPETITIONS = 300
PAYLOAD = b"x" * 64


def hop(run_few, run_many, repetitions=REPETITIONS):
    """Microseconds of a hop: medians of both chains, measured in turn."""
    times = {FEW: [], MANY: []}
    for number in range(repetitions + 20):
        for length, run in ((FEW, run_few), (MANY, run_many)):
            start = time.perf_counter()
            if run() != PAYLOAD:
                raise RuntimeError("a chain returned something else than its input")
            if number >= 20:
                times[length].append(time.perf_counter() - start)
    few, many = (statistics.median(times[length]) * 1e6 for length in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def with_ray():
    import ray
    from ray.dag import InputNode

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    @ray.remote(num_cpus=1)
    class Worker:
        def echo(self, payload):
            return payload

    def chain(length):
        # A compiled graph has its actors for itself.
        workers = [Worker.remote(), Worker.remote()]
        with InputNode() as payload:
            node = payload
            for number in range(length):
                node = workers[number % 2].echo.bind(node)
        return node.experimental_compile()

    graphs = []
    try:
        graphs = [chain(FEW), chain(MANY)]
        runs = [lambda graph=graph: ray.get(graph.execute(PAYLOAD)) for graph in graphs]
        return ray.__version__, hop(*runs)
    finally:
        for graph in graphs:
            graph.teardown()
        ray.shutdown()


def echo(payload):
    return payload


def with_dask():
    import dask
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)
    workers = list(client.scheduler_info()["workers"])

    def run(length):
        future = PAYLOAD
        for number in range(length):
            future = client.submit(echo, future, workers=[workers[number % 2]], pure=False)
        return future.result()

    try:
        return dask.__version__, hop(lambda: run(FEW), lambda: run(MANY), 100)
    finally:
        client.close()
        cluster.close()


def with_ours(program):
    told = subprocess.run([program, "--json", "--calls", "1000", "--compiles", "1"], check=True, stdout=subprocess.PIPE)
    rows = json.loads(told.stdout)["rows"]
    return "spinning", next(row["value"] for row in rows if row["target"] == "T1") / 1000


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: others_graphs.py PATH/graph_benchmarker")
    contenders = [
        ("rFaaS", lambda: with_ours(sys.argv[1])),
        ("Ray compiled graph", with_ray),
        ("Dask", with_dask),
    ]
    print(f"{'hop of 64 B':<24}{'':<12}{'µs':>10}")
    for name, measure in contenders:
        try:
            version, microseconds = measure()
            print(f"{name:<24}{version:<12}{microseconds:>10.3f}", flush=True)
        except ImportError as error:
            print(f"{name:<24}not run: {error}", flush=True)
        except Exception as error:  # one that fails is no reason to lose the others
            print(f"{name:<24}failed: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
