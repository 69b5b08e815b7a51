"""The skin over xllamacpp, in a process of its own as always."""

import json
import subprocess
import sys

import pytest

from aicortex.embedded.engine import _explained

SCRIPT = """
import json, os, sys
from pathlib import Path
from aicortex.embedded.api import ApiError
from aicortex.embedded.engine import Engine
from aicortex.embedded.replies import read_chunk
from aicortex.errors import EmbeddedEngineError

def text(engine, prompt, **parameters):
    parts = []
    engine.run(prompt, {"temperature": 0} | parameters, lambda chunk: parts.append(read_chunk(chunk).text))
    return "".join(parts)

def raises(kind, call):
    try:
        call()
    except kind as exc:
        return str(exc)

def memory():  # pages, where the system tells
    table = Path("/proc/self/statm")
    return int(table.read_text().split()[1]) if table.exists() else 0

found, path = {}, Path(sys.argv[1])
engine = Engine(path, context_length=512)
found["rendered"] = engine.render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
found["tokens"] = engine.count_tokens("<|im_start|>user")
found["text"] = text(engine, "One, two, three, four,", n_predict=2)
found["fails"] = raises(ZeroDivisionError, lambda: engine.run("a", {"n_predict": 9}, lambda chunk: 1 / 0))
found["no role"] = raises(ApiError, lambda: engine.render([{}]))
schemas = {"type": "object"}, {"type": "banana"}, {"enum": ["x"]}
found["can follow"] = [engine.can_follow({"json_schema": schema}) for schema in schemas]
seen = []
engine.run("Once upon a time", {"n_predict": 400}, lambda chunk: seen.append(read_chunk(chunk).text) or len(seen) > 5)
found["cancelled after"] = len(seen)
loaded = memory()
engine.close()
found["freed"] = memory() / loaded if loaded else 0.0
for _ in range(3):
    engine = Engine(path, context_length=512)
    engine.close()
found["no file"] = raises(EmbeddedEngineError, lambda: Engine(path.with_name("missing.gguf")))
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def found(weights_path):
    """What the engine did in its process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(weights_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_renders_with_the_models_template(found):
    """Messages become the prompt of the model's own template."""
    assert (
        found["rendered"] == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found["no role"]


def test_it_counts_control_tokens_as_one(found):
    """The count is the one the engine will see."""
    assert found["tokens"] == 2


def test_it_generates(found):
    """The text of all chunks is the answer."""
    assert found["text"] == " five,"


def test_an_exception_of_the_callback_is_raised(found):
    """What goes wrong in the callback is not swallowed."""
    assert found["fails"] == "division by zero"


def test_a_true_return_cancels(found):
    """Nothing is generated after the callback asked to stop."""
    assert found["cancelled after"] == 6


def test_schemas_it_cannot_follow_are_known(found):
    """A schema that the engine would silently ignore is found out; one that asks for an x is not mistaken for it."""
    assert found["can follow"] == [True, False, True]


def test_closing_frees_the_memory_and_can_be_repeated(found):
    """Closing frees most of the memory, and loading works again and again."""
    assert found["freed"] < 0.75


def test_a_missing_file_is_an_error(found):
    """What cannot be loaded is named."""
    assert "missing.gguf" in found["no file"]


def test_a_missing_system_library_is_explained():
    """Without libgomp the error says what to install, otherwise it names the extra."""
    assert "apt install libgomp1" in _explained(ImportError("libgomp.so.1: cannot open shared object file"))
    assert "aicortex[embedded]" in _explained(ImportError("no such thing"))
