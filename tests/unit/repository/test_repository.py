from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import Model, ModelSpec, Tensor
from serve.errors import InvalidInput, NotFound, NotReady
from serve.repository.loading import Progress
from serve.repository.repository import ModelState, Repository

CONFIG = """\
backend: "echo"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


class Echo:
    """A model that gives back its input; the file `model` in its folder says how it loads."""

    def __init__(self, spec: ModelSpec, text: str) -> None:
        self.spec = spec
        self.text = text
        self.is_closed = False

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": inputs["x"]}

    def close(self) -> None:
        self.is_closed = True
        if self.text == "sticky":
            raise OSError("will not close")


class EchoLoader:
    """Loads `Echo`es and remembers them."""

    def __init__(self) -> None:
        self.made: list[Echo] = []

    def __call__(self, folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress) -> Model:
        text = (folder / "model").read_text()
        if text.startswith("broken"):
            raise ValueError(f"{text} model file\nat line 2 of it")
        progress(f"{config.name} read")
        self.made.append(Echo(spec, text))
        return self.made[-1]


def put(root: Path, name: str, config: str = CONFIG, **versions: str) -> None:
    """Writes a model; `v1="good"` is version 1 with that text."""
    (root / name).mkdir(exist_ok=True)
    (root / name / "config.pbtxt").write_text(config)
    for version, text in versions.items():
        folder = root / name / version.removeprefix("v")
        folder.mkdir(exist_ok=True)
        (folder / "model").write_text(text)


def loaded(root: Path, lines: list[str] | None = None) -> tuple[Repository, EchoLoader]:
    loader = EchoLoader()
    repository = Repository(root, {"echo": loader})
    repository.load_all((lines if lines is not None else []).append)
    return repository, loader


def test_the_newest_version_by_number_serves(tmp_path: Path) -> None:
    put(tmp_path, "m", v2="a", v10="b")
    repository, loader = loaded(tmp_path)
    assert repository.model("m").spec.version == "10"
    assert repository.model("m", "10") is repository.model("m")
    assert repository.versions("m") == ("10",)
    assert len(loader.made) == 1
    assert repository.config("m").name == "m"
    assert repository.labels("m") == {}


def test_all_versions_serve_where_the_policy_says_so(tmp_path: Path) -> None:
    put(tmp_path, "m", CONFIG + "version_policy { all { } }", v1="a", v2="broken", v3="c")
    repository, _ = loaded(tmp_path)
    assert repository.versions("m") == ("1", "3")
    assert [(state.version, state.state) for state in repository.states()] == [
        ("1", "READY"),
        ("2", "UNAVAILABLE"),
        ("3", "READY"),
    ]


def test_an_older_version_stands_in_for_a_broken_one_and_the_reason_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="old", v2="good", v3="broken")
    repository, _ = loaded(tmp_path)
    assert repository.model("m").spec.version == "2"
    assert repository.states() == [
        ModelState("m", "2", "READY", ""),
        ModelState("m", "3", "UNAVAILABLE", "ValueError: broken model file"),
    ]
    with pytest.raises(NotReady, match="'m' version 3 is not at ready state: ValueError: broken model file"):
        repository.model("m", "3")
    assert repository.is_ready("m")
    assert repository.is_ready("m", "2")
    assert not repository.is_ready("m", "3")


def test_a_model_without_a_loadable_version_says_why(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="broken one", v2="broken two")
    repository, _ = loaded(tmp_path)
    with pytest.raises(NotReady, match=r"no available versions: version 2: .*broken two.*version 1: .*broken one"):
        repository.model("m")
    assert repository.versions("m") == ()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("nonsense", "m/config.pbtxt:1: "),
        ('backend: "python"', "backend is 'python'; allowed echo"),
        (CONFIG, "there is no version to load"),
        (
            CONFIG + 'output { name: "z" data_type: TYPE_FP32 dims: 1 label_filename: "none" }',
            "label_filename is 'none'",
        ),
    ],
)
def test_a_broken_configuration_is_the_models_reason(tmp_path: Path, config: str, reason: str) -> None:
    put(tmp_path, "m", config)
    repository, _ = loaded(tmp_path)
    (state,) = repository.states()
    assert (state.version, state.state) == ("", "UNAVAILABLE")
    assert reason in state.reason
    with pytest.raises(NotReady, match="'m' has no available versions"):
        repository.model("m")


def test_a_configuration_that_cannot_be_read_is_not_given(tmp_path: Path) -> None:
    put(tmp_path, "m", "nonsense")
    repository, _ = loaded(tmp_path)
    with pytest.raises(NotReady, match=r"config\.pbtxt"):
        repository.config("m")


def test_a_version_the_policy_names_and_nobody_made_is_a_reason(tmp_path: Path) -> None:
    put(tmp_path, "m", CONFIG + "version_policy { specific { versions: [ 1, 5 ] } }", v1="a", v2="b")
    repository, _ = loaded(tmp_path)
    assert repository.versions("m") == ("1",)
    with pytest.raises(NotReady, match="folder '5' is missing"):
        repository.model("m", "5")


def test_a_model_without_inputs_is_refused_and_closed(tmp_path: Path) -> None:
    put(tmp_path, "m", 'backend: "echo"', v1="a")
    repository, loader = loaded(tmp_path)
    assert not repository.is_ready("m")
    assert loader.made[0].is_closed


def test_one_broken_model_never_stops_the_others(tmp_path: Path) -> None:
    put(tmp_path, "a", "nonsense")
    put(tmp_path, "b", v1="broken")
    put(tmp_path, "c", v1="good")
    lines: list[str] = []
    repository, _ = loaded(tmp_path, lines)
    assert repository.is_ready("c")
    assert [line for line in lines if line.startswith("loading model")] == [
        "loading model 1 of 3: a",
        "loading model 2 of 3: b",
        "loading model 3 of 3: c",
    ]
    assert any(line.startswith("c version 1 ready in ") for line in lines)
    assert "b version 1 not loaded: ValueError: broken model file" in lines


def test_folders_that_are_no_models_or_versions_are_ignored(tmp_path: Path) -> None:
    put(tmp_path, ".hidden", v1="a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "config.pbtxt").write_text(CONFIG)
    put(tmp_path, "m", v1="a", v02="b", vlatest="c", **{"v²": "d"})
    (tmp_path / "m" / "7").write_text("a file")
    repository, _ = loaded(tmp_path)
    assert [(state.name, state.version) for state in repository.states()] == [("m", "1")]


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="allowed a folder that exists"):
        loaded(tmp_path / "none")


def test_unknown_models_and_versions_are_not_found(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="a")
    repository, _ = loaded(tmp_path)
    for name in ("x", "", "..", "../m", "m/", "m/1", "\0"):
        with pytest.raises(NotFound, match="Request for unknown model"):
            repository.model(name)
        with pytest.raises(NotFound):
            repository.load(name)
        assert not repository.is_ready(name)
    with pytest.raises(NotFound, match="'m' version 2 is not found"):
        repository.model("m", "2")
    for version in ("x", "-1", "²", "9" * 400):
        with pytest.raises(InvalidInput, match="model version is"):
            repository.model("m", version)
        assert not repository.is_ready("m", version)


def test_links_lead_nowhere_out_of_the_repository(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    put(tmp_path, "outside", v1="secret")
    put(root, "m", v1="a")
    (root / "m" / "2").symlink_to(tmp_path / "outside" / "1")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "alias").symlink_to(root / "m")
    repository, loader = loaded(root)
    assert repository.model("m").spec.version == "1"
    assert [state.reason for state in repository.states() if state.version == "2" and state.name == "m"] == [
        "folder '2' leads out of the model repository; allowed links within it"
    ]
    with pytest.raises(NotReady, match="folder 'linked' leads out of the model repository"):
        repository.model("linked")
    assert repository.model("alias").spec.name == "alias"
    assert "secret" not in [made.text for made in loader.made]


def test_a_load_swaps_and_gives_back_what_it_replaced(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="a")
    repository, loader = loaded(tmp_path)
    put(tmp_path, "m", v2="b")
    result = repository.load("m")
    assert (result.name, result.reason) == ("m", "")
    assert result.retired == (loader.made[0],)
    assert not loader.made[0].is_closed  # a batch may still use it
    assert repository.model("m") is loader.made[1]
    assert repository.versions("m") == ("2",)


@pytest.mark.parametrize("damage", ["file", "config", "no version", "new version", "backend"])
def test_a_failing_load_leaves_the_serving_version_as_it_is(tmp_path: Path, damage: str) -> None:
    put(tmp_path, "m", v1="good")
    repository, loader = loaded(tmp_path)
    serving = repository.model("m")
    if damage == "file":
        put(tmp_path, "m", v1="broken")
    elif damage == "config":
        put(tmp_path, "m", "nonsense")
    elif damage == "backend":
        put(tmp_path, "m", CONFIG.replace("echo", "other"))
    elif damage == "no version":
        (tmp_path / "m" / "1").rename(tmp_path / "m" / "first")
    else:
        put(tmp_path, "m", v2="broken")
    result = repository.load("m")
    assert result.reason
    assert result.retired == ()
    assert repository.model("m") is serving
    assert not loader.made[0].is_closed
    reasons = [state.reason for state in repository.states() if state.reason]
    assert reasons
    assert all(reason in result.reason for reason in reasons)
    assert repository.config("m").backend == "echo"


def test_a_load_that_fails_half_way_closes_what_it_had_loaded(tmp_path: Path) -> None:
    both = CONFIG + "version_policy { all { } }"
    put(tmp_path, "m", both, v1="a", v2="b")
    repository, loader = loaded(tmp_path)
    put(tmp_path, "m", both, v1="broken")
    assert repository.load("m").reason == "version 1: ValueError: broken model file"
    assert [(made.spec.version, made.is_closed) for made in loader.made] == [("2", False), ("1", False), ("2", True)]
    assert repository.versions("m") == ("1", "2")


def test_a_good_load_clears_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="good", v2="broken")
    repository, _ = loaded(tmp_path)
    put(tmp_path, "m", v2="mended")
    assert repository.load("m").reason == ""
    assert repository.states() == [ModelState("m", "2", "READY", "")]


def test_readers_go_on_while_a_load_is_running(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="a")
    has_started, may_end = threading.Event(), threading.Event()
    echo = EchoLoader()

    def slow(folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress) -> Model:
        has_started.set()
        assert may_end.wait(10)
        return echo(folder, config, spec, progress)

    loaders = {"echo": echo}
    repository = Repository(tmp_path, loaders)
    repository.load_all(lambda line: None)
    loaders["echo"] = slow  # type: ignore[assignment]
    thread = threading.Thread(target=repository.load, args=("m",))
    thread.start()
    assert has_started.wait(10)
    assert repository.model("m") is echo.made[0]
    assert repository.states()[0].state == "READY"
    may_end.set()
    thread.join(10)
    assert repository.model("m") is echo.made[1]


def test_close_closes_every_model_even_when_one_will_not(tmp_path: Path) -> None:
    put(tmp_path, "a", v1="sticky")
    put(tmp_path, "b", v1="good")
    repository, loader = loaded(tmp_path)
    repository.close()
    assert [made.is_closed for made in loader.made] == [True, True]
    assert not repository.is_ready("b")


def test_an_unloaded_model_is_not_ready_says_so_and_can_be_loaded_again(tmp_path: Path) -> None:
    put(tmp_path, "m", CONFIG + "version_policy { all { } }", v1="a", v2="b")
    repository, loader = loaded(tmp_path)
    result = repository.unload("m")
    assert set(result.retired) == set(loader.made)
    assert not any(made.is_closed for made in loader.made)  # a batch may still use them
    assert repository.loaded("m") == {}
    assert [(s.version, s.state, s.reason) for s in repository.states()] == [
        ("1", "UNAVAILABLE", "unloaded"), ("2", "UNAVAILABLE", "unloaded"),
    ]  # fmt: skip
    with pytest.raises(NotReady, match="no available versions: unloaded"):
        repository.model("m")
    assert repository.load("m").reason == ""
    assert repository.versions("m") == ("1", "2")
    with pytest.raises(NotFound):
        repository.unload("none")


def test_only_the_models_named_are_loaded_and_the_index_has_the_others_without_a_state(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path, name, v1="x")
    repository = Repository(tmp_path, {"echo": EchoLoader()})
    repository.load_all(lambda line: None, {"b"})
    assert repository.states() == [ModelState("a", "", "", ""), ModelState("b", "1", "READY", "")]
    with pytest.raises(NotFound):
        repository.model("a")
    with pytest.raises(InvalidInput, match="no model 'c'; allowed: a, b"):
        repository.load_all(lambda line: None, {"b", "c"})


def test_a_configuration_given_with_a_load_takes_the_files_place_until_the_next_load(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="x")
    repository, _ = loaded(tmp_path)
    config = repository.config("m")
    given = ModelConfig()
    given.CopyFrom(config)
    given.max_batch_size = 7
    assert repository.load("m", given).reason == ""
    assert repository.model("m").spec.max_batch_size == 7
    given.backend = "none"
    assert "backend is 'none'" in repository.load("m", given).reason
    assert repository.model("m").spec.max_batch_size == 7
    repository.load("m")
    assert repository.model("m").spec.max_batch_size == config.max_batch_size


def test_what_is_being_loaded_or_unloaded_is_shown_as_such(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="x")
    shown: list[list[ModelState]] = []
    echo = EchoLoader()

    def showing(folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress) -> Model:
        shown.append(repository.states())
        return echo(folder, config, spec, progress)

    repository = Repository(tmp_path, {"echo": showing})
    repository.load("m")
    assert shown == [[ModelState("m", "", "LOADING", "")]]
    repository.load("m")
    assert shown[1] == [ModelState("m", "1", "READY", "")]  # what serves goes on


def ensemble_of(*parts: str) -> str:
    steps = "".join(f'step {{ model_name: "{part}" model_version: -1 }} ' for part in parts)
    return CONFIG + f"ensemble_scheduling {{ {steps} }}"


def test_what_an_ensemble_is_made_of_is_loaded_before_it_however_deep(tmp_path: Path) -> None:
    put(tmp_path, "a", ensemble_of("b", "c"), v1="x")
    put(tmp_path, "b", ensemble_of("d", "c"), v1="x")
    put(tmp_path, "c", v1="x")
    put(tmp_path, "d", ensemble_of("missing"), v1="x")
    put(tmp_path, "other", v1="x")
    repository, loader = loaded(tmp_path)
    assert [made.spec.name for made in loader.made] == ["d", "c", "b", "a", "other"]
    assert repository.with_parts(["b"]) == ["missing", "d", "c", "b"]
    again = Repository(tmp_path, {"echo": EchoLoader()})
    again.load_all(lambda line: None, {"b"})
    assert [name for name, _ in again.ready()] == ["b", "c", "d"]


def test_an_ensemble_of_itself_is_visited_once(tmp_path: Path) -> None:
    put(tmp_path, "a", ensemble_of("b"), v1="x")
    put(tmp_path, "b", ensemble_of("a"), v1="x")
    assert loaded(tmp_path)[0].with_parts(["a"]) == ["b", "a"]


def test_who_closes_a_model_can_wait_for_those_that_ask_it(tmp_path: Path) -> None:
    put(tmp_path, "m", v1="x")
    repository, loader = loaded(tmp_path)
    has_begun, may_end, has_waited = threading.Event(), threading.Event(), threading.Event()
    (model,) = loader.made

    def slow(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        has_begun.set()
        assert may_end.wait(10)
        return {"y": inputs["x"]}

    model.infer = slow  # type: ignore[method-assign]

    def wait() -> None:
        repository.wait_until_unasked(model, 10)
        has_waited.set()

    asking = threading.Thread(target=repository.ask, args=("m", "", {"x": np.zeros(1, np.float32)}))
    waiting = threading.Thread(target=wait)
    asking.start()
    assert has_begun.wait(10)
    waiting.start()
    assert not has_waited.wait(0.05)
    may_end.set()
    asking.join(10)
    waiting.join(10)
    assert has_waited.is_set()
