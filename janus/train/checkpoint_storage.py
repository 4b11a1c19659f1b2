"""Tensors of a checkpoint on disk, by torch.distributed.checkpoint (DCP): its planners, on safetensors and JSON.

Every tensor is stored flattened; a rank writes and reads ranges of it, whatever layout the ranges come from: DCP's
planners work out which ranges of which files a rank needs. DCP's own storage pickles its metadata; here it is the
index (index.json), so that nothing that is loaded can execute code:
``{"weights/NAME": {"dtype": "F32", "shape": [...], "chunks": [[start, stop, FILE], ...]}}``.
No process group is needed: planning is local, ``checkpoint_save.py`` merges the ranks' indices.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from janus.train.checkpoint_files import INDEX, DamagedCheckpointError

Index = dict[str, dict[str, Any]]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Part:
    """What a rank has of one tensor, in DCP's protocol. values: elements in the order of ``chunks``, (start, stop)
    ranges of the flattened whole of this ``shape``; they share memory with the tensor to save or to fill.
    """

    values: Tensor
    chunks: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        total = sum(stop - start for start, stop in self.chunks)
        assert self.values.shape == (total,), (self.values.shape, total)

    def size(self) -> torch.Size:
        """Of the flattened whole; DCP compares it with what was saved."""
        return torch.Size([math.prod(self.shape)])

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.values.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets), type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]  # fmt: skip

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_chunk(start, stop) for start, stop in self.chunks if stop > start]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        position = 0
        for start, stop in self.chunks:
            if index.offset == (start,) and stop > start:
                return self.values[position : position + stop - start]
            position += stop - start
        raise AssertionError(f"{index.fqn}: no chunk begins at {index.offset}, chunks are {self.chunks}")


def _chunk(start: int, stop: int) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size([start]), sizes=torch.Size([stop - start]))


class _SavePlanner(DefaultSavePlanner):
    """DCP's planner, for parts."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class _LoadPlanner(DefaultLoadPlanner):
    """DCP's planner, for parts."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """As DCP's, but for its search for tensors on the meta device, which drops what is no tensor."""
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class SafetensorsWriter(StorageWriter):
    """Writes the chunks of one rank, a file per part (the word before "/" in a tensor's name).

    files: after ``write_data``, bytes and sha256 of each file, all of which have reached the disk.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.files: dict[str, dict[str, Any]] = {}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        self.files = {}

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and flush. Raises OSError."""
        by_file: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            by_file.setdefault(f"{item.index.fqn.partition('/')[0]}-{self.rank:05d}.safetensors", []).append(item)
        results = []
        for name, items in by_file.items():
            tensors = {_key(item.index): planner.resolve_data(item) for item in items}
            self.files[name] = write_safetensors(self.folder / name, tensors)
            results += [
                WriteResult(index=item.index, size_in_bytes=tensors[_key(item.index)].nbytes, storage_data=name)
                for item in items
            ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Note in the metadata which file holds which chunk; the index of all ranks is written by the saver."""
        metadata.storage_data = {result.index: result.storage_data for part in results for result in part}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return Path(checkpoint_id).is_dir()


class SafetensorsReader(StorageReader):
    """Reads ranges out of the files that an index names. It does not verify them: ``checkpoint_files.verify_file``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[MetadataIndex, str] = {}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        self.folder = self.folder if checkpoint_id is None else Path(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _metadata_of(read_index(self.folder))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._file_of = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy each range to where the planner wants it. Raises DamagedCheckpointError for a file that is no
        safetensors file."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self._file_of[item.storage_index], []).append(item)
        for name, items in by_file.items():
            try:
                with safe_open(self.folder / name, framework="pt") as stored:
                    for item in items:
                        _read_item(stored, item, planner)
            except SafetensorError as error:
                raise DamagedCheckpointError(f"checkpoint {self.folder} is damaged: {name}: {error}") from None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return (Path(checkpoint_id) / INDEX).is_file()


def _read_item(stored: Any, item: ReadItem, planner: LoadPlanner) -> None:
    begin, length = item.storage_offsets[0], item.lengths[0]
    values = stored.get_slice(_key(item.storage_index))[begin : begin + length]
    target = planner.resolve_tensor(item).detach()
    assert target.dtype == values.dtype, (item.dest_index.fqn, target.dtype, values.dtype)
    target.copy_(values)
    planner.commit_tensor(item, target)


def _key(index: MetadataIndex) -> str:
    """Name of a chunk inside its file: the tensor's, and where the chunk begins."""
    return f"{index.fqn}@{index.offset[0]}"


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict:
    """Write CPU tensors as a safetensors file that reaches the disk; returns bytes and sha256, hashed on the way.

    Raises OSError. Format: https://github.com/huggingface/safetensors (8 bytes length, JSON header, tensors). The
    library's own writer makes a second copy of all tensors in memory, and a second pass over the file would hash it.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    # widest elements first, which keeps every tensor aligned
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    for name, tensor in ordered:
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [end, end + tensor.nbytes]}  # fmt: skip
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        for content in (len(text).to_bytes(8, "little") + text, *(tensor_bytes(tensor) for _, tensor in ordered)):
            stream.write(content)
            digest.update(content)
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a CPU tensor, in order."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def write_parts(folder: Path, rank: int, parts: Mapping[str, Part]) -> tuple[Index, dict[str, dict[str, Any]]]:
    """Write this rank's parts; returns their index and the entries of the files written. Raises OSError."""
    planner, writer = _SavePlanner(), SafetensorsWriter(folder, rank)
    planner.set_up_planner(dict(parts), is_coordinator=True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    results = writer.write_data(planner.finish_plan(plan), planner).wait()
    index: Index = {
        name: {"dtype": DTYPE_NAMES[part.values.dtype], "shape": list(part.shape), "chunks": []}
        for name, part in parts.items()
    }
    lengths = {item.index: item.tensor_data.chunk.sizes[0] for item in plan.items}
    for result in results:
        start = result.index.offset[0]
        index[result.index.fqn]["chunks"].append([start, start + lengths[result.index], result.storage_data])
    return index, writer.files


def read_parts(folder: Path, index: Index, parts: Mapping[str, Part]) -> None:
    """Fill the parts' values from the files, whatever ranges those hold; only the needed ranges are read.

    Raises DamagedCheckpointError, or KeyError and ValueError for a tensor that is not there or has another shape.
    """
    for name, part in parts.items():
        if name not in index:
            raise KeyError(f"{name} is not in checkpoint {folder}")
        if list(part.shape) != index[name]["shape"]:
            raise ValueError(f"{name} has shape {index[name]['shape']} in checkpoint {folder}, not {list(part.shape)}")
    planner, reader = _LoadPlanner(), SafetensorsReader(folder)
    metadata = _metadata_of(index)
    planner.set_up_planner(dict(parts), metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reader.read_data(planner.finish_plan(plan), planner).wait()


def _metadata_of(index: Index) -> Metadata:
    """The index as DCP knows it."""
    tensors, file_of = {}, {}
    for name, entry in index.items():
        tensors[name] = TensorStorageMetadata(
            properties=TensorProperties(dtype=DTYPES[entry["dtype"]]),
            size=torch.Size([math.prod(entry["shape"])]),
            chunks=[_chunk(start, stop) for start, stop, _ in entry["chunks"]],
        )
        file_of |= {MetadataIndex(name, [start]): file for start, _, file in entry["chunks"]}
    return Metadata(state_dict_metadata=tensors, storage_data=file_of)


def merge_indices(indices: Sequence[Index]) -> Index:
    """What several ranks wrote, as one index in which every tensor is whole."""
    merged: Index = {}
    for index in indices:
        for name, entry in index.items():
            whole = merged.setdefault(name, {"dtype": entry["dtype"], "shape": entry["shape"], "chunks": []})
            assert (whole["dtype"], whole["shape"]) == (entry["dtype"], entry["shape"]), (name, whole, entry)
            whole["chunks"] += entry["chunks"]
    for name, entry in merged.items():
        entry["chunks"].sort()
        gap = _first_gap(entry)
        assert gap is None, f"{name}: elements from {gap} on are written by no rank or by several"
    return merged


def _first_gap(entry: Mapping[str, Any]) -> int | None:
    """Where sorted chunks fail to follow one another from 0 to the end; None: they are the whole tensor."""
    reached = 0
    for start, stop, _ in entry["chunks"]:
        if start != reached:
            return min(start, reached)
        reached = stop
    return None if reached == math.prod(entry["shape"]) else reached


def read_index(folder: Path) -> Index:
    """index.json. Raises DamagedCheckpointError where it is not what ``merge_indices`` gives."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["tensors"]
        gap = next((name for name, entry in index.items() if _first_gap(entry) is not None), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {INDEX} cannot be read") from None
    if gap is not None:
        raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {INDEX} does not cover {gap}")
    return index
