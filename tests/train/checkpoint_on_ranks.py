"""Run under mpiexec by test_checkpoint.py: FOLDER FROM...: ranks of several layouts save and load one another's.

Loads every checkpoint that lies in the FROM folders into every layout, saves one per layout into FOLDER/LAYOUT, each
in the background while the tensors change, and shows what happens to all ranks when one cannot write or a file is
damaged. Ends with exit code 0 if everything was as it must be.
"""

from __future__ import annotations

import math
import resource
import sys
from pathlib import Path

import torch
from checkpoint_states import (
    DIVISIONS,
    DTYPES,
    SHAPES,
    assert_equal_states,
    equal_on_all_ranks,
    pieces_of,
    take,
    whole_state,
)

from janus.parallel.communication import Communicator, connect
from janus.parallel.job import RunFailedError, run_on_ranks
from janus.parallel.pieces import Piece
from janus.train.checkpoint import latest_good
from janus.train.checkpoint_save import save_checkpoint
from janus.train.config import TrainConfig

STEP = 7


def layouts(communicator: Communicator) -> dict[str, dict[str, Piece]]:
    """Divisions over all ranks, and over pairs of ranks with copies of them."""
    rank, size = communicator.rank, communicator.world_size
    units = [list(range(start, start + 2)) for start in range(0, size, 2)]
    across = [list(range(offset, size, 2)) for offset in range(2)]
    all_ranks, lone = [list(range(size))], [[each] for each in range(size)]
    found = {}
    for name, divide in DIVISIONS.items():
        for owners, copies, place, num in ((all_ranks, lone, rank, size), (units, across, rank % 2, 2)):
            chunks = {parameter: divide(math.prod(shape), place, num) for parameter, shape in SHAPES.items()}
            found[f"{name}-of-{num}-times-{size // num}"] = pieces_of(
                chunks, communicator.make_axis("shard", owners), communicator.make_axis("replica", copies)
            )
    return found


def parts_of(pieces, state):
    return {part: {name: take(state[part][name], piece.chunks) for name, piece in pieces.items()} for part in DTYPES}


def save(folder, step, pieces, communicator, **keywords):
    parts = parts_of(pieces, whole_state(step))
    pending = save_checkpoint(
        folder, step=step, config=TrainConfig(), facts={"best_score": None}, pieces=pieces, parts=parts,
        whole=equal_on_all_ranks(step), communicator=communicator, **keywords,
    )  # fmt: skip
    for tensors in parts.values():
        for tensor in tensors.values():
            tensor.fill_(float("nan"))  # training goes on
    return pending


def load(folder, pieces, communicator):
    checkpoint = latest_good(folder, _never, communicator)
    parts = {part: {name: torch.zeros(piece.parameter.shape, dtype=dtype) for name, piece in pieces.items()}
             for part, dtype in DTYPES.items()}  # fmt: skip
    checkpoint.fill(pieces, parts)
    assert_equal_states(parts, parts_of(pieces, whole_state(checkpoint.step)))
    assert_equal_states({"": checkpoint.tensors["whole"]}, {"": equal_on_all_ranks(checkpoint.step)})


def _never(sentence):
    raise AssertionError(sentence)


def one_cannot_write(folder, pieces, communicator):
    """The limit on file size refuses the last rank's writes, as a full disk does; all ranks hear one sentence."""
    save(folder, 1, pieces, communicator, background=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    last = communicator.world_size - 1
    if communicator.rank == last:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    pending = save(folder, 2, pieces, communicator, background=True)
    for attempt in (pending.wait, lambda: save(folder, 3, pieces, communicator, background=False)):
        try:
            attempt()
        except RunFailedError as error:
            heard = communicator.gather_objects(str(error))
        else:
            raise AssertionError("the write must have failed")
        assert set(heard) == {heard[0]}, heard
        assert f"on rank {last}); that of step 1 is intact" in heard[0], heard
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if communicator.rank == 0:  # which the others wait for at the next save
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000001"]
    save(folder, 4, pieces, communicator, background=True)
    save(folder, 5, pieces, communicator, background=True, keep=1, best=True)  # waits for the one before
    save(folder, 6, pieces, communicator, background=True, keep=1).wait()
    if communicator.rank == 0:
        assert sorted(path.name for path in folder.iterdir()) == ["best", "latest", "step_00000005", "step_00000006"]


def one_file_is_damaged(folder, communicator):
    """Each rank verifies a share of the files; all learn what one of them found, and go to the one before."""
    communicator.barrier()
    if communicator.rank == 0:
        file = sorted((folder / "step_00000006").glob("weights-*"))[-1]
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    communicator.barrier()
    told: list[str] = []
    checkpoint = latest_good(folder, told.append, communicator)
    heard = communicator.gather_objects([checkpoint.step, *told])
    assert heard == [heard[0]] * communicator.world_size, heard
    assert heard[0][0] == 5
    assert "step_00000006 is damaged: weights-" in heard[0][1]
    assert "does not match its hash" in heard[0][1]


def main() -> None:
    communicator = connect(device="cpu")
    folder, origins = Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]]

    def work(watchdog) -> int:
        here = layouts(communicator)
        for name, pieces in here.items():
            save(folder / name, STEP, pieces, communicator, background=True).wait()
        origins.append(folder)
        for checkpoints in sorted(path for origin in origins for path in origin.iterdir()):
            for pieces in here.values():
                load(checkpoints, pieces, communicator)
        several = here[f"turn-of-{communicator.world_size}-times-1"]
        one_cannot_write(folder.parent / f"failing-{communicator.world_size}", several, communicator)
        one_file_is_damaged(folder.parent / f"failing-{communicator.world_size}", communicator)
        return 0

    run_on_ranks("train", communicator, work)


main()
