"""How many processes load samples by default: as many as the CPUs of this process."""

import os

import pytest

from eval import loaders

LAUNCHERS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")


@pytest.fixture
def workers(monkeypatch, tmp_path):
    """workers(cpus, affinity, cgroup, files, **environment): the default on such a machine."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)

    def workers(cpus, affinity=None, cgroup="", files=None, **environment):
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity or cpus)), raising=False)
        for name, content in (files or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content + "\n")
        (tmp_path / "cgroup").write_text(cgroup)
        monkeypatch.setattr(loaders, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(loaders, "CGROUPS", tmp_path)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return loaders.default_workers()

    return workers


V1 = "3:cpuset:/a/b\n2:cpu,cpuacct:/a/b\n1:name=systemd:/a/b\n"
V1_FILES = {"cpu/a/b/cpu.cfs_quota_us": "450000", "cpu/a/b/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"cpus": 64}, 8),
        ({"cpus": 3}, 3),
        ({"cpus": 64, "affinity": 6}, 6),
        ({"cpus": 64, "cgroup": "0::/a/b\n", "files": {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}}, 3),
        ({"cpus": 64, "cgroup": "0::/\n", "files": {"cpu.max": "50000 100000"}}, 1),
        ({"cpus": 64, "cgroup": "0::/gone\n", "files": {"cpu.max": "200000 100000"}}, 2),
        ({"cpus": 64, "cgroup": V1, "files": V1_FILES}, 5),
        ({"cpus": 64, "cgroup": V1, "files": V1_FILES | {"cpu/a/b/cpu.cfs_quota_us": "-1"}}, 8),
        ({"cpus": 64, "cgroup": V1, "files": {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}}, 2),
        ({"cpus": 64, "affinity": 16, "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"cpus": 4, "LOCAL_WORLD_SIZE": "8"}, 1),
        ({"cpus": 32, "affinity": 7, "SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}, 7),  # each task has its own
        ({"cpus": 12, "SLURM_STEP_TASKS_PER_NODE": "4"}, 3),
        ({"cpus": 12, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_STEP_TASKS_PER_NODE": "1"}, 6),
        ({"cpus": 12, "LOCAL_WORLD_SIZE": "many"}, 8),
    ],
)
def test_the_cpus_of_this_process_decide(workers, machine, expected):
    assert workers(**machine) == expected


def test_both_commands_begin_with_it():
    from eval.evaluate import Output
    from train.options import DataOptions

    assert Output().num_workers == DataOptions(data_dir=[]).num_workers == loaders.default_workers()
