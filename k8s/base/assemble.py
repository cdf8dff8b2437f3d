"""Fills a pod's model repository before Triton starts, from the step image and the shared volume.

NVIDIA's image knows nothing of Omnifeed: its pure Python and the `recommend` model are copied beside it, the routed
releases' models are linked once every hash of their bundles has been checked, and the settings are written as the
server reads them. On a new volume, routing follows the mounted ConfigMap.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import omnifeed
import omnifeed.serving
from omnifeed.config import Config
from omnifeed.export.release import load_release
from omnifeed.home import Home, write_atomic
from omnifeed.serving.preflight import check_memory
from omnifeed.serving.recommend.routing import read_routing


def assemble(home: Home, work: Path, settings: Path, experiment: Path) -> tuple[str, ...]:
    """Fill `work` with packages/, models/ and config.json, and return the linked releases.

    Args:
        work: the pod's own folder; what an earlier run left is replaced.
        settings: TOML.
        experiment: the mounted experiment.json.

    Raises:
        IntegrityError: a bundle is not what was exported; Triton must not start on it.
        OmnifeedError: the routed releases together do not fit into Triton's memory.
    """
    current = home.experiments / "current.json"
    current.parent.mkdir(parents=True, exist_ok=True)
    if not current.exists():
        current.unlink(missing_ok=True)  # a link to nowhere
        current.symlink_to(experiment)
    for folder in ("packages", "models"):  # a node that comes back runs this again on the same folder
        shutil.rmtree(work / folder, ignore_errors=True)
    no_bytecode = shutil.ignore_patterns("__pycache__")
    serving = Path(omnifeed.serving.__file__).parent
    package = work / "packages" / "omnifeed"
    shutil.copytree(Path(omnifeed.__file__).parent, package, ignore=no_bytecode)
    shutil.copytree(serving, package / "serving", ignore=no_bytecode, dirs_exist_ok=True)
    shutil.copytree(serving / "repository", work / "models", ignore=no_bytecode)
    config, releases = Config.load(settings), read_routing(home).releases()
    write_atomic(work / "config.json", config.to_json())
    check_memory(home, config, releases)
    for number in releases:
        folder = home.releases / number
        load_release(folder)
        for model in sorted((folder / "models").glob("*/")):
            (work / "models" / model.name).symlink_to(model.absolute(), target_is_directory=True)
    return releases


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("work", "settings", "experiment"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    linked = assemble(Home.from_env(), arguments.work, arguments.settings, arguments.experiment)
    print(f"releases: {', '.join(linked) or 'none yet'}")
