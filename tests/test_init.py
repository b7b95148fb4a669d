"""`import quota`: what it brings, and what it leaves for later. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_nothing_heavy_comes_with_it() -> None:
    heavy = ("torch", "transformers", "pydantic", "matplotlib", "quota_lab", "PIL")
    assert run(f"import sys, quota; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_help_does_without_torch() -> None:
    code = """
import sys
from quota.cli import main
try:
    main(["--help"])
except SystemExit:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    assert run(code).splitlines()[-1] == "False False"


def test_using_it_brings_neither_servers_nor_plots_nor_the_laboratory() -> None:
    heavy = ("matplotlib", "quota_lab", "gradio", "vllm", "ray", "fastapi")
    assert run(f"import sys, quota; quota.compress; print([name for name in {heavy} if name in sys.modules])") == "[]"


LOADER = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers import CompressedTensorsConfig
made = AUTO_QUANTIZER_MAPPING["compressed-tensors"](CompressedTensorsConfig(format="pack-quantized"))
print(type(made).__module__)
"""


@pytest.mark.parametrize(
    "first",
    ["import quota, transformers", "import transformers; import quota", "import transformers.quantizers.auto, quota"],
)
def test_the_loader_is_registered_whichever_comes_first(first: str) -> None:
    assert run(first + LOADER) == "quota.checkpoint.load"


@pytest.mark.parametrize(
    "before",
    ["", "from quota.compress import prune_only", "import quota.compress", "import quota.compress_folder"],
    ids=["nothing", "a name of the module", "the module", "what imports it"],
)
def test_compress_is_the_function_whatever_was_imported(before: str) -> None:
    assert run(f"import quota\n{before}\nprint(callable(quota.compress), quota.compress.__module__)") == (
        "True quota.compress"
    )


def test_every_public_name_is_there_and_no_other() -> None:
    assert run("import quota; print(all(hasattr(quota, name) for name in quota.__all__))") == "True"
    assert run("import quota; print(set(quota.__all__) <= set(dir(quota)), hasattr(quota, 'nothing'))") == "True False"
