"""The host's arithmetic: chunks, padding, rotary tables, mask."""

import numpy as np
import pytest
import torch

from fastvlm.errors import BuildError, PromptError
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import rope_tables as reference_tables
from validation.host import MASKED, EmbeddingTable, causal_mask, pad_rows, plan_prefill, rope_tables


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64])
@pytest.mark.parametrize("past", [0, 1, 30, 63])
def test_every_row_is_prefilled_once_and_nothing_leaves_the_context(length, past):
    query, context = 16, 128
    chunks = list(plan_prefill(length, past=past, query=query, context=context))
    rows = [chunk.start + i for chunk in chunks for i in range(chunk.rows)]
    assert rows == list(range(length))
    for chunk in chunks:
        assert chunk.position == past + chunk.start
        assert chunk.position + (query if chunk.function == "prefill" else 1) <= context


def test_the_end_of_the_context_is_finished_by_decode():
    chunks = list(plan_prefill(7, past=121, query=16, context=128))
    assert [chunk.function for chunk in chunks] == ["decode"] * 7


def test_a_prompt_that_does_not_fit_names_the_numbers():
    with pytest.raises(PromptError, match=r"100 .* 29 .* 128"):
        list(plan_prefill(29, past=100, query=16, context=128))


def test_padding_repeats_the_last_row():
    padded = pad_rows(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), 4)
    assert padded.dtype == np.float16
    assert padded.shape == (1, 4, 2)
    assert padded[0].tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]


def test_rope_tables_equal_the_reference_after_rounding():
    config = TextConfig(128, 1, 4, 1, 32, 64, 10, 1e-6, 1e6, True, True, 4096)
    cos, sin = reference_tables(config, torch.arange(1000, 1016))
    ours = rope_tables(1000, 16, 32, 1e6)
    for table, expected in zip(ours, (cos, sin), strict=True):
        assert table.shape == (1, 1, 16, 32)
        assert table.dtype == np.float16
        assert np.abs(table[0, 0].astype(np.float32) - expected.numpy()).max() <= 2**-11  # half a step of fp16 below 1


def test_mask_shows_the_past_and_hides_the_padding():
    mask = causal_mask(position=5, rows=2, query=4, context=16)[0, 0]
    visible = [(row == 0).sum() for row in mask]
    assert visible == [6, 7, 7, 7]  # positions 0..5, 0..6, and the padded rows as the last real one
    assert set(np.unique(mask)) == {np.float16(0), np.float16(MASKED)}


def test_embedding_table_is_checked_against_its_size(tmp_path):
    table = np.arange(12, dtype=np.float16).reshape(4, 3)
    path = tmp_path / "embeddings.bin"
    table.tofile(path)
    rows = EmbeddingTable(path, 4, 3)([2, 0])
    assert rows.tolist() == [[6, 7, 8], [0, 1, 2]]
    with pytest.raises(BuildError, match="expected 30 bytes"):
        EmbeddingTable(path, 5, 3)
    with pytest.raises(PromptError, match="outside the embedding table"):
        EmbeddingTable(path, 4, 3)([4])
    with pytest.raises(BuildError, match="no file"):
        EmbeddingTable(tmp_path / "gone.bin", 4, 3)
