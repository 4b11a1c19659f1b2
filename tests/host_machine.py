"""A machine file written by hand for tests: a host of two cores whose numbers are round."""

from __future__ import annotations

from pathlib import Path

from perfmodel.host import this_host
from perfmodel.machine import write_machine

SOURCE = "by hand, for a test"


def quantity(value: float) -> dict[str, object]:
    return {"value": value, "source": SOURCE}


def write_host(path: Path) -> Path:
    """Write the machine file; one, two and four ranks of one thread are listed."""
    here = this_host()
    rates = {}
    for ranks in (1, 2, 4):
        share = min(1.0, 2 / ranks)
        entry: dict[str, object] = {
            "ranks": quantity(ranks), "threads": quantity(1), "matmul_flops_per_s": quantity(5e10 * share),
            "matmul_bytes_per_s": quantity(1e10 * share), "op_s": quantity(5e-6), "step_stretch": quantity(1.0),
            "plain_bytes_per_s": quantity(5e9 * share), "batch_s": quantity(1e-3),
            "fresh_bytes_per_s": quantity(2e9 * share),
            "optimizer_bytes_per_s": quantity(5e9), "optimizer_tensor_s": quantity(1e-6),
            "data_structure_s": quantity(1e-4), "data_edge_s": quantity(1e-7), "data_angle_s": quantity(1e-8),
        }  # fmt: skip
        if ranks > 1:
            entry |= {"all_reduce_latency_s": quantity(1e-4), "all_reduce_bytes_per_s": quantity(1e9)}
        rates[f"ranks_{ranks}_threads_1"] = entry
    values = {
        "schema": "janus.machine/1", "name": "testhost", "description": "two cores", "device_name": "core",
        "nodes": quantity(1), "devices_per_node": quantity(2),
        "device": {"memory_bytes_per_node": quantity(8e9), "memory_bytes_per_s": quantity(1e10),
                   "peaks": {"float32": {**quantity(6e10), "name": "matrix product, one core"}}},
        "rates": rates, "provenance": {"cpu": here.cpu, "cores": here.cores, "hostname": here.hostname},
    }  # fmt: skip
    write_machine(path, values)
    return path
