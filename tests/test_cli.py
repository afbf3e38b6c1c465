"""`python -m hyperlora`: results on standard output, everything else on standard error, 2 for a mistake."""

import io
import os
import subprocess
import sys

import pytest

from hyperlora import hub
from hyperlora.__main__ import main
from hyperlora.chat import ChatStream
from hyperlora.choice import Choice, Pair
from hyperlora.hub import Repo
from hyperlora.lora import Adapter
from hyperlora.presets import PRESETS, Preset


@pytest.fixture(autouse=True)
def tiny(tiny_base, tiny_hyperlora, monkeypatch):
    """The preset "tiny" with the tests' own models."""
    preset = Preset("tiny", "For tests.", str(tiny_base), str(tiny_hyperlora), multi_turn=False, max_new_tokens=5)
    monkeypatch.setitem(PRESETS, "tiny", preset)


@pytest.fixture
def type_in(monkeypatch):
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_generate_writes_a_peft_folder(tmp_path, capsys):
    folder = tmp_path / "new" / "reverse"
    assert main(["generate", "Reverse the order of words.", "-o", str(folder), "--preset", "tiny"]) == 0
    assert Adapter.from_pretrained(folder).description == "Reverse the order of words."
    out, err = capsys.readouterr()
    assert out == "" and err == f"The adapter is in {folder}.\n"


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("peft", "adapter_model.safetensors"),
        ("gguf", "adapter.gguf"),
        ("merged", "config.json"),
        ("merged-gguf", "model.gguf"),
    ],
)
def test_generate_writes_another_format_and_says_how_it_is_used(form, file, tmp_path, capsys):
    folder, command = tmp_path / "new" / "out", ["generate", "Reverse the order of words.", "--preset", "tiny"]
    assert main([*command, "-o", str(folder), "--format", form, "--strength", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert (folder / file).is_file() and (folder / "README.md").is_file() and f"The adapter is in {folder}.\n" in err
    assert str(folder) in out and "# curl\ncurl http://127.0.0.1" in out
    assert "0.5 where 1 is as generated" in (folder / "README.md").read_text()
    assert main([*command, "-o", str(folder), "--format", form]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(f"{folder} is not an empty folder: choose another name.\n")


def test_a_base_model_is_written_as_gguf(tiny_base, tmp_path, capsys):
    file = tmp_path / "base.gguf"
    for name in (str(tiny_base), "mini"):
        assert main(["base", name, "-o", str(file)]) == 0
        assert file.read_bytes()[:4] == b"GGUF"
    assert main(["base", "nowhere/at all", "-o", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("There is no folder 'nowhere/at all'.\n")


def test_a_far_description_is_noticed_on_standard_error(tmp_path, capsys):
    assert main(["generate", "xq zzkw 99 vvv", "-o", str(tmp_path), "--preset", "tiny"]) == 0
    assert "may not help" in capsys.readouterr().err


CUT = "The answer was cut here: it reached the limit of its length.\n"  # "tiny" answers with five tokens at most


def test_chat_answers_a_line_with_a_line(capsys, type_in):
    type_in("one two\n5 9\n")
    assert main(["chat", "Reverse the order of words.", "--preset", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and err == 2 * CUT


def test_an_answer_that_ends_by_itself_is_not_called_cut(capsys, type_in):
    type_in("one two three\nblue\nthe dog is hungry\n")
    assert main(["chat", "Put each word in square brackets.", "--preset", "mini"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 3 and "cut" not in err


def test_chat_with_a_saved_adapter_gives_the_same_answers(tmp_path, capsys, type_in):
    main(["generate", "Reverse the order of words.", "-o", str(tmp_path), "--preset", "tiny"])
    capsys.readouterr()
    answers = []
    for what in (["Reverse the order of words."], ["--adapter", str(tmp_path)]):
        type_in("one two")  # the last line may lack its end
        assert main(["chat", *what, "--preset", "tiny"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != "\n"


def test_the_description_goes_into_the_prompt_with_describe(capsys, type_in):
    description, answers = "Reverse the order of words.", {}
    for name, line, options in (
        ("plain", "one two", []),
        ("off", "one two", ["--no-describe"]),
        ("on", "one two", ["--describe"]),
    ):
        type_in(line)
        assert main(["chat", description, "--preset", "tiny", *options]) == 0
        answers[name] = capsys.readouterr().out
    assert answers["plain"] == answers["off"] != answers["on"]


def test_an_adapter_without_description_cannot_be_described(make_adapter, tmp_path, capsys, type_in):
    make_adapter(1).save_pretrained(tmp_path)
    type_in("one two")
    assert main(["chat", "--adapter", str(tmp_path), "--describe", "--preset", "tiny"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "This adapter has no description that could be put in the prompt.\n"


@pytest.mark.parametrize(
    "bad", [b"caf\xe9", b"\xff\xfe", b"one \xed\xa0\xbd two", b"\xc3"], ids=["latin-1", "utf-16", "half", "cut"]
)
def test_a_line_that_is_not_utf_8_ends_nothing(capsys, monkeypatch, bad):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one two\n" + bad + b"\n5 9\n"), "utf-8"))
    assert main(["chat", "Reverse the order of words.", "--preset", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    [line] = [line for line in err.splitlines() if "was cut here" not in line]
    assert line.startswith("The message holds '\\udc") and "a byte that is not UTF-8" in line


def test_a_bad_line_ends_nothing(capsys, type_in):
    type_in("   \none two\n")
    assert main(["chat", "Reverse the order of words.", "--preset", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "The message is empty" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "", "-o", "x"], "The description is empty"),
        (["generate", "\U0001f600", "-o", "x"], "no letter or digit"),
        (["generate", "x" * 10_000, "-o", "x"], "10,000 characters"),
        (
            ["generate", os.fsdecode(b"caf\xe9"), "-o", "x"],
            "The command line holds '\\udce9', which is half a character",
        ),
        (["chat", "Sort \ud83d.", "--preset", "tiny"], "The command line holds '\\ud83d'"),
        (["chat", "--adapter", os.fsdecode(b"\xff"), "--preset", "tiny"], "a byte that is not UTF-8"),
        (["import", "x\udfff", "-o", "x"], "The command line holds '\\udfff'"),
        (["generate", "Sort.", "-o", "x", "--preset", "nonsense"], "no preset 'nonsense'"),
        (["generate", "Sort.", "-o", "x", "--preset", "tiny", "--device", "tpu9"], "The device 'tpu9' cannot be used"),
        (["chat", "Sort.", "--preset", "tiny", "--device", "tpu9"], "The device 'tpu9' cannot be used"),
        (["chat", "Sort.", "--base", "Qwen/Qwen3-8B"], "python -m training.plan --base Qwen/Qwen3-8B"),
        (["chat", " "], "The description is empty"),
        (["chat", "--adapter", "nowhere", "--preset", "tiny"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sentence in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["generate", "Sort.", "-o", str(tmp_path / "file"), "--preset", "tiny"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "file") in err


def test_wrong_usage_is_explained(capsys):
    for arguments in ([], ["chat"], ["chat", "Sort.", "--adapter", "x"], ["generate", "Sort."]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and "usage: python -m hyperlora" in capsys.readouterr().err


def test_ctrl_c_ends_quietly(capsys, monkeypatch):
    class Interrupted(io.StringIO):
        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert main(["chat", "Sort.", "--preset", "tiny"]) == 130
    assert "Traceback" not in capsys.readouterr().err


# ---- which model ----


@pytest.fixture
def large(monkeypatch, tiny_base, tiny_hyperlora):
    """What is chosen needs a download of 14.5 GB; fetching it does nothing. Its name is that of the preset "tiny"."""
    chosen = Choice(Pair(PRESETS["tiny"]), why="This is why.", repos=(Repo("o/base", ()),), size=14.5e9)

    def mini(reason: str) -> Choice:
        return Choice(Pair(PRESETS["tiny"]), why=f"The mini model. {reason}")

    monkeypatch.setattr("hyperlora.arguments.choose", lambda args: chosen)
    for name in ("small", "mini"):
        monkeypatch.setattr(f"hyperlora.arguments.{name}", mini)
    fetched = []
    monkeypatch.setattr(hub, "download", lambda repos, report: fetched.extend(repos))
    monkeypatch.setattr(hub, "check_disk", lambda size: 100e9)
    return fetched


def on_a_terminal(text):
    stdin = io.StringIO(text)
    stdin.isatty = lambda: True
    return stdin


def test_a_large_download_is_asked_for_on_a_terminal(large, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", on_a_terminal("y\none two\n"))
    assert main(["chat", "Reverse the order of words.", "--preset", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert "needs a download of 14.5 GB; 100 GB of the disk are free. Download it now? [y/N] " in err
    assert large and out.count("\n") == 1


def test_a_refusal_ends_the_command_where_the_model_was_named(large, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", on_a_terminal("\n"))
    assert main(["chat", "Sort.", "--preset", "tiny"]) == 2
    assert "Nothing was downloaded." in capsys.readouterr().err and not large


def test_a_script_has_to_say_yes(large, capsys, type_in):
    type_in("one two\n")
    assert main(["chat", "Sort.", "--preset", "tiny"]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].endswith("Allow it with --yes.") and not large
    assert main(["chat", "Reverse the order of words.", "--preset", "tiny", "--yes"]) == 0 and large


def test_with_none_named_a_script_gets_the_mini_model(large, capsys, type_in, tiny_base):
    type_in("one two\n")
    assert main(["chat", "Reverse the order of words."]) == 0
    out, err = capsys.readouterr()
    question = f"{tiny_base.name} needs a download of 14.5 GB; 100 GB of the disk are free."
    assert err.removesuffix(CUT).splitlines() == ["This is why.", f"The mini model. {question} Allow it with --yes."]
    assert out.count("\n") == 1 and not large


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tiny_base, tiny_hyperlora, tmp_path):
    """As a service starts it; an input that is closed holds no line."""
    models = f"--base {tiny_base} --hyperlora {tiny_hyperlora}"
    (tmp_path / "line").write_text("one two\n")
    command = f"{sys.executable} -m hyperlora chat 'Reverse the words.' {models} < {tmp_path / 'line'} {closed}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr
    assert result.stdout.count("\n") == (closed == "2>&-")


def test_a_terminal_that_lacks_characters(monkeypatch, type_in):
    """They are escaped."""
    type_in("one two\n")
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(ChatStream, "__iter__", lambda stream: iter(["caf\xe9"]))
    assert main(["chat", "Say it in French: caf\xe9.", "--preset", "tiny"]) == 0
    out.seek(0)
    assert out.read() == "caf\\xe9\n"


def test_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "hyperlora", "generate", " ", "-o", "x"], capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "description is empty" in result.stderr
