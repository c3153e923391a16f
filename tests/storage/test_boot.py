"""The kernel's name for a boot, and what takes its place where there is none."""

from pathlib import Path

from undercroft.storage.boot import BOOT_ID, boot_id


def test_it_is_the_same_throughout_a_boot() -> None:
    assert boot_id() == boot_id() == BOOT_ID.read_text().strip()


def test_the_name_is_what_the_file_says(tmp_path: Path) -> None:
    source = tmp_path / "boot_id"
    source.write_text("c1d4\n")
    assert boot_id(source) == "c1d4"


def test_without_the_file_every_call_is_a_boot_of_its_own(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    names = {boot_id(source) for source in (tmp_path / "absent", tmp_path, empty) for _ in range(3)}
    assert len(names) == 9
    assert "" not in names
