"""The README keeps its word. Its Python example runs against the real server in tests/serving/test_server.py."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from omnifeed.pipelines.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_of_the_readme_exists_with_its_options() -> None:
    commands = re.findall(r"omnifeed ((?:run|serve|recommend|compile|submit|rollback|ledger)\b[^\n`#]*)", README)
    assert len(commands) >= 6
    for line in commands:
        name, *options = line.split()
        known = {option for parameter in cli.commands[name].params for option in parameter.opts}
        assert {option for option in options if option.startswith("--")} <= known, line
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
