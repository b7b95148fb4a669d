"""lmms-eval finds the model by its entry point and asks it a local task, without a network. Needs `quota-vlm[eval]`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval", reason='lmms-eval is not installed; pip install "quota-vlm[eval]"')
if not entry_points(group="lmms_eval.models", name="quota"):
    pytest.skip("quota is not installed, only on the path: its entry points cannot be found", allow_module_level=True)

QUESTIONS = 8
TASK = """\
task: local_questions
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/questions.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.pictures
doc_to_text: question
doc_to_messages: !function functions.messages
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 24, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """\
import io
from PIL import Image


def pictures(doc):
    return [Image.open(io.BytesIO(doc["image"])).convert("RGB")]


def messages(doc, lmms_eval_specific_kwargs=None):
    picture = {"type": "image", "url": pictures(doc)[0]}
    return [{"role": "user", "content": [picture, {"type": "text", "text": doc["question"]}]}]
"""


def test_a_local_task_is_answered_as_by_quota_itself(reference_folder: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from quota.checkpoint.named import load_model
    from quota.prompts import answer
    from quota_lab import reference

    samples = reference.calibration_samples(QUESTIONS, seed=5)
    rows = []
    for sample in samples:
        file = io.BytesIO()
        sample.pictures()[0].save(file, "PNG")
        rows.append({"image": file.getvalue(), "question": sample.question, "answer": sample.answer})
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "questions.parquet")
    (tmp_path / "local_questions.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    command = [sys.executable, "-m", "lmms_eval", "--model", "quota", "--model_args", f"pretrained={reference_folder}"]
    command += ["--tasks", "local_questions", "--include_path", str(tmp_path), "--batch_size", "4"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    [log] = (tmp_path / "out").rglob("*samples_local_questions.jsonl")
    told = {line["doc_id"]: line["filtered_resps"] for line in map(json.loads, log.read_text().splitlines())}
    model, processor, _ = load_model(str(reference_folder))
    assert [told[number] for number in range(QUESTIONS)] == [answer(model, processor, sample) for sample in samples]
