"""Reading mountinfo: recorded lines, escapes, stacked mounts."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.host import mount

RECORDED = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/root rw,discard
36 24 0:6 /loop0 /mnt/target rw,relatime shared:5 master:1 - devtmpfs devtmpfs rw,size=12334524k
40 27 7:0 / /mnt/a\040b\011c\012d\134e\043f rw,nosuid shared:7 - xfs /dev/loop0 ro,attr2
41 27 0:50 / /mnt/empty rw - tmpfs  rw
not a line
"""


def test_recorded_lines() -> None:
    mounts = mount.parse(RECORDED)
    assert [found.fs_type for found in mounts] == ["proc", "ext4", "devtmpfs", "xfs", "tmpfs"]
    assert mounts[1].device == (254, 0)
    assert mounts[2].root == "/loop0"
    assert mounts[3].target == Path("/mnt/a b\tc\nd\\e#f")
    assert mounts[3].readonly
    assert not mounts[2].readonly


def escape(text: str) -> str:
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\#" else each for each in text)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0/\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1)
)
def test_any_name_survives(name: str) -> None:
    line = f"40 27 7:0 / /mnt/{escape(name)} rw - ext4 /dev/loop0 rw\n"
    assert [str(found.target) for found in mount.parse(line)] == [str(Path("/mnt", name))]


def test_this_machine_has_a_root() -> None:
    assert mount.at(Path("/")) is not None
    assert mount.at(Path("/no/such/mount")) is None
