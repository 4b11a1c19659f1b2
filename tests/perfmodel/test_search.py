"""The search against the full prediction of the same candidates, its order, and what it does with nothing to find."""

import numpy as np
import pytest

from janus.errors import UserError
from janus.placement import STRATEGIES
from janus.presets import preset
from perfmodel.candidates import Space, caps_of
from perfmodel.dataset import sample_batches
from perfmodel.machine import load_machine
from perfmodel.memory import fullest_memory
from perfmodel.memory_tiers import used_bytes
from perfmodel.search import combined, describe, search, step_seconds
from perfmodel.search_tables import Job, Tables
from perfmodel.step_time import predict
from perfmodel.step_work import RunSettings, step_work
from tests.host_machine import write_host
from tests.perfmodel.search_cases import spread_data

# A search reads halos off a table of one typical structure, routes one typical micro-batch for all (which experts have
# rows too), takes the rank with most edges + angles for the slowest and the first rank's pieces for the optimizer's.
PLAIN_TOLERANCE, ROUTED_TOLERANCE, ESTIMATED_TOLERANCE, MEMORY_TOLERANCE = 0.01, 0.04, 0.06, 0.1
HOST_MEMORY_TOLERANCE = 0.02  # few ranks; as much resident memory for all of what is allocated is 8 % and more off


def searched(model: str, world_size: int, machine, per_rank: int = 4, **fixed):
    data = spread_data()
    job = Job(model=preset(model), machine=machine, data=data, batch_of=lambda world: per_rank * world, num_batches=1)
    tables = Tables(job)
    caps = caps_of(data.work, tables.shared(world_size).heaviest(2))[-2:]
    space = Space(world_sizes=(world_size,), caps=caps, ranks_per_node=16, fixed=fixed)
    found = search(job, space, lambda world: 1e15, tables=tables)
    return found, sample_batches(data.work, per_rank * world_size, 1, 0)[0]


def settings_of(found, number: int) -> RunSettings:
    candidates = found.candidates
    return RunSettings(
        max_work=candidates.cap(number), recompute=bool(candidates["recompute"][number]),
        gathered_blocks=int(candidates["gathered_blocks"][number]),
        expert_strategy=STRATEGIES[candidates["expert_strategy"][number]],
        expert_compression=bool(candidates["expert_compression"][number]),
    )  # fmt: skip


def chosen_numbers(found, most: int = 8) -> list[int]:
    return np.random.default_rng(3).permutation(len(found))[:most].tolist()


@pytest.mark.parametrize(
    ("model", "world_size", "fixed", "tolerance"),
    [
        ("matris-small", 8, {"graph_degree": (1,)}, PLAIN_TOLERANCE),
        ("matris-small", 16, {"graph_degree": (2, 4)}, ESTIMATED_TOLERANCE),
        ("matris-moe-tiny", 16, {"graph_degree": (1,), "expert_degree": (1,)}, ROUTED_TOLERANCE),
        ("matris-moe-tiny", 16, {"expert_degree": (2, 4, 8)}, ESTIMATED_TOLERANCE),
    ],
)
def test_the_price_of_many_is_the_prediction_of_each(model, world_size, fixed, tolerance):
    machine = load_machine("lineshine")
    found, batch = searched(model, world_size, machine, **fixed)
    for k in chosen_numbers(found):
        work = step_work(preset(model), spread_data(), batch, found.candidates.layout(k), settings_of(found, k))
        full = predict(work, machine)
        assert found.step_s[k] == pytest.approx(full.step_s, rel=tolerance), describe(found.candidates, k)
        mine = combined(found.priced.parts, found.priced.overlap, np.array([k]))
        for cause, seconds in full.cause_s.items():
            assert float(mine.cause_s[cause][0]) == pytest.approx(seconds, abs=tolerance * full.step_s), cause
        memory = used_bytes(fullest_memory(work), machine)
        assert found.memory_bytes[k] == pytest.approx(memory, rel=MEMORY_TOLERANCE), describe(found.candidates, k)


def test_a_host_with_more_ranks_than_cores(tmp_path):
    machine = load_machine(write_host(tmp_path / "host.toml"))
    found, batch = searched("matris-tiny", 4, machine, per_rank=3)
    for k in chosen_numbers(found, 5):
        work = step_work(preset("matris-tiny"), spread_data(), batch, found.candidates.layout(k), settings_of(found, k))
        full = predict(work, machine)
        assert found.step_s[k] == pytest.approx(full.step_s, rel=ESTIMATED_TOLERANCE), describe(found.candidates, k)
        assert full.memory_bytes == fullest_memory(work, machine).resident_bytes > fullest_memory(work).total_bytes
        memory = pytest.approx(full.memory_bytes, rel=HOST_MEMORY_TOLERANCE)
        assert found.memory_bytes[k] == memory, describe(found.candidates, k)


def test_a_part_of_the_candidates_keeps_its_prices():
    found, _ = searched("matris-small", 8, load_machine("lineshine"), graph_degree=(1, 2))
    some = found.take(np.arange(len(found))[::-3])
    assert np.array_equal(some.step_s, found.step_s[::-3])
    assert step_seconds(some.priced.parts, some.priced.overlap) == pytest.approx(some.step_s, rel=1e-12)


def test_memory_comes_first_and_nothing_that_fits_is_said_in_one_sentence():
    machine, data = load_machine("lineshine"), spread_data()
    job = Job(model=preset("matris-small"), machine=machine, data=data, batch_of=lambda world: 4 * world)
    space = Space(world_sizes=(8,), caps=(20_000, None), ranks_per_node=16)
    every = search(job, space, lambda world: 1e15)
    limit = float(np.median(every.memory_bytes))
    some = search(job, space, lambda world: limit)
    assert some.considered == every.considered == len(every)
    assert 0 < len(some) < len(every)
    assert (some.memory_bytes <= limit).all()
    with pytest.raises(UserError, match=r"nothing fits: the leanest candidate needs .* GB per rank of 0.00 GB \(unit"):
        search(job, space, lambda world: 1e6)
