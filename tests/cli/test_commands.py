"""What a user types wrong: one line of cause, one of remedy, the right exit code, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.cli import COMMANDS

from ..forks import command as run

COMMAND = [sys.executable, "-c", "from harness.cli import main; main()"]


def refused(done: subprocess.CompletedProcess[str], code: int, cause: str, remedy: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    *stages, told, tried = done.stderr.rstrip().splitlines()
    assert all(line.startswith("  ") for line in stages), done.stderr  # what was done until then
    assert told.startswith("error: ")
    assert cause in told
    assert tried.startswith("  try: ")
    assert remedy in tried
    assert done.stdout == ""


MAGNITUDE = ("run", "--pruner", "magnitude", "--model", "tiny")
USAGE = {
    "no such pruner": (("run", "--pruner", "wandaa"), "no pruner 'wandaa'", "did you mean 'wanda'?"),
    "near miss": (("run", "--pruner", "magnitud"), "no pruner 'magnitud'", "did you mean 'magnitude'?"),
    "no pruner": (("run",), "Missing option '--pruner'", "harness run --help"),
    "model": (("run", "--pruner", "dense", "--model", "smolm2-135m"), "no model", "did you mean 'smollm2-135m'?"),
    "device": ((*MAGNITUDE, "--device", "cpus"), "no device 'cpus'", "did you mean 'cpu'?"),
    "runtime": ((*MAGNITUDE, "--runtime", "ort"), "no runtime 'ort'", "known: eager"),
    "dtype": ((*MAGNITUDE, "--dtype", "int3"), "no dtype 'int3'", "fp32"),
    "evaluator": ((*MAGNITUDE, "--eval", "passage"), "no evaluator 'passage'", "did you mean 'passages'?"),
    "evaluator parameter": ((*MAGNITUDE, "--eval", "passages:windw=3"), "windw", "did you mean 'window'?"),
    "evaluator value": ((*MAGNITUDE, "--eval", "passages:window=x"), "window=x is not a whole number", "512"),
    "recovery": ((*MAGNITUDE, "--recovery", "magic"), "no recovery 'magic'", "known: least-squares, lora, none"),
    "calibration": ((*MAGNITUDE, "--calibration", "c5"), "no calibration text 'c5'", "known: c4, passages"),
    "window": ((*MAGNITUDE, "--eval", "passages:window=1"), "a window of 1 tokens", "window=512"),
    "preset": ((*MAGNITUDE, "--preset", "fast"), "no preset 'fast'", "quick or paper"),
    "parameter": ((*MAGNITUDE, "--set", "nrm=1"), "no parameter of pruner magnitude 'nrm'", "did you mean 'norm'?"),
    "parameter value": ((*MAGNITUDE, "--set", "norm=3"), "norm=3 is not known", "known: 1, 2"),
    "parameter type": ((*MAGNITUDE, "--set", "norm=two"), "norm=two is not a whole number", "for example 2"),
    "parameter form": ((*MAGNITUDE, "--set", "norm"), "--set norm is not a setting", "name=value"),
    "negative ratio": ((*MAGNITUDE, "--ratio", "-0.1"), "ratio '-0.1' is not a share", "0.3"),
    "whole ratio": ((*MAGNITUDE, "--ratio", "1.0"), "ratio '1.0' is not a share", "0.3"),
    "large ratio": ((*MAGNITUDE, "--ratio", "2"), "ratio '2' is not a share", "0.3"),
    "ratio of letters": ((*MAGNITUDE, "--ratio", "abc"), "ratio 'abc' is not a share", "0.3"),
    "latency": ((*MAGNITUDE, "--latency", "0.7"), "latency '0.7' is not a budget", "0.7x"),
    "two budgets": ((*MAGNITUDE, "--latency", "0.7x", "--ratio", "0.2"), "one budget", "--ratio or --latency"),
    "dense budget": (("run", "--pruner", "dense", "--ratio", "0.2"), "takes no budget", "leave"),
    "workload": ((*MAGNITUDE, "--workload", "prefill:1"), "workload 'prefill:1'", "prefill:BATCHxTOKENS"),
    "limit": ((*MAGNITUDE, "--limit", "0"), "limit 0", "--limit 1"),
    "limit type": ((*MAGNITUDE, "--limit", "x"), "not a valid integer", "harness run --help"),
    "option": ((*MAGNITUDE, "--rtio", "0.2"), "No such option '--rtio'", "harness run --help"),
    "command": (("runn",), "no command 'runn'", "did you mean 'run'?"),
    "info": (("info", "magnitudes"), "no name 'magnitudes'", "did you mean 'magnitude'?"),
    "doctor": (("doctor", "cpuu"), "no device 'cpuu'", "did you mean 'cpu'?"),
    "status": (("status", "zz"), "no cell 'zz'", "harness status"),
}


@pytest.mark.parametrize(("words", "cause", "remedy"), USAGE.values(), ids=USAGE)
def test_wrong_words(words, cause, remedy, runs):
    refused(run(*words), 2, cause, remedy)


def test_missing_weights_say_what_to_accept_and_set(runs):
    done = run("run", "--pruner", "magnitude", "--model", "llama3.2-1b", "--json")
    refused(
        done,
        3,
        "the weights of llama3.2-1b are not on this machine",
        "accept the licence at https://huggingface.co/meta-llama/Llama-3.2-1B",
    )
    assert "HF_TOKEN" in done.stderr


def test_dry_run_needs_no_weights(runs):
    done = run("run", "--pruner", "magnitude", "--model", "llama3.2-1b", "--ratio", "0.2", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["params"] == 1_235_814_400
    assert plan["params_prunable"] == 1_235_814_400 - 128256 * 2048 - 2048
    assert plan["params_after"] <= plan["params"] - 0.2 * plan["params_prunable"]
    assert plan["flops"]["prefill:1x128"] > plan["flops_after"]["prefill:1x128"]
    assert not runs.exists()


def test_dry_run_without_torch(runs):
    code = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
    words = ["run", "--pruner", "magnitude", "--model", "llama2-7b", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", code + "from harness.cli import main; main()", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "6,738,415,616" in done.stdout


def test_a_hub_model_that_cannot_be_reached(runs):
    refused(
        run("run", "--pruner", "dense", "--model", "nobody/nothing"),
        3,
        "nobody/nothing is not on this machine",
        "HF_TOKEN",
    )


def test_a_path_that_is_not_there(runs):
    refused(
        run("run", "--pruner", "dense", "--model", "./missing/model"), 3, "no model at ./missing/model", "config.json"
    )


@pytest.fixture
def folder(tmp_path, cache):
    """A healthy copy of the tiny model to harm."""
    import shutil

    from harness import plugins
    from harness.models.loading.weights import locate

    source, _ = locate(plugins.registry().get("model", "tiny"))
    return Path(shutil.copytree(source, tmp_path / "model"))


def dense(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run("run", "--pruner", "dense", "--model", str(folder), "--device", "null", "--limit", "1", "--json", *words)


def test_corrupt_safetensors(folder, runs):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    refused(dense(folder), 3, "model.safetensors is not an intact file of weights", "fetch or save it again")


def test_weights_of_another_model(folder, runs):
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(words | {"intermediate_size": 99}))
    refused(dense(folder), 3, "where its config.json says", "different models")


def test_missing_tensors(folder, runs):
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(words | {"num_hidden_layers": 6}))
    refused(dense(folder), 3, "lacks the tensor model.layers.4", "fetch or save it again")


def test_pickles_are_not_opened(folder, runs):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(dense(folder), 3, "as pickles (pytorch_model.bin)", "convert them to safetensors")


def test_no_weights_in_the_folder(folder, runs):
    (folder / "model.safetensors").unlink()
    refused(dense(folder), 3, "holds no weights", "model.safetensors")


def test_stray_files_are_not_weights(folder, runs):
    from safetensors.torch import load_file, save_file

    zeros = {name: tensor * 0 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "old.safetensors")
    assert harness.load(folder).lm_head.weight.abs().max() > 0


def test_quantised_weights_are_refused(folder, runs):
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(words | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    done = dense(folder)
    assert done.returncode == 1
    assert "quantised" in json.loads(done.stdout)["reason"]


@pytest.mark.parametrize("words", [[], {"model_type": "llama"}, {"model_type": "llama", "hidden_size": 0}])
def test_configs_that_say_too_little(folder, runs, words):
    (folder / "config.json").write_text(json.dumps(words))
    refused(dense(folder), 3, "config", "")


def test_a_folder_without_a_tokenizer(folder, runs):
    (folder / "tokenizer.json").unlink()
    refused(dense(folder), 3, "has no tokenizer.json", "tokenizer")


def test_more_tokens_than_the_model_sees(runs):
    for words in (["--workload", "decode:1x2048"], ["--eval", "passages:window=4096"]):
        done = run(*MAGNITUDE, "--json", *words)
        assert done.returncode == 1
        assert "accepts 2048 tokens" in json.loads(done.stdout)["reason"]


def test_a_sliding_cache_is_not_decoded(tmp_path):
    from harness.cell import planning
    from harness.cell.request import Request

    words = {"model_type": "mistral", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 20}
    words |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8}
    (tmp_path / "config.json").write_text(json.dumps(words))
    asked = {"pruner": "dense", "model": str(tmp_path), "evaluators": ["footprint"]}
    assert planning.make_plan(Request(**asked, workloads=["prefill:1x8"])).obstacle is None
    refused_plan = planning.make_plan(Request(**asked, workloads=["decode:1x8"]))
    assert "sliding cache" in refused_plan.obstacle.cause


def test_a_disk_that_fills_up_midway(tmp_path, folder):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        filled = mount / "other"
        filled.write_bytes(b"x" * 40_000)
        # it is the fresh process, which proves the model, that runs out of room
        words = ["run", "--pruner", "dense", "--model", "tiny", "--device", "null", "--json"]
        env = {
            **os.environ,
            "HARNESS_RUNS": str(mount),
        }
        done = subprocess.run(COMMAND + words, capture_output=True, text=True, env=env)
        refused(done, 3, "No space left on device", "make room")
    finally:
        subprocess.run(["umount", str(mount)], check=False)


def test_unreadable_config(folder, runs):
    (folder / "config.json").write_text('{"model_type": ')
    refused(dense(folder), 3, "config.json is truncated or not JSON", "restore")


def gguf(path: Path, architecture: str) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_of_an_unsupported_family(tmp_path, runs):
    refused(dense(gguf(tmp_path / "m.gguf", "mamba")), 3, "family 'mamba'", "supported: gemma, llama")


def test_gguf_that_is_none(tmp_path, runs):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model")
    refused(dense(path), 3, "not a readable GGUF file", "fetch it again")


def test_code_in_a_model_folder_is_not_run(folder, runs, tmp_path):
    words = json.loads((folder / "config.json").read_text())
    words["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    (folder / "config.json").write_text(json.dumps(words))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    from harness.models.saved import folders

    assert harness.load(folder).num_parameters() == 201_408
    assert folders.tokenizer(folder)("a").input_ids
    assert not (tmp_path / "ran").exists()


def test_output_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused(run(*MAGNITUDE, "--json", HARNESS_RUNS=str(blocked / "runs")), 3, "cannot use", "HARNESS_RUNS=DIR")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 600 kB, where root may make one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=False)


def test_a_full_disk(small_disk):
    done = run(*MAGNITUDE, "--device", "null", "--limit", "1", "--json", HARNESS_RUNS=str(small_disk))
    refused(done, 3, "MB free, the model may need", "make room")


def test_a_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(run(*MAGNITUDE, "--json", HARNESS_RUNS=str(small_disk)), 3, "Read-only file system", "HARNESS_RUNS=DIR")


def test_a_cache_that_cannot_be_written(tmp_path, runs):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run(*MAGNITUDE, "--json", HARNESS_CACHE=str(blocked))
    refused(done, 3, "cannot write the model cache", "HARNESS_CACHE")


def test_missing_text(runs, monkeypatch):
    done = run(*MAGNITUDE, "--eval", "wikitext2", HARNESS_DATA="")
    refused(done, 3, "the text of 'wikitext2' is not on this machine", "set HARNESS_DATA to a folder")


def test_json_is_alone_on_stdout(runs):
    done = run("run", "--pruner", "dense", "--model", "tiny", "--device", "null", "--limit", "1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "ok"
    table = run("run", "--pruner", "dense", "--model", "tiny", "--device", "null", "--limit", "1")
    assert "from the store" in table.stdout
    assert "again:" in table.stdout
    status = json.loads(run("status", "--json").stdout)["cells"]
    assert [row["status"] for row in status] == ["ok"]
    assert json.loads(run("leaderboard", "--json").stdout) == [record]
    assert "simulated" in run("leaderboard").stdout


def test_the_printed_command_is_the_same_cell(runs, one_process):
    import shlex

    from harness.records.command_line import command_of

    first = harness.run("random", ratio=0.3, model="tiny", device="null", limit=1)
    words = shlex.split(command_of(first))
    again = run(*words[1:], "--json")
    assert json.loads(again.stdout)["id"] == first.id
    assert json.loads(again.stdout)["finished"] == first.finished


def test_a_failed_cell_exits_1_with_its_reason(runs):
    done = run(*MAGNITUDE, "--latency", "0.7x", "--set", "granularity=2:4", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "unsupported"


def test_why_names_the_component(runs, one_process):
    for limit in (1, 2):
        harness.run("dense", model="tiny", device="null", limit=limit)
    rows = json.loads(run("status", "--why", "--json").stdout)["cells"]
    differing = [[path for path, _, _ in row["differs"]] for row in rows]
    assert differing == [["eval.footprint.limit", "eval.passages.limit"]] * 2
    assert {tuple(ours for _, ours, _ in row["differs"]) for row in rows} == {(1, 1), (2, 2)}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_fits_a_screen_and_shows_an_example(name):
    done = run(name, "--help")
    assert done.returncode == 0
    assert "harness " + name in done.stdout.partition("Options:")[0].partition("\n")[2]
    assert len(done.stdout.splitlines()) <= 32


def test_doctor_tells_what_is_there(runs):
    rows = {(row["what"], row["name"]): row for row in json.loads(run("doctor", "--json").stdout)}
    assert rows["device", "cpu"]["ok"]
    assert rows["weights", "tiny"]["ok"]
    assert not rows["weights", "llama3.2-1b"]["ok"]
    assert "HF_TOKEN" in rows["weights", "llama3.2-1b"]["detail"]


def test_interrupting_says_how_to_go_on(runs):
    import signal
    import time

    process = subprocess.Popen(
        [*COMMAND, *MAGNITUDE, "--json"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while not list(runs.glob("leases/*.json")) and time.monotonic() < until:  # it is past its imports, and at work
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "continues" in told


SWALLOWED = """
import os, signal, sys, time
class Careless:  # a library that takes every exception of its import for "not installed"
    def find_spec(self, name, *_):
        if name == "harness.models.surgery":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except BaseException:
                pass
sys.meta_path.insert(0, Careless())
from harness.cli import main
main()
"""


def test_an_interruption_that_a_library_swallows_is_heeded_at_the_next_stage(runs):
    words = [*MAGNITUDE, "--device", "null", "--json"]
    done = subprocess.run([sys.executable, "-c", SWALLOWED, *words], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "continues" in done.stderr
    assert not list(runs.glob("records/*.json"))


def test_what_fails_after_an_interruption_was_interrupted():
    """A thread that was only starting when Ctrl-C came cannot be joined, says the one who tidies up."""
    from harness.system.interrupts import Interrupts

    with pytest.raises(RuntimeError), Interrupts().as_keyboard_interrupt():
        raise RuntimeError("its own")
    interrupted = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        interrupted._note()
    with pytest.raises(KeyboardInterrupt), interrupted.as_keyboard_interrupt():
        raise RuntimeError("cannot join thread before it is started")
