"""Logits of the published reference, computed on its own small model."""

from __future__ import annotations

import json

import jax
import numpy as np

from rcjax import model as llama
from rcjax.hf.load import load_model


def test_teacher_and_student_logits_equal_the_reference(golden):
    config, params = load_model(golden / "model_llama", dtype=np.float64)
    tokens = np.load(golden / "golden_batches.npz")["refl_b3/input_ids"].astype(np.int32)
    lengths = np.load(golden / "golden_batches.npz")["refl_b3/attention_mask"].sum(1)
    cases = json.loads((golden / "golden_cases_model_llama.json").read_text())
    arrays = np.load(golden / "golden_arrays_model_llama.npz")
    key = "refl_b3/block_mask_tce/r0.5"
    case = cases[key]
    student = arrays[f"{key}/student_mask"].astype(np.int32)
    real = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    with jax.enable_x64(True):
        for segments, name in ((real, "teacher_logits/refl_b3"), (student * real, f"{key}/student_logits")):
            hidden = llama.apply(config, params, tokens, positions, segments, dtype="float64")
            logits = np.asarray(hidden @ llama.head_kernel(config, params))
            for row in range(2):
                ours = logits[row, case["logit_positions"][row]]
                np.testing.assert_allclose(ours, arrays[name][row], rtol=1e-10, atol=1e-11)
