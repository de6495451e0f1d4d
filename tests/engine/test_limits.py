"""What there is of memory and files, and what follows."""

import resource
from pathlib import Path

import pytest

from engine import limits
from engine.limits import cgroup_memory, find_limits

MIB = 1 << 20
V1 = "cgroup {root}/memory cgroup rw,relatime,memory 0 0\n"
V2 = "cgroup2 {root} cgroup2 rw 0 0\n"


def hierarchy(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def found(tmp_path: Path, mounts: str, membership: str, files: dict[str, str]) -> int | None:
    root = hierarchy(tmp_path / "cgroup", files)
    (tmp_path / "mounts").write_text(mounts.format(root=root))
    (tmp_path / "membership").write_text(membership)
    return cgroup_memory(tmp_path / "mounts", tmp_path / "membership")


NONE_V1 = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("mounts", "membership", "files", "expected"),
    [
        pytest.param(V2, "0::/a/b\n", {"a/b/memory.max": "1000\n", "a/memory.max": "max\n"}, 1000, id="v2"),
        pytest.param(V2, "0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "900\n"}, 900, id="v2, of a parent"),
        pytest.param(V2, "0::/\n", {"memory.max": "800\n"}, 800, id="v2, container"),
        pytest.param(V2, "0::/docker/x\n", {"memory.max": "700\n"}, 700, id="v2, path of the host"),
        pytest.param(V2, "0::/a\n", {"a/memory.max": "max\n"}, None, id="v2, none"),
        pytest.param(
            V1,
            "4:memory:/a/b\n0::/\n",
            {"memory/a/b/memory.limit_in_bytes": NONE_V1, "memory/a/memory.limit_in_bytes": "600\n"},
            600,
            id="v1",
        ),
        pytest.param(V1, "4:memory:/\n", {"memory/memory.limit_in_bytes": NONE_V1}, None, id="v1, none"),
        pytest.param(V1, "1:cpu:/\n", {}, None, id="v1, memory not controlled"),
        pytest.param("tmpfs /x tmpfs rw 0 0\n", "", {}, None, id="no cgroups"),
    ],
)
def test_limit_of_the_cgroup(
    tmp_path: Path, mounts: str, membership: str, files: dict[str, str], expected: int | None
) -> None:
    assert found(tmp_path, mounts, membership, files) == expected


def test_of_this_machine() -> None:
    limit = cgroup_memory()
    assert limit is None or limit > 0


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(limits, "cgroup_memory", lambda: None)
    monkeypatch.setattr(limits, "_ram", lambda: 16 << 30)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    return monkeypatch


def test_plenty(plenty: pytest.MonkeyPatch) -> None:
    share = find_limits(4, flows=20_000, associations=4096)
    assert (share.flows, share.associations, share.remarks) == (20_000, 4096, ())
    assert share.memory_source == "RAM"
    assert share.worker_buffers * 2 < share.worker_memory < 4 << 30


def test_small_cgroup(plenty: pytest.MonkeyPatch) -> None:
    plenty.setattr(limits, "cgroup_memory", lambda: 256 * MIB)
    share = find_limits(2, flows=20_000, associations=4096)
    assert share.memory_source == "cgroup"
    assert share.worker_buffers == 8 * MIB
    assert share.worker_memory == 64 * MIB
    assert share.flows == 2048
    (remark,) = share.remarks
    assert remark.startswith("only 256 MiB of memory (cgroup), so that each of 2 workers may take 64 MiB")


def test_few_files(plenty: pytest.MonkeyPatch) -> None:
    plenty.setattr(resource, "getrlimit", lambda kind: (256, 256))
    share = find_limits(2, flows=20_000, associations=4096)
    assert share.flows + 2 * share.associations + limits.FILES_RESERVED <= 256
    assert share.flows > 100
    (remark,) = share.remarks
    assert remark.startswith("only 256 files may be open (ulimit -n)")


def test_fewer_flows_were_asked_for(plenty: pytest.MonkeyPatch) -> None:
    plenty.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    assert find_limits(1, flows=100, associations=10).remarks == ()
