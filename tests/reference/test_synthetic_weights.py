"""The rule of the weights in blocks, the shard writer, and what `--outliers` scales, value by value."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
import torch
from small_synthetic import small

from fastvlm.progress import ignore
from fastvlm_ref.synthetic.layout import TOWER, Tensor, tensors
from fastvlm_ref.synthetic.outliers import Powers, outliers
from fastvlm_ref.synthetic.shards import INDEX, WHOLE, shards, write_shards
from fastvlm_ref.synthetic.sizes import SIZES
from fastvlm_ref.synthetic.weights import Array, seeded_blocks


@pytest.fixture(scope="module")
def rule() -> ModuleType:
    """The tests' own copy of the reference data's rule."""
    path = Path(__file__).parents[1] / "data" / "seeded_weights.py"
    spec = importlib.util.spec_from_file_location("seeded_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def whole(name: str, shape: tuple[int, ...], seed: int, block: int) -> Array:
    return np.concatenate([np.atleast_1d(part) for part in seeded_blocks(name, shape, seed, block)]).reshape(shape)


@pytest.mark.parametrize("block", [1, 37, 1 << 22])
def test_blocks_are_the_rule_bit_for_bit(rule: ModuleType, block: int) -> None:
    """Every kind of tensor there is; rows of odd length too, since PCG64 hands out float32 values in pairs."""
    made = tensors(small("0.5b"), "llava")
    kinds = {tensor.rule.rsplit(".", 2)[-2] + tensor.rule[-6:] + str(len(tensor.shape)): tensor for tensor in made}
    for tensor in [*kinds.values(), Tensor("odd", "model.odd.weight", (11, 7))]:
        expected = rule.seeded_tensor(tensor.rule, tensor.shape, 3)
        found = whole(tensor.rule, tensor.shape, 3, max(block, math.prod(tensor.shape) // 50))
        assert found.dtype == expected.dtype
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), tensor.rule
    assert len(kinds) > 30


def test_seeds_and_names_differ() -> None:
    drawn = {whole(name, (4, 4), seed, 99).tobytes() for name in ("a.weight", "b.weight") for seed in (0, 1)}
    assert len(drawn) == 4


def test_blocks_bound_the_memory() -> None:
    largest = max(
        (tensor for size in SIZES.values() for tensor in tensors(size, "llava")), key=lambda tensor: tensor.bytes
    )
    first = next(seeded_blocks(largest.rule, largest.shape))
    assert first.nbytes <= 16 * 1024 * 1024
    assert first.shape[1:] == largest.shape[1:]


def test_no_file_of_an_official_size_exceeds_its_limit() -> None:
    for name, count in {"0.5b": 1, "1.5b": 1, "7b": 4, "vicuna-7b": 3}.items():
        parts = shards(tensors(SIZES[name], "llava"))
        assert len(parts) == count
        assert all(sum(tensor.bytes for tensor in part) <= 5e9 for part in parts.values())
        assert (WHOLE in parts) == (count == 1)


def test_small_shards_read_back(tmp_path: Path, rule: ModuleType) -> None:
    made = tensors(small("7b"), "llava")

    def values(tensor: Tensor) -> Iterator[Array]:
        return seeded_blocks(tensor.rule, tensor.shape, 5, 1000)

    told: list[int] = []
    write_shards(tmp_path, made, values, told.append, limit=100_000)
    index = json.loads((tmp_path / INDEX).read_text())
    assert sum(told) == index["metadata"]["total_size"] == sum(tensor.bytes for tensor in made)
    assert set(index["weight_map"]) == {tensor.stored for tensor in made}
    assert len(set(index["weight_map"].values())) > 5
    for tensor in made:
        with safetensors.safe_open(tmp_path / index["weight_map"][tensor.stored], framework="pt") as file:
            found = file.get_tensor(tensor.stored)
        expected = torch.from_numpy(np.asarray(rule.seeded_tensor(tensor.rule, tensor.shape, 5)))
        stored = expected if tensor.dtype == "I64" else expected.to(torch.bfloat16)
        assert torch.equal(found, stored), tensor.stored
        assert found.dtype == stored.dtype


def test_a_tensor_larger_than_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    made = [Tensor(f"{index}.weight", f"{index}.weight", (size, 4)) for index, size in enumerate((1, 100, 1))]
    write_shards(tmp_path, made, lambda tensor: seeded_blocks(tensor.rule, tensor.shape), ignore, limit=50)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]


def test_powers_are_exact_and_know_their_rows() -> None:
    value = whole("a.weight", (10, 3), 0, 99)
    powers = Powers((2, 7), 12, -1)
    found = np.concatenate([powers.apply(value[start : start + 4], start) for start in range(0, 10, 4)])
    expected = value * np.where(np.isin(np.arange(10), (2, 7)), 4096, 0.5)[:, None].astype(np.float32)
    assert np.array_equal(found, expected)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", SIZES)
def test_outliers_name_tensors_and_rows_that_exist(name: str) -> None:
    shapes = {tensor.rule: tensor.shape for tensor in tensors(SIZES[name], "llava")}
    planted = outliers(SIZES[name])
    assert [rule for rule, powers in planted.items() if max(powers.rows) >= shapes[rule][0]] == []
    assert f"{TOWER}network.8.proj.1.reparam_conv.weight" in planted
    assert any("k_proj.bias" in rule for rule in planted) == (name != "vicuna-7b")
