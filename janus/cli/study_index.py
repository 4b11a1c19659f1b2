"""``janus study index``: one Parquet table of all records of a study folder. It owns options and the last line."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  janus study index studies/first
  python -c "import pandas as pd; \\
      table = pd.read_parquet('studies/first/index.parquet'); \\
      print(table.groupby('state').size())"
"""


def main(arguments: list[str]) -> int:
    """Write the index. Returns 0. Raises UserError when there is no record."""
    from scaling_studies.index import write_index
    from scaling_studies.records import MEASURED, RECORD_FOLDER, read_folder

    parser = argparse.ArgumentParser(
        prog="janus study index", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write index.parquet: one row per attempt and prediction, made from the JSON\n"
        "files. It can be deleted and made again at any time; nothing reads it back.",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder that 'janus study run' or 'janus study predict' wrote")
    folder = parser.parse_args(arguments).folder
    found = read_folder(folder / RECORD_FOLDER)
    path = write_index(folder, found.records)
    measured = sum(record.source == MEASURED for record in found.records)
    print(f"{path}: {measured} attempts, {len(found.records) - measured} predictions")
    for line in found.refused_lines:
        print(line)
    return 0
