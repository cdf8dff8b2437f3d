"""What Kubeflow's local runner does that our pipelines rely on or avoid; an upgrade that changes it is noticed here."""

from pathlib import Path

import pytest
from kfp import dsl, local


@dsl.component(base_image="python", install_kfp_package=False)
def echo_int(value: int) -> int:
    assert isinstance(value, int), type(value)
    return value


@dsl.component(base_image="python", install_kfp_package=False)
def echo_kind(settings: dict) -> str:
    return type(settings["count"]).__name__


@dsl.component(base_image="python", install_kfp_package=False)
def fail() -> str:
    raise ValueError("planned")


@dsl.component(base_image="python", install_kfp_package=False)
def mark(path: str) -> None:
    from pathlib import Path

    Path(path).write_text("ran")


@dsl.component(base_image="python", install_kfp_package=False)
def ended(path: str, status: dsl.PipelineTaskFinalStatus) -> None:
    from pathlib import Path

    Path(path).write_text(status.state)


@pytest.fixture(autouse=True)
def runner(tmp_path: Path) -> None:
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "artifacts"))


def test_microsecond_timestamps_pass_between_steps_as_exact_integers() -> None:
    assert echo_int(value=1_772_409_600_123_457).output == 1_772_409_600_123_457


def test_integers_inside_dict_parameters_become_floats_so_settings_travel_as_json_text() -> None:
    assert echo_kind(settings={"count": 3}).output == "float"


def test_the_workspace_is_deleted_after_a_run_so_it_is_never_one_of_ours(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "precious").write_text("x")
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "artifacts"),
        workspace_root=str(workspace),
    )

    @dsl.pipeline
    def one() -> None:
        echo_int(value=1)

    one()
    assert not workspace.exists()


def test_the_exit_handler_runs_after_a_failure_and_knows_of_it(tmp_path: Path) -> None:
    @dsl.pipeline
    def breaks(path: str) -> None:
        with dsl.ExitHandler(ended(path=path)):
            fail()

    with pytest.raises(RuntimeError):
        breaks(path=str(tmp_path / "end"))
    assert (tmp_path / "end").read_text() == "FAILED"


def test_a_condition_on_a_text_output_decides_which_steps_run(tmp_path: Path) -> None:
    @dsl.component(base_image="python", install_kfp_package=False)
    def say(word: str) -> str:
        return word

    @dsl.pipeline
    def branch(word: str, path: str) -> None:
        said = say(word=word)
        with dsl.If(said.output == "yes"):
            mark(path=path)

    branch(word="no", path=str(tmp_path / "no"))
    branch(word="yes", path=str(tmp_path / "yes"))
    assert not (tmp_path / "no").exists()
    assert (tmp_path / "yes").exists()
