"""What lies in a data directory."""

from pathlib import Path


def files_under(folder: Path) -> list[str]:
    """Relative paths of all files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def temporary_files(data_dir: Path) -> list[str]:
    """What uploads left behind; the directories of living processes are no files."""
    return files_under(data_dir / "temporary")


def artifact_files(data_dir: Path) -> list[str]:
    return files_under(data_dir / "artifacts")
