"""What GitHub reads is sound as far as can be told without GitHub: workflows, forms, dev container, hooks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from fgnet_lib import REPOSITORY

GITHUB = REPOSITORY / ".github"
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
WORKFLOWS = {path.stem: path for path in sorted((GITHUB / "workflows").glob("*.yml"))}


def load(name: str) -> dict:
    content = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}  # YAML 1.1 reads `on` as true


def jobs(name: str) -> list[dict]:
    return list(load(name)["jobs"].values())


def commands(name: str) -> str:
    return "\n".join(step["run"] for job in jobs(name) for step in job["steps"] if "run" in step)


def test_make_clean_removes_caches_and_nothing_beside_them(tmp_path):
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    kept = [tmp_path / folder / "00.ipynb" for folder in ("notebooks", "notebooks (my copy)", ".venv")]
    caches = [path.with_name(name) for path in kept[:2] for name in (".ipynb_checkpoints", "__pycache__")]
    for folder in [*(path.parent for path in kept), *caches, tmp_path / "out"]:
        folder.mkdir(exist_ok=True)
    for path in kept:
        path.touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert all(path.is_file() for path in kept)
    assert not any(folder.exists() for folder in [*caches, tmp_path / "out"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_limited_in_rights_and_time(name):
    pages = {"pages": "write", "id-token": "write"} if name == "site" else {}  # what publishing there needs
    assert load(name)["permissions"] == {"contents": "read"} | pages
    for job in jobs(name):
        assert job["runs-on"] and 0 < job["timeout-minutes"] <= 120
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_to_a_commit_that_names_its_release(name):
    lines = [line for line in WORKFLOWS[name].read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert (
        lines
        and [line for line in lines if not re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+", line)] == []
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_calls_is_there(name):
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = re.findall(r"\bmake ([a-z]+)", commands(name))
    assert called and set(called) <= targets
    files = re.findall(r"(?:^|[\s/])((?:\.github|binder|tests|tools)/[\w./-]+)", commands(name))
    assert files and [file for file in files if not (REPOSITORY / file).is_file()] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_value_of_the_matrix_is_defined(name):
    for job in jobs(name):
        known = set(job.get("strategy", {}).get("matrix", {}))
        assert set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", yaml.dump(job))) <= known


def test_a_pull_request_is_tested_on_both_systems_and_every_python():
    (job,) = jobs("tests")
    assert "pull_request" in load("tests")["on"]
    assert job["strategy"]["matrix"] == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.12", "3.13"]}
    assert re.findall(r"make (\w+)", commands("tests")) == ["env", "test"]


def test_a_push_tries_the_site_with_fast_and_what_is_published_comes_from_cpu():
    assert "make site PROFILE=${{ github.event_name == 'push' && 'fast' || 'cpu' }}" in commands("site")
    publishing = [step for job in jobs("site") for step in job["steps"] if "pages" in step.get("uses", "")]
    assert [step["if"] for step in publishing] == ["github.event_name != 'push'"] * 2


def test_every_week_the_lessons_run_in_colabs_image_and_outer_links_are_checked():
    assert load("scheduled")["on"]["schedule"][0]["cron"].endswith("* * 1")
    assert "colab-images/public/cpu-runtime" in commands("scheduled")
    assert any("lychee" in step.get("uses", "") for job in jobs("scheduled") for step in job["steps"])


def test_the_index_of_cpu_wheels_is_found_as_the_workflows_find_it():
    (line,) = {line for name in WORKFLOWS for line in commands(name).splitlines() if "binder/requirements.txt" in line}
    sed = re.search(r"\$\((sed .*)\)", line)[1]
    output = subprocess.run(["bash", "-c", sed], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"https://\S+/cpu\n", output)


def test_the_script_for_colabs_image_runs_every_lesson_and_notices_a_change(tmp_path):
    """With a stand-in for Python: one package changes while the second lesson fails."""
    script = (GITHUB / "lessons_in_colab.sh").read_text(encoding="utf-8")
    for folder in ("tmp", "course/notebooks", "executed"):
        (tmp_path / folder).mkdir(parents=True)
        script = re.sub(rf"(?<![\w/])/{folder}/", f"{tmp_path}/{folder}/", script)
    for name in ("00_a.ipynb", "01_b.ipynb", "README.md"):
        (tmp_path / "course" / "notebooks" / name).touch()
    (tmp_path / "list").write_text("numpy==2.1.3\ntorch==2.11.0\n")
    (tmp_path / "python3").write_text(PYTHON.format(folder=tmp_path))
    (tmp_path / "python3").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "COLAB_RELEASE_TAG": "release"}
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert (tmp_path / "ran").read_text() == "00_a.ipynb\n01_b.ipynb\n"
    assert "::error::01_b failed" in result.stdout and "00_a failed" not in result.stdout
    assert "numpy==2.1.3\n::error::the lines above" in result.stdout and "torch==" not in result.stdout


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_for_issues_has_what_github_requires(form: Path):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown"}
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers) and all(re.fullmatch(r"[\w-]+", name) for name in identifiers)
    assert all(field["attributes"]["label"] for field in fields)
    assert all(field["attributes"]["options"] for field in fields if field["type"] == "dropdown")
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_there_is_a_form_for_each_case():
    names = {yaml.safe_load(form.read_text(encoding="utf-8"))["name"] for form in FORMS}
    assert names == {"Lesson bug", "Misconception", "My volume does not read"}


def test_the_dev_container_builds_the_environment_and_opens_the_ports_of_the_lessons():
    text = (REPOSITORY / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    content = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))  # JSON with comments
    assert "make env" in content["postCreateCommand"] and "binder/requirements.txt" in content["postCreateCommand"]
    assert {str(port) for port in content["forwardPorts"]} == content["portsAttributes"].keys()
    assert re.search(r"python:3\.1[123]\b", content["image"])
    assert re.findall(r"https?://", text) == []


def test_the_hooks_call_what_the_environment_has():
    content = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repository in content["repos"] for hook in repository["hooks"]}
    assert {"ruff-check", "ruff-format", "notebooks", "check-added-large-files"} <= hooks.keys()
    entries = [hook["entry"].split() for hook in hooks.values() if "entry" in hook]
    assert {program for program, *_ in entries} == {".venv/bin/ruff", ".venv/bin/python"}
    assert all((REPOSITORY / script).is_file() for _, script, *_ in entries if script.endswith(".py"))


PYTHON = """#!/bin/sh
case "$1 $3" in
  "-m freeze") cat {folder}/list ;;
  "-c "*)
    test -z "$COLAB_RELEASE_TAG" || exit 3
    basename "$3" >> {folder}/ran
    case "$3" in *01_b*) printf 'numpy==2.4\\ntorch==2.11.0\\n' > {folder}/list; exit 1 ;; esac
esac
"""
