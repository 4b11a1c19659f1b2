"""A stand-in for a scheduler's program: an executable on the path that prints prepared answers and keeps its calls."""

from dataclasses import dataclass
from pathlib import Path

SCRIPT = """#!/bin/sh
here={here}
n=$(ls "$here" | grep -c '^call')
for word in "$@"; do printf '%s\\n' "$word"; done > "$here/call$n"
cat > "$here/stdin$n"
[ -e "$here/code$n" ] || {{ echo "no answer was prepared for call $n" >&2; exit 99; }}
cat "$here/out$n"
cat "$here/err$n" >&2
exit "$(cat "$here/code$n")"
"""


@dataclass(frozen=True)
class StandIn:
    """name: of the program; bin_folder: a folder on the path, where it is made."""

    name: str
    bin_folder: Path

    @property
    def folder(self) -> Path:
        return self.bin_folder / f"{self.name}.d"

    def answers(self, *answers: tuple[int, str, str]) -> "StandIn":
        """Exit code, output and complaints of each call to come, in turn."""
        self.folder.mkdir(exist_ok=True)
        program = self.bin_folder / self.name
        program.write_text(SCRIPT.format(here=self.folder))
        program.chmod(0o755)
        first = len(list(self.folder.glob("code*")))
        for number, (code, out, err) in enumerate(answers, first):
            (self.folder / f"out{number}").write_text(out)
            (self.folder / f"err{number}").write_text(err)
            (self.folder / f"code{number}").write_text(str(code))
        return self

    def calls(self) -> list[list[str]]:
        """The words of each call."""
        count = len(list(self.folder.glob("call*")))
        return [(self.folder / f"call{number}").read_text().splitlines() for number in range(count)]

    def standard_input(self, number: int) -> str:
        return (self.folder / f"stdin{number}").read_text()
