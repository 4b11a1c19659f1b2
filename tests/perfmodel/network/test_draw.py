"""Pictures of fabrics: every link of the fabric is a line with its capacity, and the file stands alone."""

import re
from dataclasses import replace

import numpy as np
import pytest

from janus.errors import UserError
from perfmodel.machine import FabricDescription, load_machine
from perfmodel.network.draw import draw_machine
from perfmodel.network.draw_layout import lay_out, node_graph
from perfmodel.network.fabric import build_fabric

# machine, nodes, numbers replaced, what the legend must say
PICTURES = [
    ("lineshine", 16, {"children": [4, 4, 2], "parents": [1, 4, 4]},
     ["node to leaf: 2 x 100 GB/s", "leaf to level 2: 100 GB/s", "level 2 to level 3: 100 GB/s"]),
    ("frontier", 32, {"groups": 4, "switches_per_group": 4, "ports_per_switch": 8},
     ["node to switch: 25 GB/s", "inside a group: 25 GB/s", "between groups: 25 GB/s"]),
    ("frontier", 32, {"groups": 4, "switches_per_group": 4, "ports_per_switch": 8, "switches_per_node": 1},
     ["node to switch: 4 x 25 GB/s", "inside a group: 25 GB/s", "between groups: 25 GB/s"]),
    ("leonardo", 24, {"groups": 4, "leaves_per_group": 3, "ports_per_leaf": 4},
     ["node to leaf: 2 x 25 GB/s", "leaf to spines, 18 cables: 450 GB/s", "between groups, 18 cables: 450 GB/s"]),
    ("fugaku", 24, {}, ["along Z: 6.8 GB/s", "along a: 6.8 GB/s", "along b: 6.8 GB/s", "along c: 6.8 GB/s"]),
    ("dgx_h100_superpod", 4, {"unit_nodes": 2, "children": 16, "parents": [1, 4]},
     ["node to leaf: 50 GB/s", "leaf to level 2: 100 GB/s"]),
]  # fmt: skip


def numbers_of(name, overrides):
    return {**load_machine(name).fabric.numbers, **overrides}


@pytest.mark.parametrize(("name", "nodes", "overrides", "legend"), PICTURES)
def test_picture_is_one_file_that_names_every_capacity(name, nodes, overrides, legend, tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text, to be read here
    out = tmp_path / "made" / "fabric.svg"
    draw_machine(load_machine(name), nodes, out, overrides)
    text = out.read_text()
    for entry in legend:
        assert entry in text
    for key in overrides:
        assert f"{key} =" in text, "what differs from the machine is in the title"
    addresses = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert all(address.startswith("#") for address in addresses), "nothing is fetched"


@pytest.mark.parametrize(("name", "nodes", "overrides", "legend"), PICTURES)
def test_lines_carry_the_capacity_of_the_fabric_and_no_two_vertices_meet(name, nodes, overrides, legend):
    machine = load_machine(name)
    numbers = numbers_of(name, overrides)
    fabric = build_fabric(machine.fabric.family, numbers, num_nodes=nodes, nics_per_node=machine.network.nics_per_node)
    description = FabricDescription(family=machine.fabric.family, numbers=numbers)
    drawing = lay_out(description, fabric, nodes, machine.network.nics_per_node)
    graph = drawing.graph
    ports = 2 * fabric.capacity_bytes_per_s[: fabric.num_ports].sum()
    inner = ports if machine.fabric.family == "tofu_d" else 0.0
    assert 2 * graph.bytes_per_s.sum() + inner == pytest.approx(fabric.capacity_bytes_per_s.sum(), rel=1e-12)
    gaps = np.hypot(*(drawing.position[:, None] - drawing.position[None]).transpose(2, 0, 1))
    assert (gaps + np.eye(graph.num_vertices)).min() > 0.3
    assert len(drawing.labels) == graph.num_vertices
    assert set(drawing.kind.tolist()) <= set(range(len(drawing.kinds)))


def test_nics_of_a_node_are_one_box():
    fabric = build_fabric("single_switch", {"port_bytes_per_s": 10e9}, num_nodes=3, nics_per_node=2)
    graph = node_graph(fabric, 3, 2)
    assert graph.node_count == 3
    assert graph.ends.tolist() == [[0, 3], [1, 3], [2, 3]]
    assert graph.bytes_per_s.tolist() == [20e9] * 3
    assert graph.cables.tolist() == [2] * 3


def test_routers_without_a_node_are_marked():
    numbers = {"shape": (3, 2), "job_shape": (3, 2), "link_bytes_per_s": 5e9, "port_bytes_per_s": 1e10}
    fabric = build_fabric("torus", numbers, num_nodes=5, nics_per_node=1)
    drawing = lay_out(FabricDescription(family="torus", numbers=numbers), fabric, 5, 1)
    assert drawing.empty.tolist() == [False] * 5 + [True]
    assert drawing.bows.tolist().count(True) == 2, "the two rings of 3 close by a bow each"


def test_what_cannot_be_drawn_is_said_in_one_sentence(tmp_path):
    frontier = load_machine("frontier")
    with pytest.raises(UserError, match="too many to read: take fewer --nodes, or a small model"):
        draw_machine(frontier, 2000, tmp_path / "big.svg")
    with pytest.raises(UserError, match="did you mean 'groups'"):
        draw_machine(frontier, 4, tmp_path / "odd.svg", {"group": 4})
    with pytest.raises(UserError, match="nothing to draw"):
        draw_machine(replace(frontier, fabric=None), 4, tmp_path / "none.svg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        draw_machine(frontier, 1, tmp_path / "file" / "fabric.svg", {"switches_per_group": 4})
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
